"""An independent checker of the invariants: it reads the ledger's file and what clients were answered, nothing else.

It shares no code with the broker: its own hashing (RFC 9162), its own reading of events, its own rule for which token a
kill covers. What it finds are sentences that begin with the number of the invariant (DESIGN, section 8); a position
that is out of order or two pictures of one ledger that disagree are invariant 5, decreasing times and guards 11.
"""

import base64
import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

Event = dict[str, Any]
Kill = tuple[int, list[list[str]]]
"""The position of a kill, and its matches."""


@dataclass
class Facts:
    """One picture of a ledger file."""

    rows: list[tuple[int, bytes, bytes]]  # seq, bytes, stored leaf hash
    head: dict[str, Any]
    checkpoints: list[tuple[int, str]]
    marks: set[str] = field(default_factory=set)

    @property
    def events(self) -> list[Event]:
        """The events, parsed."""
        return [json.loads(data) for _, data, _ in self.rows]


def read_ledger(path: Path) -> Facts:
    """Everything the checker needs, in one snapshot."""
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)) as db:
        db.execute("BEGIN")
        rows = [(seq, bytes(data), bytes(leaf)) for seq, data, leaf in db.execute("SELECT * FROM events ORDER BY seq")]
        cursor = db.execute("SELECT * FROM head")
        head = dict(zip([column[0] for column in cursor.description], cursor.fetchone(), strict=True))
        checkpoints = db.execute("SELECT size, note FROM checkpoints ORDER BY size").fetchall()
        marks = {bytes(mark).hex() for (mark,) in db.execute("SELECT mark FROM proofs")}
    return Facts(rows, head, checkpoints, marks)


def read_database(url: str) -> Facts:
    """The same of a ledger in PostgreSQL."""
    import psycopg

    with psycopg.connect(url) as db:
        db.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        rows = db.execute("SELECT seq, bytes, leaf FROM events ORDER BY seq").fetchall()
        cursor = db.execute("SELECT * FROM head")
        head = dict(zip([column.name for column in cursor.description or ()], cursor.fetchone() or (), strict=True))
        checkpoints = db.execute("SELECT size, note FROM checkpoints ORDER BY size").fetchall()
        marks = {bytes(mark).hex() for (mark,) in db.execute("SELECT mark FROM proofs")}
    return Facts(rows, head, checkpoints, marks)


# --- What clients saw -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Token:
    """A credential that was delivered. Times are monotonic seconds of one clock."""

    sent: float
    received: float
    header: Mapping[str, Any]
    claims: Mapping[str, Any]
    assertion: str = ""

    @classmethod
    def of(cls, compact: str, *, sent: float, received: float, assertion: str = "") -> "Token":
        """Decoded without a signature check: whether tokens verify is another test's business."""
        header, claims = (
            json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))) for part in compact.split(".")[:2]
        )
        return cls(sent, received, header, claims, assertion)


@dataclass(frozen=True)
class Killing:
    """An operator's kill that was answered as durable."""

    sent: float
    received: float
    position: int


@dataclass(frozen=True)
class Introspected:
    """What the broker said of a token, by its id."""

    sent: float
    received: float
    jti: str
    active: bool


@dataclass
class Transcript:
    """Everything that clients were answered."""

    tokens: list[Token] = field(default_factory=list)
    kills: list[Killing] = field(default_factory=list)
    introspections: list[Introspected] = field(default_factory=list)


# --- RFC 9162 ---------------------------------------------------------------------------------------------------------


def leaf_hash(data: bytes) -> bytes:
    """Section 2.1.1."""
    return hashlib.sha256(b"\x00" + data).digest()


class Tree:
    """Roots of a log that grows, by the stack of its complete subtrees."""

    def __init__(self) -> None:
        self.size = 0
        self._stack: list[tuple[int, bytes]] = []  # (leaves, hash), largest first

    def append(self, leaf: bytes) -> None:
        leaves, node = 1, leaf
        while self._stack and self._stack[-1][0] == leaves:
            node = hashlib.sha256(b"\x01" + self._stack.pop()[1] + node).digest()
            leaves *= 2
        self._stack.append((leaves, node))
        self.size += 1

    def root(self) -> bytes:
        if not self._stack:
            return hashlib.sha256(b"").digest()
        node = self._stack[-1][1]
        for _, left in reversed(self._stack[:-1]):
            node = hashlib.sha256(b"\x01" + left + node).digest()
        return node

    def complete(self) -> bytes:
        """The hashes of the complete subtrees, largest first."""
        return b"".join(node for _, node in self._stack)


