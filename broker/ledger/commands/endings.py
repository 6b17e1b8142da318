"""How a credential at a backend ends: taken in hand, tried, looked at, and only then called gone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from broker.ledger import Tx
from broker.ledger.commands.credentials import EXPIRES_ONLY, grant_event
from broker.model import GrantState

CLAIM_MS = 60_000
"""How long a process has a grant in hand: after that another one may try, which does no harm."""


@dataclass(frozen=True, slots=True)
class Due:
    """One grant that somebody must look at now."""

    seq: int
    issuer: str
    ending: str
    state: GrantState
    handle: Mapping[str, str]
    expires: int
    close: bool  # its task is over, and what was opened for it is not closed
    gone: bool
    tries: int


@dataclass(frozen=True, slots=True)
class Claim:
    """Take grants of one issuer in hand that are due. A column outside the tree: whoever dies with them only delays.

    `only` these, if any are named; those alone that have been due for `late_ms`.
    """

    issuer: str
    limit: int
    only: Sequence[int] = ()
    late_ms: int = 0

    def apply(self, tx: Tx) -> list[Due]:
        these = f" AND seq IN ({', '.join('?' * len(self.only))})" if self.only else ""
        rows = tx.execute(
            "SELECT seq, issuer, ending, state, handle, expires, over, closed, gone, tries"  # noqa: S608  (placeholders)
            " FROM external_grants WHERE issuer = ? AND next_try IS NOT NULL AND next_try <= ? AND state <> 'issuing'"
            f"{these} ORDER BY next_try LIMIT ?",
            (self.issuer, tx.now - self.late_ms, *self.only, self.limit),
        ).fetchall()
        for row in rows:
            tx.put("UPDATE external_grants SET next_try = ? WHERE seq = ?", (tx.now + CLAIM_MS, row[0]))
        return [
            Due(
                seq=seq,
                issuer=issuer,
                ending=ending,
                state=GrantState(state),
                handle=orjson.loads(handle),
                expires=expires,
                close=over == 1 and closed == 0,
                gone=gone is not None,
                tries=tries,
            )
            for seq, issuer, ending, state, handle, expires, over, closed, gone, tries in rows
        ]


@dataclass(frozen=True, slots=True)
class Look:
    """What one try came to. `gone` None: nobody could tell, or nobody had to ask. `by_itself`: see `issuers.Found`."""

    closed: bool = False
    gone: bool | None = None
    note: str | None = None
    problem: str | None = None
    by_itself: bool = False


@dataclass(frozen=True, slots=True)
class Settle:
    """Record one try. The grant is called revoked, or expired, only by a look that found it gone.

    `retry_ms` is when to try again if something is left to do; after `stuck_after` tries a human is told.
    """

    due: Due
    look: Look
    retry_ms: int
    stuck_after: int

    def apply(self, tx: Tx) -> GrantState:
        seq, look = self.due.seq, self.look
        state, gone, settles, over, closed, task = tx.execute(
            "SELECT state, gone, settles, over, closed, task FROM external_grants WHERE seq = ?", (seq,)
        ).fetchone()
        state = GrantState(state)
        closed = closed or int(look.closed)
        tx.put("UPDATE external_grants SET closed = ?, problem = ? WHERE seq = ?", (closed, look.problem, seq))
        if gone is None and state is not GrantState.ISSUING:
            if look.gone and settles <= tx.now:
                state = self._gone(tx, state, task)
            elif look.gone:  # a call of ours may still be making it
                self._again(tx, settles)
                return state
            else:
                return self._not_gone(tx, state, task)
        if over and not closed:
            self._again(tx, tx.now + self.retry_ms)
            tx.put("UPDATE external_grants SET tries = tries + 1 WHERE seq = ?", (seq,))
        elif state is not GrantState.ISSUING:
            tx.put("UPDATE external_grants SET next_try = NULL WHERE seq = ?", (seq,))
        return state

    def _gone(self, tx: Tx, state: GrantState, task: str) -> GrantState:
        """Found gone: by itself when nothing was done to it, or nothing could be."""
        by_itself = state is GrantState.LIVE or self.due.ending == EXPIRES_ONLY or self.look.by_itself
        found = GrantState.EXPIRED if by_itself else GrantState.REVOKED
        body = {**self._event(tx, task), "how": found.value}
        if self.look.note is not None:
            body["note"] = self.look.note
        seq = tx.append("gone", body)
        tx.put(
            "UPDATE external_grants SET state = ?, gone = ?, gone_seq = ?, note = ? WHERE seq = ?",
            (found.value, tx.now, seq, self.look.note, self.due.seq),
        )
        tx.put("INSERT INTO task_events (task, seq) SELECT id, ? FROM tasks WHERE id = ?", (seq, task))
        return found

    def _not_gone(self, tx: Tx, state: GrantState, task: str) -> GrantState:
        """Still there, or nobody knows. What can only expire waits for that, and that is no failure."""
        look, due = self.look, self.due
        if look.problem is None and due.expires > tx.now and (due.ending == EXPIRES_ONLY or state is GrantState.LIVE):
            self._again(tx, due.expires)
            tx.put("UPDATE external_grants SET note = ? WHERE seq = ?", (look.note, due.seq))
            return state
        tries = due.tries + 1
        problem = look.problem or "The backend still has it."
        self._again(tx, tx.now + self.retry_ms)
        tx.put(
            "UPDATE external_grants SET tries = ?, problem = ?, note = ? WHERE seq = ?",
            (tries, problem, look.note, due.seq),
        )
        if tries < self.stuck_after or state is GrantState.STUCK:
            return state
        seq = tx.append("stuck", {**self._event(tx, task), "tries": tries, "problem": problem})
        tx.put("UPDATE external_grants SET state = 'stuck' WHERE seq = ?", (due.seq,))
        tx.put("INSERT INTO task_events (task, seq) SELECT id, ? FROM tasks WHERE id = ?", (seq, task))
        return GrantState.STUCK

    def _again(self, tx: Tx, at: int) -> None:
        tx.put("UPDATE external_grants SET next_try = ? WHERE seq = ?", (at, self.due.seq))

    def _event(self, tx: Tx, task: str) -> dict[str, Any]:
        return grant_event(tx, self.due.seq, task, self.due.issuer)


@dataclass(frozen=True, slots=True)
class OrphansEnded:
    """Things at a backend that bore our name, that no grant owned, and that a look has found gone."""

    issuer: str
    handles: Sequence[Mapping[str, str]]

    def apply(self, tx: Tx) -> int:
        for handle in self.handles:
            tx.append("orphan.ended", {"issuer": self.issuer, "handle": dict(handle)})
        return len(self.handles)
