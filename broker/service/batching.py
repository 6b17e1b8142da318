"""Requests that have come together, taken through the pipeline as one batch.

What a batch costs beside its requests (threads that wake each other, a transaction, caches gone cold) is as much as
three or four tokens. So there is one batch at a time, and the next one takes everybody who came meanwhile: an idle
broker answers one request at once, a loaded one finds its batches growing by themselves. Only where a batch waits for
something slow are others begun meanwhile, as they come.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_MOST: Final = 256
_ENOUGH: Final = 32
"""Of a batch of so many, each bears little of what it costs: on a slow disk the next ones are worked on meanwhile, and
more than that in one batch would leave nobody to work on.
"""
_PATIENCE_S: Final = 0.02
"""How long requests wait for the batch before theirs, which is some commits long: one that takes longer is stuck with
something that may be none of theirs, as a vault that signs.
"""


class Batcher(Generic[T, R]):
    """Collects what is submitted and hands it over in batches of at most 256.

    `process` answers a batch in order; an exception in a slot fails that request only. `observe` is told of each batch,
    once: its items, its answers, and the seconds that it took. `overlap` says whether a batch is known to wait so long
    that the next one should not wait for it. All of it is for one event loop's thread.
    """

    def __init__(
        self,
        process: Callable[[Sequence[T]], Awaitable[Sequence[R | Exception]]],
        *,
        observe: Callable[[Sequence[T], Sequence[R | Exception], float], None] | None = None,
        overlap: Callable[[], bool] = lambda: False,
    ) -> None:
        self._process = process
        self._overlap = overlap
        self._observe = observe
        self._waiting: list[tuple[T, Callable[[R | Exception], None]]] = []
        self._gathering = False
        self._running: set[asyncio.Task[None]] = set()
        self._overdue: asyncio.TimerHandle | None = None

    def submit(self, item: T, tell: Callable[[R | Exception], None]) -> None:
        """Put `item` into the next batch. `tell` is called with its answer, on the loop; it must not raise."""
        self._waiting.append((item, tell))
        self._consider()

    def _consider(self) -> None:
        """Begin a batch for those who wait, if it is time."""
        if self._gathering or not self._waiting:
            return
        if not self._running or (len(self._waiting) >= _ENOUGH and self._overlap()):
            self._gather()
        elif self._overdue is None:
            self._overdue = asyncio.get_running_loop().call_later(_PATIENCE_S, self._gather)

    def _gather(self) -> None:
        """Begin a batch once a turn of the loop brings nobody else: clients that were just answered are on their way
        back, and whoever is late by a moment would wait for the whole batch.
        """
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None
        self._gathering = True
        asyncio.get_running_loop().call_soon(self._look, len(self._waiting))

    def _look(self, before: int) -> None:
        together, most = len(self._waiting), _ENOUGH if self._overlap() else _MOST
        if before < together < most:
            asyncio.get_running_loop().call_soon(self._look, together)
            return
        self._gathering = False
        batch, self._waiting = self._waiting[:most], self._waiting[most:]
        task = asyncio.ensure_future(self._run(batch))
        self._running.add(task)
        task.add_done_callback(self._ended)
        self._consider()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._consider()

    async def _run(self, batch: Sequence[tuple[T, Callable[[R | Exception], None]]]) -> None:
        answers: Sequence[R | Exception]
        items, began = [item for item, _ in batch], time.perf_counter()
        try:
            answers = await self._process(items)
        except Exception as error:  # noqa: BLE001  (handed to every waiting request)
            answers = [error] * len(batch)
        if self._observe is not None:
            self._observe(items, answers, time.perf_counter() - began)
        for (_, tell), answer in zip(batch, answers, strict=True):
            tell(answer)