# --- Which token a kill covers ----------------------------------------------------------------------------------------


def covers(matches: Iterable[Sequence[str]], token: Mapping[str, Any], kid: str) -> bool:
    """Whether any of a kill's matches is about a token with these claims, positions aside."""
    by = {
        "agent": {token["sub"], token["client_id"]},
        "task": {token["task"]},
        "grant": {token["jti"]},
        "resource": {token["aud"]},
        "key": {kid},
    }
    return any(kind == "all" or value in by[kind] for kind, value in matches)


def kills_in(events: Iterable[Event]) -> Iterator[Kill]:
    """Everything that ends credentials: kills, and the endings of tasks."""
    for event in events:
        if event["type"] == "killed":
            yield event["seq"], event["matches"]
        elif event["type"] in ("task.ended", "task.expired"):
            yield event["seq"], [["task", task] for task in (event["task"], *event.get("children", ()))]


def killers_of(kills: Sequence[Kill], token: Mapping[str, Any], kid: str) -> Iterator[int]:
    """The positions of the kills that cover this token; a key's kill covers whatever position a token names."""
    for position, matches in kills:
        if (token["seq"] < position or any(kind == "key" for kind, _ in matches)) and covers(matches, token, kid):
            yield position


# --- The checks -------------------------------------------------------------------------------------------------------


def check(
    facts: Facts, transcript: Transcript | None = None, *, audiences: Mapping[str, str], max_ttl_s: int = 300
) -> list[str]:
    """Every violation found. `audiences` maps each resource to the audience of its tokens."""
    found = [*_tree(facts)]
    try:
        events = facts.events
    except ValueError as error:
        return [*found, f"5: an event is not JSON: {error}"]
    found += _order(facts, events)
    found += _rules(events)
    found += _proofs(facts, events)
    found += _issued(events, max_ttl_s)
    found += _no_issue_after_kill(events, audiences)
    if transcript is not None:
        found += _delivered(events, transcript, audiences)
        found += _real_time(events, transcript)
        found += _introspected(events, transcript)
    return found


def check_continues(before: Facts, after: Facts) -> list[str]:
    """Whether `after` is `before` grown: nothing lost, nothing rewritten, nothing that only grows went back."""
    found = []
    if after.rows[: len(before.rows)] != before.rows:
        found.append(f"5: the first {len(before.rows)} events are not what they were")
    if after.checkpoints[: len(before.checkpoints)] != before.checkpoints:
        found.append("5: checkpoints were lost or changed")
    found += [
        f"11: {name} went from {before.head[name]} to {after.head[name]}"
        for name in ("size", "time", "guard_version", "floor")
        if after.head[name] < before.head[name]
    ]
    if after.head["epoch"] != before.head["epoch"]:
        found.append("5: the epoch changed")
    return found


def _tree(facts: Facts) -> Iterator[str]:
    tree, roots, wanted = Tree(), {}, {size for size, _ in facts.checkpoints}
    for expected, (seq, data, stored) in enumerate(facts.rows):
        if seq != expected:
            yield f"5: position {expected} is missing or out of order"
            return
        leaf = leaf_hash(data)
        if leaf != stored:
            yield f"5: the stored hash of event {seq} is not that of its bytes"
        tree.append(leaf)
        if tree.size in wanted:
            roots[tree.size] = tree.root()
    if facts.head["size"] != tree.size or bytes(facts.head["frontier"]) != tree.complete():
        yield f"5: the head says {facts.head['size']} events and another tree than the {tree.size} events make"
    keys = [
        event["jwk"]["x"]
        for event in (json.loads(data) for _, data, _ in facts.rows if b'"checkpoint"' in data)
        if event["type"] == "key.published" and event["purpose"] == "checkpoint"
    ]
    for size, note in facts.checkpoints:
        text, _, signature = note.rpartition("\n\n")
        lines = text.split("\n")
        if lines[1] != str(size) or roots.get(size) != base64.b64decode(lines[2]):
            yield f"5: the checkpoint of size {size} is not of this tree"
        if not any(_signed(text + "\n", signature, key) for key in keys):
            yield f"5: the checkpoint of size {size} is not signed by a published key"


