"""Signals within one process: of a broker that has the machine for itself, and between the brokers of a test."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final

from broker.signals import INTERVAL_S, loop_time

_NAMES: Final = 10_000


class Hub:
    """What the signals of one process meet at."""

    def __init__(self, *, clock: Callable[[], float] = loop_time) -> None:
        self._clock = clock
        self._counts: dict[str, tuple[float, int]] = {}  # in the order in which their intervals began
        self.members: dict[object, Callable[[], object]] = {}
        """How to wake each, from any thread."""

    def count(self, name: str) -> int:
        """See `Signals.count`. The oldest name makes room for a new one when there are too many."""
        now = self._clock()
        since, counted = self._counts.get(name, (now, 0))
        if now - since >= INTERVAL_S:
            del self._counts[name]
            since, counted = now, 0
        if len(self._counts) >= _NAMES and name not in self._counts:
            del self._counts[next(iter(self._counts))]
        self._counts[name] = (since, counted + 1)
        return counted + 1


class MemorySignals:
    """`broker.signals.Signals` in memory. With a hub of its own it reaches nobody, which is right for a lone broker."""

    def __init__(self, *, hub: Hub | None = None) -> None:
        self._hub = hub or Hub()
        self.lost = False

    async def start(self, moved: Callable[[], None] | None) -> None:
        """See `Signals.start`."""
        if moved is not None:
            self._hub.members[self] = partial(asyncio.get_running_loop().call_soon_threadsafe, moved)

    def tell(self, position: int) -> None:  # noqa: ARG002  (who is woken reads the ledger)
        """See `Signals.tell`."""
        for member, wake in self._hub.members.items():
            if member is not self:
                wake()

    def count(self, name: str) -> int:
        """See `Signals.count`."""
        return self._hub.count(name)

    async def close(self) -> None:
        """See `Signals.close`."""
        self._hub.members.pop(self, None)
