"""Questions to the ledger's projections. Each function takes a `Reader`, a consistent snapshot, and returns values.

A parameter that may be absent is compared as `CAST(? AS TEXT) IS NULL`: PostgreSQL must be told its type.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from broker.ledger import Reader, make_id
from broker.ledger.epochs import grant_of_id
from broker.model import Task, TaskState
from broker.wire import FeedKill, KillMap, Match, compared

_TASK_COLUMNS = (
    "id, agent, state, opened_seq, opened, deadline, trigger, heartbeat_ms, last_heartbeat, parent, ended_seq, ended"
)


def task(r: Reader, task_id: str) -> Task | None:
    """An explicit task."""
    row = r.execute(f"SELECT {_TASK_COLUMNS} FROM tasks WHERE id = ?", (task_id,)).fetchone()  # noqa: S608  (constant)
    return _task(row) if row else None


def tasks(r: Reader, *, agent: str | None, state: TaskState | None, limit: int) -> list[Task]:
    """Explicit tasks, newest first."""
    rows = r.execute(
        f"SELECT {_TASK_COLUMNS} FROM tasks WHERE (CAST(? AS TEXT) IS NULL OR agent = ?)"  # noqa: S608
        " AND (CAST(? AS TEXT) IS NULL OR state = ?) ORDER BY opened_seq DESC LIMIT ?",
        (agent, agent, state, state, limit),
    )
    return [_task(row) for row in rows.fetchall()]


def _task(row: Sequence[Any]) -> Task:
    names = (
        "id",
        "agent",
        "state",
        "opened_seq",
        "opened",
        "deadline",
        "trigger",
        "heartbeat_ms",
        "last_heartbeat",
        "parent",
        "ended_seq",
        "ended",
    )
    values = dict(zip(names, row, strict=True))
    values["state"] = TaskState(values["state"])
    return Task(**values)


def open_tasks_by_agent(r: Reader) -> dict[str, int]:
    """How many active tasks each agent has."""
    return dict(r.execute("SELECT agent, count(*) FROM tasks WHERE state = 'active' GROUP BY agent").fetchall())


def tasks_are_due(r: Reader, now: int) -> bool:
    """Whether an active task has passed its deadline or missed a heartbeat."""
    return r.execute("SELECT 1 FROM tasks WHERE state = 'active' AND due <= ? LIMIT 1", (now,)).fetchone() is not None


def floor_can_rise(r: Reader, now: int) -> bool:
    """Whether the oldest token above the floor has expired."""
    oldest = r.execute("SELECT expires FROM grants WHERE seq >= ? ORDER BY seq LIMIT 1", (r.head().floor,)).fetchone()
    return oldest is not None and oldest[0] <= now


def task_story(r: Reader, task_id: str) -> list[int]:
    """Positions of the events that concern an explicit task, in order."""
    return [
        row[0] for row in r.execute("SELECT seq FROM task_events WHERE task = ? ORDER BY seq", (task_id,)).fetchall()
    ]


def text(r: Reader, ref: str) -> str | None:
    """A personal text, or None when there is none or it was erased."""
    row = r.execute("SELECT text FROM texts WHERE ref = ?", (ref,)).fetchone()
    return row[0] if row else None


# --- Kills and holds --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KillRow:
    """A kill or a task's ending, as committed."""

    seq: int
    id: str
    target: str
    value: str
    at: int
    actor: str
    reason: str
    hold: str | None
    tasks: int
    floor: int


@dataclass(frozen=True, slots=True)
class Expected:
    """A verifier instance that was in contact at the kill, and when it acknowledged."""

    instance: str
    verifier: str
    mode: str
    bound_ms: int
    leeway_ms: int
    acked_ms: int | None
    acked_seq: int | None


@dataclass(frozen=True, slots=True)
class HoldRow:
    """A standing hold."""

    id: str
    target: str
    value: str
    placed_seq: int
    placed: int
    actor: str
    reason: str


_KILL_COLUMNS = "seq, id, target, value, at, actor, reason, hold, tasks, floor"


