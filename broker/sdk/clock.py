"""The two clocks of the SDK, as plain callables so that tests pass their own.

Wall time decides about `exp` and can be set by anyone. Elapsed time decides about freshness and must count the time
that a laptop or a virtual machine slept, or a verifier would wake up believing that it had just heard from the broker.
"""

import sys
import time
from collections.abc import Callable

Now = Callable[[], int]
"""Wall clock: whole milliseconds since the Unix epoch."""

Elapsed = Callable[[], int]
"""Monotonic clock in nanoseconds that runs through suspend. Its zero means nothing."""


def wall_ms() -> int:
    """The host's wall clock."""
    return time.time_ns() // 1_000_000


if sys.platform == "linux":
    _CLOCK = time.CLOCK_BOOTTIME

    def elapsed_ns() -> int:
        """Nanoseconds since boot, suspend included."""
        return time.clock_gettime_ns(_CLOCK)

else:  # macOS: the monotonic clock of the C library runs through sleep, the one of Python does not

    def elapsed_ns() -> int:
        """Nanoseconds on the system's monotonic clock."""
        if sys.platform == "darwin":
            return time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        return time.monotonic_ns()
