"""The broker's own events: what it loaded, its keys, sessions and verifier instances, and the junk it turned away."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from broker.ledger import Command, Tx, make_id
from broker.ledger.commands.guards import holding
from broker.ledger.commands.issue import refuse_call
from broker.ledger.commands.replay import REPLAYED, mark_of, spend
from broker.model import Proof, Selector, Target

LISTED_CHANGES = 1_000
"""How many changes a reload's event lists; the rest is a count. The content itself is kept whole, by its hash."""

LISTED_PROBLEMS, _LONGEST_PROBLEM = 50, 500


@dataclass(frozen=True, slots=True)
class LoadBundle:
    """Put a registry or a policy bundle in force for every process on this ledger. Its content is kept, by hash."""

    kind: str  # registry | policies
    hash: str
    content: bytes
    diff: Sequence[Mapping[str, Any]]
    actor: str
    reason: str | None = None

    def apply(self, tx: Tx) -> int | None:
        """The event's position; None when this bundle is in force already."""
        head = tx.head
        if self.hash == (head.registry_hash if self.kind == "registry" else head.policy_hash):
            return None
        tx.execute(
            "INSERT INTO bundles (hash, kind, content) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
            (self.hash, self.kind, self.content),
        )
        if self.kind == "registry":
            head.registry_hash = self.hash
        else:
            head.policy_hash = self.hash
        head.guard_version += 1
        body: dict[str, Any] = {"hash": self.hash, "diff": list(self.diff[:LISTED_CHANGES]), "actor": self.actor}
        if len(self.diff) > LISTED_CHANGES:
            body["more"] = len(self.diff) - LISTED_CHANGES
        if self.reason is not None:
            body["reason"] = self.reason
        return tx.append(f"{self.kind}.loaded", body)


@dataclass(frozen=True, slots=True)
class Together:
    """Several commands as one: all of them apply, or none does."""

    commands: Sequence[Command]

    def apply(self, tx: Tx) -> list[Any]:
        return [command.apply(tx) for command in self.commands]


@dataclass(frozen=True, slots=True)
class RefuseReload:
    """A reload that did not load: the last good bundle stays in force, and everyone can see why."""

    kind: str
    problems: Sequence[str]
    actor: str

    def apply(self, tx: Tx) -> int:
        problems = [problem[:_LONGEST_PROBLEM] for problem in self.problems[:LISTED_PROBLEMS]]
        return tx.append("reload.failed", {"what": self.kind, "problems": problems, "actor": self.actor})


@dataclass(frozen=True, slots=True)
class StopIssuance:
    """Stop or (with None) restart issuance for every process on this ledger: the registry on disk does not load."""

    why: str | None

    def apply(self, tx: Tx) -> int | None:
        if (tx.head.issuance_stopped or None) == self.why:
            return None
        tx.head.issuance_stopped = self.why or ""
        tx.head.guard_version += 1
        alarm = "issuance_stopped" if self.why else "issuance_restarted"
        return tx.append("alarm", {"alarm": alarm, "sentence": self.why or "The registry loads again."})


@dataclass(frozen=True, slots=True)
class Started:
    """A broker process began to serve."""

    role: str
    version: str
    file: str | None = None  # the ledger's file, by its number

    def apply(self, tx: Tx) -> int:
        file = {} if self.file is None else {"file": self.file}
        return tx.append("broker.started", {"role": self.role, "version": self.version, **file})


@dataclass(frozen=True, slots=True)
class NewKey:
    """A freshly made signing key: its public JWK and its sealed private part."""

    kid: str
    purpose: str
    jwk: Mapping[str, Any]
    sealed: bytes


IN_TRANSIT: Final = b"taskpass:signs-in-transit:1\n"
"""What the sealed part of a key begins with that stays in a vault, and signs there. Its name there follows."""


@dataclass(frozen=True, slots=True)
class Resealed:
    """A signing key's private part, sealed under another key than before."""

    kid: str
    before: bytes
    after: bytes


@dataclass(frozen=True, slots=True)
class ResealKeys:
    """Replace sealed private parts. What another has sealed anew meanwhile is left as it is."""

    keys: Sequence[Resealed]
    seal: str  # key | transit
    actor: str

    def apply(self, tx: Tx) -> list[str]:
        """The kids that were changed."""
        changed = []
        for key in self.keys:
            done = tx.execute(
                "UPDATE keys SET sealed = ? WHERE kid = ? AND sealed = ?", (key.after, key.kid, key.before)
            )
            if done.rowcount:
                changed.append(key.kid)
        if changed:
            tx.append("keys.resealed", {"kids": changed, "seal": self.seal, "actor": self.actor})
        return changed