def kill(r: Reader, kill_id: str) -> KillRow | None:
    """One kill by its id."""
    row = r.execute(f"SELECT {_KILL_COLUMNS} FROM kills WHERE id = ?", (kill_id,)).fetchone()  # noqa: S608  (constant)
    return KillRow(*row) if row else None


def kills(r: Reader, *, limit: int) -> list[KillRow]:
    """Kills by operators and clients, newest first; the endings of tasks are not among them."""
    rows = r.execute(
        f"SELECT {_KILL_COLUMNS} FROM kills WHERE id LIKE 'kil%' ORDER BY seq DESC LIMIT ?",  # noqa: S608  (constant)
        (limit,),
    )
    return [KillRow(*row) for row in rows.fetchall()]


def kill_matches(r: Reader, seq: int) -> tuple[tuple[Match, str], ...]:
    """What the kill at this position compares with tokens."""
    rows = r.execute("SELECT kind, value FROM kill_matches WHERE seq = ? ORDER BY kind, value", (seq,))
    return tuple((Match(kind), value) for kind, value in rows.fetchall())


def expected(r: Reader, seq: int) -> list[Expected]:
    """Whom the kill at this position expects to acknowledge it."""
    rows = r.execute(
        "SELECT instance, verifier, mode, bound_ms, leeway_ms, acked_ms, acked_seq FROM kill_expected WHERE seq = ?"
        " ORDER BY verifier, instance",
        (seq,),
    )
    return [Expected(*row) for row in rows.fetchall()]


def unacknowledged(r: Reader, instance: str, position: int) -> list[tuple[int, int]]:
    """(position, commit time) of the kills up to `position` that this instance has yet to acknowledge."""
    rows = r.execute(
        "SELECT k.seq, k.at FROM kill_expected e JOIN kills k ON k.seq = e.seq"
        " WHERE e.instance = ? AND e.acked_ms IS NULL AND e.seq <= ?",
        (instance, position),
    )
    return [(seq, at) for seq, at in rows.fetchall()]


def feed(r: Reader, *, after: int, floor: int | None = None) -> list[FeedKill]:
    """The kills above `after` that can still matter: above the floor, or of a signing key, which never expires.

    `floor` looks back: it is the ledger's own unless an earlier one is given.
    """
    floor = r.head().floor if floor is None else floor
    rows = r.execute(
        "SELECT k.id, k.seq, m.kind, m.value FROM kills k JOIN kill_matches m ON m.seq = k.seq"
        " WHERE k.seq > ? AND (k.seq > ? OR m.kind = 'key') ORDER BY k.seq",
        (after, floor),
    )
    gathered: dict[int, tuple[str, list[tuple[Match, str]]]] = {}
    for kill_id, seq, kind, value in rows.fetchall():
        gathered.setdefault(seq, (kill_id, []))[1].append((Match(kind), value))
    return [FeedKill(id=kill_id, seq=seq, matches=tuple(matches)) for seq, (kill_id, matches) in gathered.items()]


def kill_times(r: Reader, *, after: int) -> dict[int, int]:
    """Position -> ledger time of the kills above `after` that somebody is expected to acknowledge."""
    rows = r.execute("SELECT seq, at FROM kills WHERE seq > ? AND seq IN (SELECT seq FROM kill_expected)", (after,))
    return dict(rows.fetchall())


def kill_map(r: Reader, *, before: "KillRow | None" = None) -> KillMap:
    """All kills in force, now or just before an earlier kill, by the same rule that verifiers apply."""
    found = KillMap()
    for each in feed(r, after=-1, floor=before.floor if before else None):
        if before is None or each.seq < before.seq:
            found.apply(each)
    return found


def kill_of(r: Reader, claims: Mapping[str, Any], kid: str) -> KillRow | None:
    """The first kill, however old, that covers a credential with these claims."""
    found = [
        r.execute(
            "SELECT min(seq) FROM kill_matches WHERE kind = ? AND value = ? AND seq > ?",
            (kind.value, value, -1 if kind is Match.KEY else claims["seq"]),
        ).fetchone()[0]
        for kind, value in compared(claims, kid)
    ]
    first = min((seq for seq in found if seq is not None), default=None)
    if first is None:
        return None
    row = r.execute(f"SELECT {_KILL_COLUMNS} FROM kills WHERE seq = ?", (first,)).fetchone()  # noqa: S608  (constant)
    return KillRow(*row)


