"""Questions about credentials at backends. Each function takes a `Reader`, a consistent snapshot; it returns values."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from broker.ledger import Reader, parse_id
from broker.ledger.epochs import grant_of_id
from broker.ledger.events import parse
from broker.ledger.views import KillRow
from broker.model import GrantState
from broker.wire import Match

_COLUMNS = (
    "seq, task, agent, resource, audience, issuer, ending, state, handle, expires, ended_seq, tries, gone_seq, gone,"
    " note, problem"
)


@dataclass(frozen=True, slots=True)
class ExternalRow:
    """One credential at a backend, as the ledger knows it."""

    seq: int
    task: str
    agent: str
    resource: str
    audience: str
    issuer: str
    ending: str
    state: GrantState
    handle: Mapping[str, str]
    expires: int
    ended_seq: int | None
    tries: int
    gone_seq: int | None
    gone: int | None
    note: str | None
    problem: str | None

    @classmethod
    def of(cls, row: Sequence[object]) -> "ExternalRow":
        """From the columns in their order."""
        values = dict(zip(cls.__dataclass_fields__, row, strict=True))
        values["state"] = GrantState(str(values["state"]))
        values["handle"] = orjson.loads(str(values["handle"]))
        return cls(**values)  # type: ignore[arg-type]


def external_grant(r: Reader, seq: int) -> ExternalRow | None:
    """The one whose intent is at this position."""
    row = r.execute(f"SELECT {_COLUMNS} FROM external_grants WHERE seq = ?", (seq,)).fetchone()  # noqa: S608
    return ExternalRow.of(row) if row else None


def external_grant_by_id(r: Reader, text: str) -> ExternalRow | None:
    """The one that an id names: a grant's own, or its implicit task's."""
    return grant_of_id(r, text, external_grant)


@dataclass(frozen=True, slots=True)
class Origin:
    """What was asked for a grant, as its `issuing` event says, and how long it was to live at first."""

    jti: str
    actions: Sequence[str]
    parameters: Mapping[str, Any]
    implicit: bool
    life_s: int


def origin_of(r: Reader, seq: int) -> Origin:
    """Of the grant whose intent is at this position: its event is not archived while it may be at its backend."""
    (data,) = r.execute("SELECT bytes FROM events WHERE seq = ?", (seq,)).fetchone()
    body = parse(bytes(data)).body
    implicit = body.get("implicit", False)
    return Origin(body["jti"], body["actions"], body.get("parameters", {}), implicit, body["exp"] - body["iat"])


@dataclass(frozen=True, slots=True)
class ExternalCount:
    """How many external grants are alike, and when the last of them expires by itself."""

    issuer: str
    ending: str
    state: GrantState
    gone: bool
    count: int
    latest_expiry: int


@dataclass(frozen=True, slots=True)
class External:
    """External grants, counted inside the store; a few of those that are stuck, and what backends said, in full."""

    counts: tuple[ExternalCount, ...]
    stuck: tuple[ExternalRow, ...]
    notes: tuple[str, ...]
    counted_from: int = 0  # those whose intent has a lower position were gone before it was archived, rows and all

    @property
    def total(self) -> int:
        """How many were made."""
        return sum(each.count for each in self.counts)


def external_of_task(r: Reader, task: str) -> External:
    """All that were ever made under a task."""
    return _external(r, "task = ?", (task,))


def external_covered(r: Reader, matches: Sequence[tuple[Match, str]], *, at_kill: KillRow | None = None) -> External:
    """What `matches` covers and was not known to be gone: now, or when a kill was committed."""
    below = at_kill.seq if at_kill else r.head().size
    covers: list[str] = []
    params: list[str | int] = []
    for kind, value in matches:
        if kind is not Match.KEY:
            covers.append(_COMPARED[kind])
            params += [] if kind is Match.ALL else [parse_id(value).seq if kind is Match.GRANT else value]
    if not covers:
        return External((), (), ())
    where = f"seq < ? AND (gone IS NULL OR gone_seq > ?) AND ({' OR '.join(covers)})"
    return replace(_external(r, where, (below, below, *params)), counted_from=r.head().archived)


def _external(r: Reader, where: str, params: Sequence[str | int]) -> External:
    counts = r.execute(
        "SELECT issuer, ending, state, CASE WHEN gone IS NULL THEN 0 ELSE 1 END AS away, count(*), max(expires)"  # noqa: S608
        f" FROM external_grants WHERE state <> 'failed' AND {where} GROUP BY issuer, ending, state, away",
        params,
    ).fetchall()
    stuck = r.execute(
        f"SELECT {_COLUMNS} FROM external_grants WHERE state = 'stuck' AND {where} ORDER BY seq LIMIT ?",  # noqa: S608
        (*params, SHOWN),
    ).fetchall()
    notes = r.execute(
        f"SELECT DISTINCT note FROM external_grants WHERE note IS NOT NULL AND {where} ORDER BY note LIMIT ?",  # noqa: S608
        (*params, SHOWN),
    ).fetchall()
    return External(
        tuple(
            ExternalCount(issuer, ending, GrantState(state), gone == 1, count, latest)
            for issuer, ending, state, gone, count, latest in counts
        ),
        tuple(ExternalRow.of(row) for row in stuck),
        tuple(row[0] for row in notes),
    )


def stuck_grants(r: Reader) -> list[ExternalRow]:
    """A few of all that are stuck, the oldest first."""
    rows = r.execute(
        f"SELECT {_COLUMNS} FROM external_grants WHERE gone IS NULL AND state = 'stuck' ORDER BY seq LIMIT ?",  # noqa: S608
        (SHOWN,),
    )
    return [ExternalRow.of(row) for row in rows.fetchall()]


SHOWN = 20
"""How many stuck grants, and notes, a receipt shows in full; it counts all of them."""

_COMPARED = {
    Match.ALL: "1 = 1",
    Match.AGENT: "agent = ?",
    Match.TASK: "task = ?",
    Match.GRANT: "seq = ?",
    Match.RESOURCE: "audience = ?",
}


def due_issuers(r: Reader, now: int) -> list[str]:
    """The issuers that have something to end, or to look at, now."""
    rows = r.execute(
        "SELECT DISTINCT issuer FROM external_grants WHERE next_try IS NOT NULL AND next_try <= ?"
        " AND state <> 'issuing'",
        (now,),
    )
    return [row[0] for row in rows.fetchall()]


def due_grants(r: Reader, issuer: str, now: int, *, limit: int) -> list[tuple[int, dict[str, str]]]:
    """(position, handle) of what is due of one issuer, the longest first."""
    rows = r.execute(
        "SELECT seq, handle FROM external_grants WHERE issuer = ? AND next_try IS NOT NULL AND next_try <= ?"
        " AND state <> 'issuing' ORDER BY next_try LIMIT ?",
        (issuer, now, limit),
    )
    return [(seq, orjson.loads(handle)) for seq, handle in rows.fetchall()]


def intents_are_lost(r: Reader, now: int) -> bool:
    """Whether an intent has had no outcome for longer than its calls can take."""
    found = r.execute(
        "SELECT 1 FROM external_grants WHERE next_try <= ? AND state = 'issuing' AND settles <= ? LIMIT 1", (now, now)
    ).fetchone()
    return found is not None


def recorded_handles(r: Reader, issuer: str) -> Iterator[Mapping[str, str]]:
    """The handles of everything at this issuer's backend that the ledger does not know to be gone and closed."""
    rows = r.execute(
        "SELECT handle FROM external_grants WHERE issuer = ? AND (gone IS NULL OR closed = 0)", (issuer,)
    ).fetchall()
    for (handle,) in rows:
        yield orjson.loads(handle)


def external_figures(r: Reader) -> dict[tuple[str, str], int]:
    """(issuer, state) -> how many: those that may be at the backend."""
    rows = r.execute(
        "SELECT issuer, state, count(*) FROM external_grants WHERE gone IS NULL GROUP BY issuer, state"
    ).fetchall()
    return Counter({(issuer, state): count for issuer, state, count in rows})