@dataclass(frozen=True, slots=True)
class FirstKeys:
    """Publish and activate the given keys, for each purpose that has none. On a new ledger nobody has cached a set."""

    keys: Sequence[NewKey]

    def apply(self, tx: Tx) -> list[str]:
        """The kids that were activated."""
        activated = []
        for key in self.keys:
            if tx.execute("SELECT 1 FROM keys WHERE purpose = ?", (key.purpose,)).fetchone() is None:
                publish(tx, key)
                activate(tx, key.kid, key.purpose, "taskpass", "first key")
                activated.append(key.kid)
        return activated


@dataclass(frozen=True, slots=True)
class RotateKeys:
    """Activate the published next key, retire the active one, and publish another."""

    purpose: str
    upcoming: NewKey
    actor: str
    reason: str
    if_active: str | None = None  # only while this one is active, so that two processes rotate once

    def apply(self, tx: Tx) -> str | None:
        """The kid that is active now; None when there is no next key, or another process has rotated already."""
        states = dict(tx.execute("SELECT state, kid FROM keys WHERE purpose = ?", (self.purpose,)).fetchall())
        active, successor = states.get("active"), states.get("next")
        if successor is None or (self.if_active is not None and active != self.if_active):
            return None
        if active is not None:
            tx.execute("UPDATE keys SET state = 'retired', retired = ? WHERE kid = ?", (tx.now, active))
            body = {"kid": active, "purpose": self.purpose, "actor": self.actor, "reason": self.reason}
            tx.append("key.retired", body)
        activate(tx, successor, self.purpose, self.actor, self.reason)
        publish(tx, self.upcoming)
        return str(successor)


@dataclass(frozen=True, slots=True)
class PublishNextKey:
    """Publish a next key where none waits, as after a kill of the active one."""

    key: NewKey

    def apply(self, tx: Tx) -> bool:
        if tx.execute("SELECT 1 FROM keys WHERE purpose = ? AND state = 'next'", (self.key.purpose,)).fetchone():
            return False
        publish(tx, self.key)
        return True


def activate(tx: Tx, kid: str, purpose: str, actor: str, reason: str) -> None:
    """From here on new credentials of this purpose are signed with this key."""
    tx.execute("UPDATE keys SET state = 'active', activated = ? WHERE kid = ?", (tx.now, kid))
    tx.append("key.activated", {"kid": kid, "purpose": purpose, "actor": actor, "reason": reason})
    if purpose == "token":
        tx.head.active_kid = kid


def publish(tx: Tx, key: NewKey) -> None:
    """Add a key that verifiers learn of before it is used."""
    tx.execute(
        "INSERT INTO keys (kid, purpose, state, jwk, sealed, published) VALUES (?, ?, 'next', ?, ?, ?)",
        (key.kid, key.purpose, orjson.dumps(dict(key.jwk)).decode(), key.sealed, tx.now),
    )
    tx.append("key.published", {"kid": key.kid, "purpose": key.purpose, "jwk": dict(key.jwk)})


@dataclass(frozen=True, slots=True)
class SessionOpened:
    """A committed session: what its token must say."""

    seq: int
    opened: int
    expires: int


@dataclass(frozen=True, slots=True)
class SessionRefused:
    """Why there is no session."""

    reason: str
    sentence: str
    decision_id: str


@dataclass(frozen=True, slots=True)
class OpenSession:
    """Open a short session for a caller who proved an identity: a credential whose audience is the broker itself."""

    kind: str  # agent | verifier | operator
    id: str
    owner: str | None
    proof: Proof | None
    ttl_ms: int

    def apply(self, tx: Tx) -> SessionOpened | SessionRefused:
        body: dict[str, Any] = {"caller": [self.kind, self.id]}
        if self.proof is not None:
            body["proof"] = mark_of(self.proof).hex()
        if not spend(tx, self.proof):
            return self._refuse(tx, body, "replayed", REPLAYED)
        if self.kind == "agent":
            held = holding(tx, [Selector(Target.AGENT, self.id), Selector(Target.OWNER, self.owner or "")])
            if held is not None:
                return self._refuse(tx, body, "held", f"{held[0]} is on hold ({held[1]}).")
        expires = tx.now + self.ttl_ms
        seq = tx.append("session.opened", {**body, "expires": expires})
        return SessionOpened(seq, tx.now, expires)

    @staticmethod
    def _refuse(tx: Tx, body: dict[str, Any], reason: str, sentence: str) -> SessionRefused:
        seq = tx.append("refused", {**body, "reason": reason, "route": "/v1/sessions"})
        return SessionRefused(reason, sentence, make_id("dec", tx.epoch, seq))