def holds(r: Reader) -> list[HoldRow]:
    """Standing holds, oldest first."""
    rows = r.execute(
        "SELECT id, target, value, placed_seq, placed, actor, reason FROM holds WHERE lifted_seq IS NULL"
        " ORDER BY placed_seq"
    )
    return [HoldRow(*row) for row in rows.fetchall()]


def hold(r: Reader, hold_id: str) -> HoldRow | None:
    """One hold, standing or lifted."""
    row = r.execute(
        "SELECT id, target, value, placed_seq, placed, actor, reason FROM holds WHERE id = ?", (hold_id,)
    ).fetchone()
    return HoldRow(*row) if row else None


# --- Grants -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GrantRow:
    """One credential as committed."""

    seq: int
    task: str
    agent: str
    resource: str
    audience: str
    kid: str
    expires: int


_GRANT_COLUMNS = "seq, task, agent, resource, audience, kid, expires"


def grant(r: Reader, seq: int) -> GrantRow | None:
    """The credential issued at a position."""
    row = r.execute(f"SELECT {_GRANT_COLUMNS} FROM grants WHERE seq = ?", (seq,)).fetchone()  # noqa: S608  (constant)
    return GrantRow(*row) if row else None


def grant_by_id(r: Reader, text: str) -> GrantRow | None:
    """The credential that an id names: a grant's own, or its implicit task's."""
    return grant_of_id(r, text, grant)


@dataclass(frozen=True, slots=True)
class LiveCount:
    """How many live credentials of one agent open one resource, and when the last of them expires."""

    agent: str
    resource: str
    audience: str
    count: int
    latest_expiry: int


def live_counts(r: Reader, matches: Sequence[tuple[Match, str]], *, at_kill: KillRow | None = None) -> list[LiveCount]:
    """The live credentials that `matches` covers: unexpired by ledger time and not covered by an earlier kill; now, or
    as it was when a kill was committed. One pass over what is unexpired, inside the store.
    """
    head = r.head()
    floor, at, below = (at_kill.floor, at_kill.at, at_kill.seq) if at_kill else (head.floor, head.time, head.size)
    by_kind: dict[Match, list[str]] = {}
    for kind, value in matches:
        by_kind.setdefault(kind, []).append(value)
    prefix = make_id("grt", head.epoch, 0)[:-1]
    covers: list[str] = []
    params: list[str] = []
    for kind, values in by_kind.items():
        covers.append(f"{_COMPARED[kind]} IN ({', '.join('?' * len(values))})")
        params += [prefix, *values] if kind is Match.GRANT else values
    earlier = r.execute(
        "SELECT DISTINCT kind FROM kill_matches WHERE (seq > ? OR kind = 'key') AND seq < ?", (floor, below)
    )
    spared: list[str] = []
    spared_params: list[str | int] = []
    for (name,) in earlier.fetchall():
        newer = "" if name == Match.KEY else " AND m.seq > g.seq"
        compared = _COMPARED[Match(name)]
        spared.append(
            "NOT EXISTS (SELECT 1 FROM kill_matches m"  # noqa: S608  (constants)
            f" WHERE m.kind = ? AND m.value = {compared} AND m.seq < ?{newer})"
        )
        spared_params += [name, *([prefix] if Match(name) is Match.GRANT else []), below]
    where = " AND ".join(["g.seq >= ? AND g.seq < ? AND g.expires > ?", f"({' OR '.join(covers)})", *spared])
    rows = r.execute(
        "SELECT g.agent, g.resource, g.audience, count(*), max(g.expires) FROM grants g"  # noqa: S608  (constants)
        f" WHERE {where} GROUP BY g.agent, g.resource, g.audience ORDER BY g.agent, g.resource",
        (floor, below, at, *params, *spared_params),
    )
    return [LiveCount(*row) for row in rows.fetchall()]


