"""Credentials at a backend: the intent, what came of it, and their ending, confirmed.

The outside world is not in the transaction. So an intent is durable before a backend is asked for anything, what will
find the credential there is durable before it can exist, and what was made leaves only after a second commit has read
every guard again. Each grant has one row in `external_grants`, which says what is still to be done with it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from broker.ledger import Tx, make_id, parse_id
from broker.ledger.commands.guards import Stale
from broker.ledger.commands.issue import (
    UNHEARD,
    Asked,
    Refused,
    Stop,
    Verdict,
    check,
    deadline_of,
    lifetime,
    refuse,
    stopped,
    tell_task,
)
from broker.ledger.epochs import epoch_in
from broker.model import GrantState
from broker.wire import Match

EXPIRES_ONLY = "expires-only"

_ENDED = Stop("ended", "This grant was ended while its credential was being made; it was not handed out.")
_EXPIRED = Stop("expired", "Its time was over before the backend had made it; it was not handed out.")


@dataclass(frozen=True, slots=True)
class Begun:
    """A committed intent: everything that the issuer is told. Seconds, as in the answer."""

    seq: int
    jti: str
    task: str
    issuer: str
    iat: int
    exp: int
    decision_id: str
    deadline: int | None = None  # of its task
    kid: str = ""  # of the key that signs where the backend is shown a token of ours

    prepared: Mapping[str, str] | None = None  # what will find it, where that is on record with the intent

    def event(self) -> dict[str, Any]:
        """The members that all later events of this grant begin with."""
        return {"jti": self.jti, "task": self.task, "issuer": self.issuer}


def grant_event(tx: Tx, seq: int, task: str, issuer: str) -> dict[str, Any]:
    """The same members, for who has nothing but the grant's row."""
    return {"jti": make_id("grt", epoch_in(tx, seq), seq), "task": task, "issuer": issuer}


