"""Connections for reading, and how long anybody waits for the store.

Much is read on the event loop, where a wait holds up everybody: there each answer has half a second, a new connection
is made by another thread, and once the store was found out of reach nobody asks it again before the watch, which is a
thread of its own, has heard from it.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as TookTooLong
from contextlib import suppress
from typing import Final

import psycopg

from broker.ledger.postgres_link import Link

READ_S: Final = 1.2
"""From asking for a snapshot to having it, and for the answer to each query after that."""
ON_LOOP_S: Final = 0.5
"""The same on an event loop."""
_IDLE: Final = 8
_PAUSE_S: Final = 0.2


def on_a_loop() -> bool:
    """Whether this thread is running an event loop, so that its waits hold up everybody else on it."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def patience_s() -> float:
    """How long this thread may wait for one answer."""
    return ON_LOOP_S if on_a_loop() else READ_S


class Reach:
    """Whether the store can be reached, as last found out by anybody in this process."""

    def __init__(self) -> None:
        self._lost = False
        self._not_before = 0.0  # monotonic; until then it is taken to be as unreachable as it just was

    def lost(self) -> None:
        """An answer did not come, or a connection could not be made."""
        self._not_before = time.monotonic() + _PAUSE_S
        self._lost = True

    def found(self) -> None:
        """It answered."""
        self._lost = False

    @property
    def worth_asking(self) -> bool:
        """Whether to ask it now: callers must not wait for it in a row, and a loop not at all."""
        return not self._lost or (not on_a_loop() and time.monotonic() >= self._not_before)


class Readers:
    """A few idle connections. Each is in one thread's hands at a time."""

    def __init__(self, connect: Callable[[], Link], *, first: Link | None = None) -> None:
        self._connect = connect
        self._lock = threading.Lock()  # guards what follows, for moments only
        self._idle: list[Link] = [] if first is None else [first]
        self._closed = False
        self._making = ThreadPoolExecutor(2, thread_name_prefix="ledger-connect")

    def take(self) -> Link:
        """A connection at rest; one that died while it was idle is replaced. Raises psycopg.Error."""
        while True:
            with self._lock:
                link = self._idle.pop() if self._idle else None
            if link is None:
                return self._made()
            if not link.ended():
                return link
            link.close()

    def give_back(self, link: Link) -> None:
        """Keep it, if it is at rest and there is room."""
        with suppress(psycopg.Error):
            if link.in_transaction:
                link.within(patience_s())
                link.script("ROLLBACK")
            if link.at_rest:
                with self._lock:
                    if len(self._idle) < _IDLE and not self._closed:
                        self._idle.append(link)
                        return
        link.close()

    def close(self) -> None:
        """Let go of all that are idle, and keep none that comes back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for link in idle:
            link.close()
        self._making.shutdown(wait=False, cancel_futures=True)

    def _made(self) -> Link:
        """A new one. Looking its host up and connecting may hang: never on a loop."""
        if not on_a_loop():
            return self._connect()
        try:
            making = self._making.submit(self._connect)
        except RuntimeError as error:
            raise psycopg.OperationalError("the ledger is closed") from error
        try:
            return making.result(ON_LOOP_S)
        except TookTooLong:
            making.add_done_callback(self._keep)
            raise psycopg.OperationalError("no connection to the ledger in time") from None

    def _keep(self, made: "Future[Link]") -> None:
        """One that came too late for whoever asked is there for the next."""
        if not made.cancelled() and made.exception() is None:
            self.give_back(made.result())