def _signed(text: str, line: str, x: str) -> bool:
    raw = base64.b64decode(line.rsplit(" ", maxsplit=1)[-1].strip())[4:]
    try:
        Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(x + "=")).verify(raw, text.encode())
    except InvalidSignature:
        return False
    return True


def _order(facts: Facts, events: Sequence[Event]) -> Iterator[str]:
    time = 0
    for position, event in enumerate(events):
        if event["seq"] != position:
            yield f"5: the event at {position} says it is at {event['seq']}"
        if event["t"] < time:
            yield f"11: ledger time goes back at {position}, from {time} to {event['t']}"
        time = max(time, event["t"])
    if facts.head["time"] < time:
        yield "11: the head's time is before its last event's"


def _rules(events: Sequence[Event]) -> Iterator[str]:
    """Every decision names the registry and the policies that were in force at its position."""
    in_force = {"registry": "", "bundle": ""}
    for event in events:
        if event["type"] in ("registry.loaded", "policies.loaded"):
            in_force["registry" if event["type"] == "registry.loaded" else "bundle"] = event["hash"]
        for name, value in in_force.items():
            if name in event and event[name] != value:
                yield f"9: the decision at {event['seq']} was made by another {name} than was in force"


def _proofs(facts: Facts, events: Sequence[Event]) -> Iterator[str]:
    spent: dict[str, int] = {}
    for event in events:
        mark = event.get("proof")
        if mark is None or event.get("reason") == "replayed":
            continue
        if mark in spent and event["type"] != "refused":
            yield f"8: the proof spent at {spent[mark]} was accepted again at {event['seq']}"
        spent.setdefault(mark, event["seq"])
    yield from (f"8: the proof {mark[:16]} is spent, and no event says so" for mark in facts.marks - spent.keys())


def _issued(events: Sequence[Event], max_ttl_s: int) -> Iterator[str]:
    """Lifetimes, counted from the commit, and identifiers that are positions."""
    epoch = events[0]["epoch"] if events else ""
    deadlines = {event["task"]: event["deadline"] for event in events if event["type"] == "task.opened"}
    for event in events:
        if event["type"] != "issued":
            continue
        seq = event["seq"]
        if event["jti"] != f"grt_{epoch}_{seq}":
            yield f"3: the credential at {seq} is called {event['jti']}"
        latest = min(event["t"] + max_ttl_s * 1000, deadlines.get(event["task"], 1 << 62))
        if not event["iat"] * 1000 <= event["t"] or not event["iat"] < event["exp"] or event["exp"] * 1000 > latest:
            yield f"7: the credential at {seq} lives from {event['iat']} to {event['exp']}, longer than it may"


def _no_issue_after_kill(events: Sequence[Event], audiences: Mapping[str, str]) -> Iterator[str]:
    """No `issued` event at a position where a hold stands on what it is for, or under a task or key that is dead."""
    holds: dict[str, Event] = {}
    final: dict[tuple[str, str], int] = {}  # a dead task or key: nothing lifts that
    for event in events:
        if event["type"] == "killed":
            if "hold" in event:
                holds[event["hold"]] = event
            final |= {(kind, value): event["seq"] for kind, value in event["matches"] if kind in ("task", "key")}
        elif event["type"] == "hold.lifted":
            holds.pop(event["hold"], None)
        elif event["type"] in ("task.ended", "task.expired"):
            final |= {("task", task): event["seq"] for task in (event["task"], *event.get("children", ()))}
        elif event["type"] == "issued":
            yield from (
                f"1: issued at {event['seq']} although {hold} stands since {placed['seq']}"
                for hold, placed in holds.items()
                if _held(placed, event, audiences)
            )
            for key in (("task", event["task"]), ("key", event["kid"])):
                if key in final:
                    yield f"1: issued at {event['seq']} under the {key[0]} that ended at {final[key]}"


