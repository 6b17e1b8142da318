"""Hearing of commits by other brokers: a thread that listens, and looks by itself in case a notification was lost."""

import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import Final

import psycopg

from broker.ledger import LedgerUnavailable
from broker.ledger.heads import SELECT_HEAD
from broker.ledger.postgres_link import Link
from broker.ledger.postgres_readers import Reach

LOOK_EVERY_S: Final = 0.4
CLOCK: Final = "SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
SILENCE_S: Final = 1.5
"""After so long without an answer nobody here can say whether there are new commits."""
_COUNTING: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_PAUSE_S: Final = 0.2
_LONGEST_LOOK_S: Final = 1.0


class StoreClock:
    """The database's clock between two looks at it, counted on by a clock of this host that runs through suspend and
    that nobody sets: brokers whose hosts disagree about the time still agree with one another.
    """

    def __init__(self, now: int) -> None:
        self._offset = 0
        self.set(now)

    def set(self, now: int) -> None:
        """The database's clock says this now, or said so a moment ago."""
        self._offset = now - _counted_ms()

    def __call__(self) -> int:
        """Milliseconds since the epoch."""
        return _counted_ms() + self._offset


def _counted_ms() -> int:
    return time.clock_gettime_ns(_COUNTING) // 1_000_000


class Watch:
    """A number that changes with every commit by anyone, and whether the store can be reached."""

    def __init__(self, *, connect: Callable[[], Link], channel: str, reach: Reach, clock: StoreClock) -> None:
        self._connect, self._channel = connect, channel
        self._reach, self._clock = reach, clock
        self._version = 0
        self._last: object = None
        self._heard = time.monotonic()
        self._closed = threading.Event()
        self._link: Link | None = None
        self._thread = threading.Thread(target=self._run, name="ledger-watch", daemon=True)
        self._thread.start()

    def version(self) -> int:
        """The number now. Raises LedgerUnavailable while the store is silent."""
        if time.monotonic() - self._heard > SILENCE_S:
            raise LedgerUnavailable("The ledger cannot be read now.", internal="the watch hears nothing")
        return self._version

    def bump(self) -> None:
        """There was a commit."""
        self._version += 1  # from two threads at once it may count one for two; it has changed all the same

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        link = self._link
        if link is not None:
            link.interrupt()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                with closing(self._connect()) as link:
                    self._link = link
                    link.script(f"LISTEN {self._channel}")
                    self._follow(link)
            except psycopg.Error:
                self._closed.wait(_PAUSE_S)

    def _follow(self, link: Link) -> None:
        while not self._closed.is_set():
            self._look(link)
            until = time.monotonic() + LOOK_EVERY_S
            while (left := until - time.monotonic()) > 0 and not self._closed.is_set():
                if link.notified(left):
                    self._heard = time.monotonic()
                    self.bump()

    def _look(self, link: Link) -> None:
        link.within(_LONGEST_LOOK_S)
        row, (now,) = link.script(f"{SELECT_HEAD}; {CLOCK}")
        self._heard = time.monotonic()
        self._clock.set(now)
        self._reach.found()
        if row != self._last:
            self._last = row
            self.bump()