_COMPARED = {
    Match.ALL: "''",
    Match.AGENT: "g.agent",
    Match.TASK: "g.task",
    Match.GRANT: "(CAST(? AS TEXT) || CAST(g.seq AS TEXT))",
    Match.RESOURCE: "g.audience",
    Match.KEY: "g.kid",
}
"""What each kind of match compares with, in a row of `grants`; for a grant, its id made of prefix and position."""


# --- Approvals, keys, instances ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ApprovalRow:
    """A request that waits, or waited, for a human."""

    id: str
    digest: str
    agent: str
    task: str | None
    state: str
    requested_seq: int
    requested: int
    expires: int
    request: dict[str, Any]
    gates: list[dict[str, Any]]


def approvals(
    r: Reader, *, approval_id: str | None = None, agent: str | None = None, limit: int = 100
) -> list[ApprovalRow]:
    """Approvals, newest first; all of them, one, or one agent's."""
    rows = r.execute(
        "SELECT id, digest, agent, task, state, requested_seq, requested, expires, request, gates FROM approvals"
        " WHERE (CAST(? AS TEXT) IS NULL OR id = ?) AND (CAST(? AS TEXT) IS NULL OR agent = ?)"
        " ORDER BY requested_seq DESC LIMIT ?",
        (approval_id, approval_id, agent, agent, limit),
    )
    return [_approval(*row) for row in rows.fetchall()]


def _approval(*row: Any) -> ApprovalRow:  # noqa: ANN401  (columns in the order of the fields)
    *plain, request, gates = row
    return ApprovalRow(*plain, request=orjson.loads(request), gates=orjson.loads(gates))  # type: ignore[misc]


@dataclass(frozen=True, slots=True)
class KeyRow:
    """A signing key: public JWK in clear, private part sealed."""

    kid: str
    purpose: str
    state: str
    jwk: dict[str, Any]
    sealed: bytes
    published: int
    activated: int | None
    retired: int | None


def keys(r: Reader, *, purpose: str | None = None) -> list[KeyRow]:
    """Signing keys, oldest first."""
    rows = r.execute(
        "SELECT kid, purpose, state, jwk, sealed, published, activated, retired FROM keys"
        " WHERE (CAST(? AS TEXT) IS NULL OR purpose = ?) ORDER BY published, kid",
        (purpose, purpose),
    )
    return [KeyRow(row[0], row[1], row[2], orjson.loads(row[3]), *row[4:]) for row in rows.fetchall()]


@dataclass(frozen=True, slots=True)
class InstanceRow:
    """A verifier process, as last seen."""

    instance: str
    verifier: str
    audiences: list[str]
    mode: str
    bound_ms: int
    leeway_ms: int
    last_contact: int
    position: int


def instances(r: Reader, *, since: int) -> list[InstanceRow]:
    """Verifier instances in contact since a time."""
    rows = r.execute(
        "SELECT instance, verifier, audiences, mode, bound_ms, leeway_ms, last_contact, position FROM instances"
        " WHERE last_contact >= ? ORDER BY verifier, instance",
        (since,),
    )
    return [InstanceRow(row[0], row[1], orjson.loads(row[2]), *row[3:]) for row in rows.fetchall()]


def stamps(r: Reader, *, since: int) -> dict[str, int]:
    """The last stamp of each instance in contact since a time, as far as it was written."""
    return dict(r.execute("SELECT instance, stamp FROM instances WHERE last_contact >= ?", (since,)).fetchall())


def verifier_of(r: Reader, instance: str) -> str | None:
    """The verifier that an instance is of; None for an unknown one."""
    row = r.execute("SELECT verifier FROM instances WHERE instance = ?", (instance,)).fetchone()
    return row[0] if row else None


def bundle(r: Reader, digest: str) -> bytes | None:
    """The content of a registry or policy bundle that was once in force."""
    row = r.execute("SELECT content FROM bundles WHERE hash = ?", (digest,)).fetchone()
    return row[0] if row else None
