"""Why this process would refuse to issue now, or does with less than it was given: each reason with a code that stays,
and what to do about it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

from broker.errors import TaskpassError, Unavailable
from broker.ledger import Ledger, LedgerStopped, LedgerUnavailable, Now
from broker.rules import RulesInForce

_TOLERATED_BEHIND_MS = 5_000
_FAILED_LATELY_MS = 5_000

NEXT = MappingProxyType(
    {
        "ledger_stopped": "The ledger was rolled back, replaced or damaged: look before anything is started again.",
        "ledger_unreadable": "Look at the database, or the disk, and the way to it. Nothing has to be restarted.",
        "ledger_unwritable": "Look for a full disk, or a database that is read-only. Nothing has to be restarted.",
        "rules_missing": "This ledger has no registry and policies yet: see the control process's log.",
        "issuance_stopped": "Mend the files that it names, then: taskpass reload.",
        "clock_behind": "Mend this host's clock; then it goes on by itself.",
        "vault_away": "Look at the vault of the signing keys, the way to it and the token for it. Nothing has to be "
        "restarted: it is asked every second.",
        "signals_lost": "Look at Redis. Nothing waits for it: brokers look into the ledger by themselves meanwhile.",
    }
)
"""Every code, and what to do. Codes are part of the interface: alerts and scripts name them."""


DEGRADES = frozenset({"signals_lost"})
"""Codes of what changes no answer: with nothing else wrong the process is ready, and says that it is degraded."""


@dataclass(frozen=True, slots=True)
class Reason:
    """One reason: its code, and a sentence that holds now."""

    code: str
    detail: str

    @property
    def degrades(self) -> bool:
        """Whether the process is ready all the same."""
        return self.code in DEGRADES

    def to_json(self) -> dict[str, str]:
        """As `/readyz` shows it."""
        return {"code": self.code, "detail": self.detail, "next": NEXT[self.code]}


class Readiness:
    """Asked by `/readyz` and by metrics. `now` is the host's clock."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        rules: RulesInForce,
        away: Callable[[], Unavailable | None],
        lost: Callable[[], bool],
        now: Now,
    ) -> None:
        """`away`: why tokens cannot be signed. `lost`: whether other brokers are not heard at once."""
        self._ledger = ledger
        self._rules = rules
        self._away = away
        self._lost = lost
        self._now = now
        self._write_failed: int | None = None

    def wrote(self, *, failed: bool) -> None:
        """The writer's last batch was written, or not. From any thread."""
        self._write_failed = self._now() if failed else None

    def reasons(self) -> list[Reason]:
        """Why not, or only with less; or nothing."""
        try:
            with self._ledger.read() as r:
                head = r.head()
        except LedgerStopped as error:
            return [Reason("ledger_stopped", error.sentence)]
        except LedgerUnavailable as error:
            return [Reason("ledger_unreadable", error.sentence)]
        found = self._rules_missing()
        now, failed = self._now(), self._write_failed
        if failed is not None and now - failed <= _FAILED_LATELY_MS:  # later nobody knows: there was nothing to write
            found.append(Reason("ledger_unwritable", "The ledger could not be written just now."))
        if head.issuance_stopped:
            found.append(Reason("issuance_stopped", f"issuance is stopped: {head.issuance_stopped}"))
        behind_ms = head.time - now
        if behind_ms > _TOLERATED_BEHIND_MS:
            sentence = f"this host's clock is {behind_ms // 1000} s behind the ledger's time: every proof has expired"
            found.append(Reason("clock_behind", sentence))
        away = self._away()
        if away is not None:
            found.append(Reason("vault_away", away.sentence))
        if self._lost():
            found.append(Reason("signals_lost", "Redis does not answer: other brokers are not heard at once."))
        return found

    def _rules_missing(self) -> list[Reason]:
        try:
            _ = self._rules.current
        except TaskpassError as error:
            return [Reason("rules_missing", error.sentence)]
        return []


Ready = Callable[[], list[Reason]]
