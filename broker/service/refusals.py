"""Refusals before authentication, counted per reason and interval: junk must not fill the disk that kills need."""

from collections import Counter
from collections.abc import Callable, Mapping

from broker.ledger.commands.admin import CountRefusals

_MAX_REASONS = 64


class Refusals:
    """Counters since the last flush. Reasons are the broker's own words, never a caller's. `observe` is told each."""

    def __init__(self, *, now: Callable[[], int], observe: Callable[[Mapping[str, int]], None] | None = None) -> None:
        self._now = now
        self._observe = observe
        self._since = now()
        self._counts: Counter[str] = Counter()

    def count(self, reason: str) -> None:
        """Count one refusal of a caller that proved no identity."""
        key = reason if reason in self._counts or len(self._counts) < _MAX_REASONS else "other"
        self._counts[key] += 1
        if self._observe is not None:
            self._observe({key: 1})

    def flush(self) -> CountRefusals | None:
        """The command that records the counts since the last flush; None when nothing was refused."""
        counts, since = self._counts, self._since
        self._counts, self._since = Counter(), self._now()
        return CountRefusals(dict(counts), since) if counts else None
