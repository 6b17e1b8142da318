"""Calls to backends, which block: in a few threads for each issuer, so that one backend that hangs delays no other, and
never on the event loop.
"""

import asyncio
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Busy(Exception):
    """Too many calls wait already, or this one never got its turn. The backend was certainly not asked."""


class StillRunning(Exception):
    """The call was asked of the backend and has not come back. `call` is what will tell."""

    def __init__(self, call: "Future[Any]") -> None:
        super().__init__("a call to a backend has not come back in time")
        self.call = call


@dataclass(frozen=True, slots=True)
class Running(Generic[T]):
    """A call that was begun."""

    call: "Future[T]"
    future: "asyncio.Future[T]"


class Calls:
    """The threads of one issuer. `waiting` calls at most stand in line behind those that run."""

    def __init__(self, *, name: str, workers: int, waiting: int, limit_s: float) -> None:
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix=name)
        self._most = workers + waiting
        self._open = 0
        self._limit_s = limit_s

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What the function returns or raises. Raises Busy, StillRunning."""
        return await self.result(self.begin(function, *args, **kwargs))

    def begin(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Running[T]:
        """Have a thread call it. Raises Busy."""
        if self._open >= self._most:
            raise Busy
        call = self._pool.submit(function, *args, **kwargs)
        self._open += 1
        future = asyncio.wrap_future(call)
        future.add_done_callback(self._done)
        return Running(call, future)

    async def result(self, running: Running[T]) -> T:
        """What a call that was begun returns or raises; from now on it has its time. Raises Busy, StillRunning."""
        done, _ = await asyncio.wait({running.future}, timeout=self._limit_s)
        if done:
            return running.future.result()
        if running.call.cancel():
            raise Busy
        raise StillRunning(running.call)

    def close(self) -> None:
        """Begin no more calls. Those that run end by their own bounds."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _done(self, future: "asyncio.Future[Any]") -> None:
        self._open -= 1
        if not future.cancelled():
            future.exception()  # looked at: whoever waited in vain has gone on


def place_of(error: BaseException) -> str:
    """What went wrong and where, for a log: an exception's own text may repeat what a backend said, secrets and all."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}"