@dataclass(frozen=True, slots=True)
class Begin:
    """Commit the intent to issue one external credential, if every guard holds (step 8 of the pipeline).

    `ttl_ms` is the lifetime that request, agent and issuer allow, `min_ttl_ms` the shortest that the issuer can make.
    `settles_ms` bounds the calls that will make it: an intent without an outcome after that is taken for lost. What
    will find the credential goes on record with the intent, where it is `foreseen`.
    """

    asked: Asked
    verdict: Verdict
    audience: str
    issuer: str
    ending: str
    ttl_ms: int
    min_ttl_ms: int
    settles_ms: int
    foreseen: Callable[[Begun], Mapping[str, str] | None] = lambda _: None

    def apply(self, tx: Tx) -> Begun | Refused | Stale:
        asked = self.asked
        refused = self.verdict.stale(tx.head) or check(tx, asked)
        if refused is not None:
            return refused
        iat, exp = lifetime(tx, asked, self.ttl_ms)
        least = max(1, self.min_ttl_ms // 1000)
        if exp - iat < least:
            return refuse(tx, asked, "too_short", f"{exp - iat} s of life are left, and this takes {least} s at least.")
        return self._record(tx, iat, exp)

    def unheard(self, outcome: object) -> "Abandon | None":
        """See `broker.ledger.Command`: no backend was asked."""
        return Abandon(outcome, UNHEARD, happened=False) if isinstance(outcome, Begun) else None

    def _record(self, tx: Tx, iat: int, exp: int) -> Begun:
        asked, ask, seq = self.asked, self.asked.ask, tx.next_seq()
        assert ask is not None
        begun = Begun(
            seq=seq,
            jti=make_id("grt", tx.epoch, seq),
            task=asked.task or make_id("tsk", tx.epoch, seq),
            issuer=self.issuer,
            iat=iat,
            exp=exp,
            decision_id=make_id("dec", tx.epoch, seq),
            deadline=None if asked.task is None else deadline_of(tx, asked.task) // 1000,
            kid=tx.head.active_kid,
        )
        body = {**asked.body(), **self.verdict.body(), **begun.event(), "ending": self.ending, "iat": iat, "exp": exp}
        tx.append("issuing", body | ({"implicit": True} if asked.task is None else {}))
        settles = tx.now + self.settles_ms
        tx.put(
            "INSERT INTO external_grants (seq, task, agent, resource, audience, issuer, ending, state, expires,"
            " settles, next_try, over) VALUES (?, ?, ?, ?, ?, ?, ?, 'issuing', ?, ?, ?, ?)",
            (
                seq,
                begun.task,
                asked.agent,
                ask.resource,
                self.audience,
                self.issuer,
                self.ending,
                exp * 1000,
                settles,
                settles,
                int(asked.task is None),
            ),
        )
        tell_task(tx, asked, seq)
        handle = self.foreseen(begun)
        if handle is None:
            return begun
        _record_handle(tx, begun, asked, handle)
        return replace(begun, prepared=handle)


@dataclass(frozen=True, slots=True)
class Prepared:
    """Record what will find the credential, before the backend is asked to make it."""

    begun: Begun
    asked: Asked
    handle: Mapping[str, str]

    def apply(self, tx: Tx) -> Stop | None:
        """Why the backend must not be asked any more, or None."""
        stop = _standing_stop(tx, self.begun, self.asked)
        _record_handle(tx, self.begun, self.asked, self.handle)
        return stop


@dataclass(frozen=True, slots=True)
class Delivered:
    """The second commit succeeded: the credential may leave."""

    seq: int


@dataclass(frozen=True, slots=True)
class Deliver:
    """Record that the backend made it, if every guard still holds. Otherwise it is not handed out but revoked."""

    begun: Begun
    asked: Asked
    handle: Mapping[str, str]
    exp: int

    def apply(self, tx: Tx) -> Delivered | Stop:
        stop = _standing_stop(tx, self.begun, self.asked)
        if stop is not None:
            end_one(tx, self.begun.seq, self.begun.event(), stop.reason, handle=self.handle, settled=True)
            return stop
        handle = dict(self.handle)
        seq = tx.append("delivered", {**self.begun.event(), "handle": handle, "exp": self.exp})
        tell_task(tx, self.asked, seq)
        tx.put(
            "UPDATE external_grants SET state = 'live', handle = ?, expires = ?, settles = 0, next_try = ?"
            " WHERE seq = ?",
            (orjson.dumps(handle).decode(), self.exp * 1000, self.exp * 1000, self.begun.seq),
        )
        return Delivered(seq)

    def unheard(self, outcome: object) -> "Abandon | None":
        """See `broker.ledger.Command`: it was made, and not handed out."""
        return Abandon(self.begun, UNHEARD, happened=True) if isinstance(outcome, Delivered) else None


@dataclass(frozen=True, slots=True)
class Abandon:
    """Nothing was handed out. `happened` False: the backend certainly did nothing, so there is nothing to revoke.

    `settled`: no call of ours is on its way any more, so what the backend shows from now on is all there will be.
    """

    begun: Begun
    why: str
    happened: bool
    settled: bool = True
    handle: Mapping[str, str] | None = None

    def apply(self, tx: Tx) -> None:
        if self.happened or _state(tx, self.begun.seq) is not GrantState.ISSUING:
            end_one(tx, self.begun.seq, self.begun.event(), self.why, handle=self.handle, settled=self.settled)
            return
        seq = tx.append("failed", {"jti": self.begun.jti, "task": self.begun.task, "why": self.why})
        tx.put(
            "UPDATE external_grants SET state = 'failed', settles = 0, ended_seq = ?, gone = ?, gone_seq = ?,"
            " next_try = CASE WHEN over = 1 AND handle <> '{}' THEN CAST(? AS BIGINT) END WHERE seq = ?",
            (seq, tx.now, seq, tx.now, self.begun.seq),
        )


@dataclass(frozen=True, slots=True)
class GiveBack:
    """Its holder is done with the credential of this position. Doing it twice, or late, changes nothing."""

    seq: int
    actor: str

    def apply(self, tx: Tx) -> bool:
        """Whether it was live."""
        task, issuer, state = tx.execute(
            "SELECT task, issuer, state FROM external_grants WHERE seq = ?", (self.seq,)
        ).fetchone()
        live = GrantState(state) in (GrantState.ISSUING, GrantState.LIVE)
        if live:
            event = grant_event(tx, self.seq, task, issuer)
            end_one(tx, self.seq, event, "revoked by its holder", actor=self.actor)
        return live


@dataclass(frozen=True, slots=True)
class Interrupt:
    """Intents without an outcome are taken for done, and revoked: those whose time is over, or all (`at_start`)."""

    at_start: bool = False

    def apply(self, tx: Tx) -> int:
        """How many."""
        rows = tx.execute(
            "SELECT seq, task, issuer FROM external_grants WHERE state = 'issuing' AND (settles <= ? OR ? = 1)",
            (tx.now, int(self.at_start)),
        ).fetchall()
        for seq, task, issuer in rows:
            end_one(tx, seq, grant_event(tx, seq, task, issuer), "interrupted")
        if self.at_start:  # whatever another life of this process had taken in hand, or had put off
            tx.put("UPDATE external_grants SET next_try = ? WHERE state IN ('revoking', 'stuck')", (tx.now,))
        return len(rows)


def end_one(
    tx: Tx,
    grant: int,
    event: Mapping[str, Any],
    why: str,
    *,
    handle: Mapping[str, str] | None = None,
    settled: bool = False,
    actor: str | None = None,
) -> None:
    """From here on the grant of this position must be ended at its backend, whatever was thought of it before. `event`
    is what its events begin with.
    """
    body: dict[str, Any] = {**event, "why": why}
    if handle is not None:
        body["handle"] = dict(handle)
    if actor is not None:
        body["actor"] = actor
    seq = tx.append("revoking", body)
    tx.put(
        "UPDATE external_grants SET state = 'revoking', ended_seq = COALESCE(ended_seq, ?), gone = NULL,"
        " gone_seq = NULL, next_try = ?, settles = CASE WHEN ? = 1 THEN 0 ELSE settles END,"
        " handle = COALESCE(CAST(? AS TEXT), handle) WHERE seq = ?",
        (
            seq,
            tx.now,
            int(settled),
            None if handle is None else orjson.dumps(dict(handle)).decode(),
            grant,
        ),
    )
    tx.put(
        "INSERT INTO task_events (task, seq) SELECT id, ? FROM tasks WHERE id = ? ON CONFLICT DO NOTHING",
        (seq, event["task"]),
    )


def end_of_tasks(tx: Tx, tasks: Sequence[str], seq: int) -> None:
    """Everything under these tasks must end, and what was opened for them be closed."""
    for task in tasks:
        tx.put(
            "UPDATE external_grants SET over = 1, next_try = ?,"
            " ended_seq = CASE WHEN state IN ('issuing', 'live') THEN ? ELSE ended_seq END,"
            " state = CASE WHEN state IN ('issuing', 'live') THEN 'revoking' ELSE state END"
            " WHERE task = ? AND closed = 0",
            (tx.now, seq, task),
        )


def end_covered(tx: Tx, matches: Sequence[tuple[Match, str]], seq: int) -> None:
    """Everything that the kill at position `seq` covers must end. A signing key has nothing at any backend."""
    for kind, value in matches:
        if kind is Match.KEY:
            continue
        where, params = _COMPARED[kind], [value]
        if kind is Match.ALL:
            params = []
        elif kind is Match.GRANT:
            params = [str(parse_id(value).seq)]
        tx.put(
            "UPDATE external_grants SET state = 'revoking', ended_seq = ?, next_try = ?"  # noqa: S608  (constants)
            f" WHERE gone IS NULL AND state IN ('issuing', 'live') AND {where}",
            (seq, tx.now, *params),
        )


_COMPARED = {
    Match.ALL: "1 = 1",
    Match.AGENT: "agent = ?",
    Match.TASK: "task = ?",
    Match.GRANT: "seq = CAST(CAST(? AS TEXT) AS BIGINT)",
    Match.RESOURCE: "audience = ?",
}


def _record_handle(tx: Tx, begun: Begun, asked: Asked, handle: Mapping[str, str]) -> None:
    """What will find the credential, before it can exist."""
    seq = tx.append("prepared", {**begun.event(), "handle": dict(handle)})
    tell_task(tx, asked, seq)
    tx.put(
        "UPDATE external_grants SET handle = ? WHERE seq = ?",
        (orjson.dumps(dict(handle)).decode(), begun.seq),
    )


def _state(tx: Tx, seq: int) -> GrantState:
    return GrantState(tx.execute("SELECT state FROM external_grants WHERE seq = ?", (seq,)).fetchone()[0])


def _standing_stop(tx: Tx, begun: Begun, asked: Asked) -> Stop | None:
    """Every guard of the first commit, read again, and that the grant itself is still wanted."""
    stop = stopped(tx, asked)
    if stop is not None:
        return stop
    if _state(tx, begun.seq) is not GrantState.ISSUING:
        return _ENDED
    return _EXPIRED if begun.exp * 1000 <= tx.now else None