@dataclass(frozen=True, slots=True)
class RegisterInstance:
    """A verifier process connected to the feed: whom a kill from now on expects an acknowledgement of."""

    instance: str
    verifier: str
    audiences: Sequence[str]
    mode: str
    bound_ms: int
    leeway_ms: int
    position: int
    proof: Proof | None = None
    session_ttl_ms: int = 900_000

    def apply(self, tx: Tx) -> SessionOpened | SessionRefused:
        """The session for its acknowledgements; refused when the proof was spent, or the id is another verifier's."""
        if not spend(tx, self.proof):
            return self._refuse(tx, "replayed", REPLAYED)
        known = tx.execute("SELECT verifier FROM instances WHERE instance = ?", (self.instance,)).fetchone()
        if known is not None and known[0] != self.verifier:
            return self._refuse(tx, "instance_taken", "This instance id is another verifier's; make a random one.")
        body: dict[str, Any] = {"verifier": self.verifier, "instance": self.instance}
        if self.proof is not None:
            body["proof"] = mark_of(self.proof).hex()
        body |= {
            "audiences": list(self.audiences),
            "mode": self.mode,
            "bound_ms": self.bound_ms,
            "leeway_ms": self.leeway_ms,
        }
        seq = tx.append("verifier.registered", body)
        tx.execute(
            "INSERT INTO instances"
            " (instance, verifier, audiences, mode, bound_ms, leeway_ms, registered_seq, last_contact, position)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (instance) DO UPDATE SET audiences = excluded.audiences,"
            " mode = excluded.mode, bound_ms = excluded.bound_ms, leeway_ms = excluded.leeway_ms,"
            " last_contact = excluded.last_contact",
            (
                self.instance,
                self.verifier,
                orjson.dumps(list(self.audiences)).decode(),
                self.mode,
                self.bound_ms,
                self.leeway_ms,
                seq,
                tx.now,
                self.position,
            ),
        )
        return SessionOpened(seq, tx.now, tx.now + self.session_ttl_ms)

    def _refuse(self, tx: Tx, reason: str, sentence: str) -> SessionRefused:
        decision = refuse_call(tx, ("verifier", self.verifier), self.proof, "/v1/revocations/stream", reason)
        return SessionRefused(reason, sentence, decision)


@dataclass(frozen=True, slots=True)
class TouchInstances:
    """Coalesced last-seen columns of instances, outside the tree: (instance, position applied, its last stamp)."""

    seen: Sequence[tuple[str, int, int]]

    def apply(self, tx: Tx) -> None:
        for instance, position, stamp in self.seen:
            tx.put(
                "UPDATE instances SET last_contact = ?, position = CASE WHEN position < ? THEN ? ELSE position END,"
                " stamp = CASE WHEN stamp < ? THEN ? ELSE stamp END WHERE instance = ?",
                (tx.now, position, position, stamp, stamp, instance),
            )


@dataclass(frozen=True, slots=True)
class CountRefusals:
    """Refusals before authentication, counted per reason and interval."""

    counts: Mapping[str, int]
    since: int

    def apply(self, tx: Tx) -> int:
        return tx.append("refusals", {"since": self.since, "counts": dict(sorted(self.counts.items()))})


@dataclass(frozen=True, slots=True)
class RaiseFloor:
    """Raise the floor: every token with a lower position has expired by ledger time."""

    def apply(self, tx: Tx) -> int:
        oldest_live = tx.execute(
            "SELECT seq FROM grants WHERE seq >= ? AND expires > ? ORDER BY seq LIMIT 1", (tx.head.floor, tx.now)
        ).fetchone()
        tx.head.floor = max(tx.head.floor, oldest_live[0] if oldest_live else tx.next_seq())
        return tx.head.floor
