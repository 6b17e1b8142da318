"""Requests of one event-loop tick, taken through the pipeline together."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class TickBatcher(Generic[T, R]):
    """Collects what arrives within one tick and hands it over as one batch. No fixed delay: an idle broker answers one
    request at once, a loaded one finds its batches growing by themselves.

    `process` answers a batch in order; an exception in a slot fails that request only. `observe` is told of each batch,
    once: its items, its answers, and the seconds that it took.
    """

    def __init__(
        self,
        process: Callable[[Sequence[T]], Awaitable[Sequence[R | Exception]]],
        *,
        observe: Callable[[Sequence[T], Sequence[R | Exception], float], None] | None = None,
    ) -> None:
        self._process = process
        self._observe = observe
        self._waiting: list[tuple[T, Callable[[R | Exception], None]]] = []
        self._running: set[asyncio.Task[None]] = set()

    def submit(self, item: T, tell: Callable[[R | Exception], None]) -> None:
        """Put `item` into the next batch. `tell` is called with its answer, on the loop; it must not raise."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._start)
        self._waiting.append((item, tell))

    def _start(self) -> None:
        batch, self._waiting = self._waiting, []
        task = asyncio.ensure_future(self._run(batch))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _run(self, batch: list[tuple[T, Callable[[R | Exception], None]]]) -> None:
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
