"""A credential at a backend that is to live longer: the intent, and what came of it.

Until its backend has answered nobody knows how long it lives. So from the intent on the ledger says the later time,
of which no receipt may fall short, and the look at its old time stays: whatever stops in between, that look finds out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from broker.ledger import Tx, make_id
from broker.ledger.commands.credentials import EXPIRES_ONLY
from broker.ledger.commands.guards import Stale
from broker.ledger.commands.issue import UNHEARD, Asked, Refused, Verdict, check, lifetime, refuse, tell_task
from broker.model import GrantState

ENDED = "ended"
NOT_RENEWABLE = "not_renewable"
AT_ITS_LIMIT = "at_its_limit"


@dataclass(frozen=True, slots=True)
class Renewing:
    """A committed intent: what the backend is asked. `exp` in seconds, `before` in milliseconds."""

    seq: int  # the grant's
    jti: str
    asked: Asked
    task: str
    issuer: str
    handle: Mapping[str, str]
    before: int
    exp: int
    decision_id: str

    def event(self) -> dict[str, Any]:
        """The members that its outcome begins with."""
        return {"jti": self.jti, "task": self.task, "issuer": self.issuer}


@dataclass(frozen=True, slots=True)
class Renew:
    """Commit the intent to have one live longer, if every guard of its issuance holds once more, and it is alive."""

    seq: int
    jti: str
    asked: Asked
    verdict: Verdict
    ttl_ms: int  # from now on; the task's deadline can only shorten it

    def apply(self, tx: Tx) -> Renewing | Refused | Stale:
        asked = self.asked
        refused = self.verdict.stale(tx.head) or check(tx, asked)
        if refused is not None:
            return refused
        state, ending, task, issuer, handle, expires = tx.execute(
            "SELECT state, ending, task, issuer, handle, expires FROM external_grants WHERE seq = ?", (self.seq,)
        ).fetchone()
        _, exp = lifetime(tx, asked, self.ttl_ms)
        if ending == EXPIRES_ONLY:
            return refuse(tx, asked, NOT_RENEWABLE, "It ends by expiring, and nothing can move that.")
        if asked.task is None:
            return refuse(tx, asked, NOT_RENEWABLE, "It was made for one use, under no task that goes on.")
        if state != GrantState.LIVE or expires <= tx.now:
            return refuse(tx, asked, ENDED, "It has ended, or is being ended.")
        if exp * 1000 <= expires:
            return refuse(tx, asked, AT_ITS_LIMIT, "It lives as long as it may already.")
        return self._record(tx, Renewing(
            seq=self.seq, jti=self.jti, asked=asked, task=task, issuer=issuer, handle=orjson.loads(handle),
            before=expires, exp=exp, decision_id=make_id("dec", tx.epoch, tx.next_seq()),
        ))  # fmt: skip

    def unheard(self, outcome: object) -> "NotRenewed | None":
        """See `broker.ledger.Command`: no backend was asked."""
        return NotRenewed(outcome, UNHEARD, happened=False) if isinstance(outcome, Renewing) else None

    def _record(self, tx: Tx, renewing: Renewing) -> Renewing:
        body = {**self.asked.body(), **self.verdict.body(), **renewing.event(), "exp": renewing.exp}
        tell_task(tx, self.asked, tx.append("renewing", body))
        tx.put("UPDATE external_grants SET expires = ? WHERE seq = ?", (renewing.exp * 1000, self.seq))
        return renewing


@dataclass(frozen=True, slots=True)
class Renewed:
    """The backend lets it live until `exp`, in seconds."""

    renewing: Renewing
    exp: int

    def apply(self, tx: Tx) -> bool:
        """False when it was ended meanwhile: then it is being revoked, longer life and all."""
        renewing = self.renewing
        if not _alive(tx, renewing.seq):
            _failed(tx, renewing, "it was ended meanwhile")
            return False
        tell_task(tx, renewing.asked, tx.append("renewed", {**renewing.event(), "exp": self.exp}))
        tx.put(  # a later renewal may be under way, which will say more
            "UPDATE external_grants SET expires = ?, next_try = ? WHERE seq = ? AND expires = ?",
            (self.exp * 1000, self.exp * 1000, renewing.seq, renewing.exp * 1000),
        )
        return True


@dataclass(frozen=True, slots=True)
class NotRenewed:
    """The backend did not renew it. With `happened` False that is certain, and it ends when it did before; otherwise
    the look at its old time tells.
    """

    renewing: Renewing
    why: str
    happened: bool = True

    def apply(self, tx: Tx) -> None:
        renewing = self.renewing
        _failed(tx, renewing, self.why)
        if not self.happened and _alive(tx, renewing.seq):
            tx.put(
                "UPDATE external_grants SET expires = ? WHERE seq = ? AND expires = ?",
                (renewing.before, renewing.seq, renewing.exp * 1000),
            )


def _failed(tx: Tx, renewing: Renewing, why: str) -> None:
    tell_task(tx, renewing.asked, tx.append("renewal.failed", {**renewing.event(), "why": why}))


def _alive(tx: Tx, seq: int) -> bool:
    (state,) = tx.execute("SELECT state FROM external_grants WHERE seq = ?", (seq,)).fetchone()
    return bool(state == GrantState.LIVE)
