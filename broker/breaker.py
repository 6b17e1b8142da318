"""Not relying on what is known to be away: a breaker goes by how the last call ended, and by whether one hangs."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Breaker:
    """Open after a call that failed, and while one has taken longer than `patience_s`; closed by one that succeeds.

    It refuses nothing by itself: whoever would rely on the other side looks first, and one caller goes on trying.
    Calls begin and end on one thread; any thread may look.
    """

    def __init__(
        self,
        *,
        patience_s: float,
        observe: Callable[[float, bool], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`observe` is told of each call: its seconds, and whether it failed."""
        self._patience_s = patience_s
        self._observe = observe
        self._clock = clock
        self._failed = False
        self._last = -math.inf
        self._running: dict[object, float] = {}  # call -> since when, the oldest first

    @property
    def open(self) -> bool:
        """The other side is away, as far as is known."""
        oldest = next(iter(list(self._running.values())), None)
        return self._failed or (oldest is not None and self._clock() - oldest > self._patience_s)

    def quiet_for(self, seconds: float) -> bool:
        """Whether nothing was heard of the other side for so long, or ever, and nobody is asking it now."""
        return not self._running and self._clock() - self._last >= seconds

    @contextmanager
    def call(self) -> Iterator[None]:
        """One call. It has failed if an exception leaves it; being cancelled says nothing."""
        call, began, failed = object(), self._clock(), None
        self._running[call] = began
        try:
            yield
            failed = False
        except Exception:
            failed = True
            raise
        finally:
            del self._running[call]
            self._last = self._clock()
            if failed is not None:
                self._failed = failed
                if self._observe is not None:
                    self._observe(self._last - began, failed)
