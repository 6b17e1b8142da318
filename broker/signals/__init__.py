"""What need not survive: wake-ups between brokers, and counts that they share. In memory, or in Redis.

Nothing that comes back from here is believed. A wake-up says that somebody wrote something: whoever hears it reads the
ledger, and who hears nothing looks there all the same. A count can make a limit stricter, down to a floor, and never
lift it. So the loss of all this, or its lies, may slow things, and change no answer.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

INTERVAL_S = 60.0
"""What `count` counts within. It begins with the first of a name, and is started anew when it is over."""


def loop_time() -> float:
    """The running event loop's clock, in seconds: it only moves forward, and nobody sets it."""
    return asyncio.get_running_loop().time()


class Signals(Protocol):
    """One process's connection to the other brokers of its ledger. For the thread of one event loop.

    No method waits for another machine, and none raises when there is none: what cannot be sent is lost.
    """

    lost: bool
    """Whether what carries them is away, as far as is known. May be read from any thread."""

    async def start(self, moved: Callable[[], None] | None) -> None:
        """Begin. `moved` is called on the loop when another broker may have written something for verifiers; also when
        it has not, and perhaps once for several times. None: this process does not want to know.
        """
        ...

    def tell(self, position: int) -> None:
        """The ledger moved to this position, and verifiers are to hear of it: wake the others."""
        ...

    def count(self, name: str) -> int:
        """Count one of `name`. How many all brokers are known to have counted within the interval, late and perhaps
        wrong; 0 when nothing is known.
        """
        ...

    async def close(self) -> None:
        """End. Once is enough."""
        ...


__all__ = ["INTERVAL_S", "Signals", "loop_time"]