def _held(placed: Event, issued: Event, audiences: Mapping[str, str]) -> bool:
    by = {"agent": issued["agent"], "resource": audiences[issued["resource"]]}
    return any(kind == "all" or by.get(kind) == value for kind, value in placed["matches"])


def _delivered(events: Sequence[Event], transcript: Transcript, audiences: Mapping[str, str]) -> Iterator[str]:
    """Every token that left is the event at its position, member by member."""
    failed = {event["jti"] for event in events if event["type"] == "failed"}
    for token in transcript.tokens:
        claims = token.claims
        event = events[claims["seq"]] if 0 <= claims["seq"] < len(events) else {"type": "nothing"}
        if event["type"] != "issued" or event["jti"] != claims["jti"]:
            yield f"3: {claims['jti']} was delivered, and position {claims['seq']} holds {event['type']}"
            continue
        same = {
            "agent": claims["sub"] if claims["sub"] == claims["client_id"] else None,
            "task": claims["task"],
            "iat": claims["iat"],
            "exp": claims["exp"],
            "kid": token.header["kid"],
        }
        for name, value in same.items():
            if event[name] != value:
                yield f"3: {claims['jti']} was delivered with {name} {value}, and recorded with {event[name]}"
        details = claims.get("authorization_details") or []
        granted = {*claims.get("scope", "").split(), *(action for each in details for action in each["actions"])}
        if granted != set(event["actions"]) or claims["aud"] != audiences[event["resource"]]:
            yield f"7: {claims['jti']} opens {claims['aud']} for {sorted(granted)}, not what was decided"
        if any(each.get("parameters", {}) != event.get("parameters", {}) for each in details):
            yield f"7: {claims['jti']} carries other parameters than were decided"
        if "parameters" in event and not details:
            yield f"7: {claims['jti']} carries no parameters, and was granted with some"
        if claims["jti"] in failed:
            yield f"3: {claims['jti']} was delivered and is recorded as failed"
    for name, values in (
        ("credential", Counter(token.claims["jti"] for token in transcript.tokens)),
        ("assertion", Counter(token.assertion for token in transcript.tokens if token.assertion)),
    ):
        yield from (
            f"8: the {name} {value} was delivered {times} times" for value, times in values.items() if times > 1
        )


def _real_time(events: Sequence[Event], transcript: Transcript) -> Iterator[str]:
    """What was asked after a kill's answer had arrived stands behind that kill."""
    for killing in transcript.kills:
        if not 0 <= killing.position < len(events) or events[killing.position]["type"] != "killed":
            yield f"1: a kill was acknowledged at {killing.position}, where there is none"
    answered = sorted((killing.received, killing.position) for killing in transcript.kills)
    highest, index = -1, 0
    for token in sorted(transcript.tokens, key=lambda token: token.sent):
        while index < len(answered) and answered[index][0] < token.sent:
            highest, index = max(highest, answered[index][1]), index + 1
        if token.claims["seq"] < highest:
            yield f"1: {token.claims['jti']} was asked for after the kill at {highest} had been acknowledged"


def _introspected(events: Sequence[Event], transcript: Transcript) -> Iterator[str]:
    """Dead once the kill's answer had arrived; alive if nothing in the whole ledger covers it."""
    known = {token.claims["jti"]: token for token in transcript.tokens}
    acknowledged = {killing.position: killing.received for killing in transcript.kills}
    kills = list(kills_in(events))
    for each in transcript.introspections:
        token = known.get(each.jti)
        if token is None:
            continue
        killers = list(killers_of(kills, token.claims, token.header["kid"]))
        if each.active and any(acknowledged.get(position, each.received) < each.sent for position in killers):
            yield f"1: {each.jti} was alive after its kill had been acknowledged"
        if not each.active and not killers:
            yield f"1: {each.jti} was dead although nothing covers it"
