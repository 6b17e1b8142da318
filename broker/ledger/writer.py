"""The asynchronous front of a ledger: one commit in flight, and everything that arrives meanwhile is the next batch.

What is submitted in one tick of the event loop is handed to the writer's thread once; a batch's results come back with
one call. There is no timer: a lone request is written at once, and under load the batches grow by themselves.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Final, NamedTuple

from broker.ledger import Command, Head, Ledger, LedgerStopped, LedgerUnavailable, Tx

_BATCH: Final = 256
_SLOW_DISK_S: Final = 0.0015
_REMEMBERED: Final = 8
_WAITING: Final = 4096


class _Entry(NamedTuple):
    """What one caller submitted, to be committed in one transaction."""

    commands: Sequence[Command]
    done: "asyncio.Future[list[Any]]"


class _Batch(NamedTuple):
    entries: list[_Entry]
    priority: bool


@dataclass(frozen=True, slots=True)
class _Together:
    """Several commands as one, so that one which raises takes the others with it."""

    commands: Sequence[Command]

    def apply(self, tx: Tx) -> list[Any]:
        return [command.apply(tx) for command in self.commands]


class Writer:
    """Made on the loop that it serves. Its methods are for that loop's thread only.

    `on_commit` is called on the loop after each commit, with the new head and all outcomes; `on_stop` once, when the
    ledger turns out to be unusable for this process; `observe` on the writer's thread after each batch, with the number
    of commands, the seconds it took, whether it failed, and how many commands wait by then.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        loop: asyncio.AbstractEventLoop,
        on_commit: Callable[[Head, list[Any]], None] | None = None,
        on_stop: Callable[[LedgerStopped], None] | None = None,
        observe: Callable[[int, float, bool, int], None] | None = None,
        max_batch: int = _BATCH,
        max_waiting: int = _WAITING,
    ) -> None:
        self._ledger, self._loop = ledger, loop
        self._on_commit, self._on_stop, self._observe = on_commit, on_stop, observe
        self._max_batch, self._max_waiting = max_batch, max_waiting
        self._urgent: deque[_Entry] = deque()
        self._ordinary: deque[_Entry] = deque()
        self._waiting = 0  # commands in `_ordinary`
        self._busy = False  # a batch is with the thread, or a hand-over is scheduled
        self._closing: asyncio.Future[None] | None = None
        self._batches: SimpleQueue[_Batch | None] = SimpleQueue()
        self._synced_s = deque([0.0], maxlen=_REMEMBERED)
        self._thread = threading.Thread(target=self._run, name="ledger-writer", daemon=True)
        self._thread.start()

    async def submit(self, command: Command) -> Any:  # noqa: ANN401  (each command has its own outcome)
        """The command's outcome, once it is durable. Raises what the command raised, or LedgerUnavailable."""
        return _only(await self._enqueue((command,)))

    async def submit_many(self, commands: Sequence[Command]) -> list[Any]:
        """The outcomes of commands written in one transaction; the slot of one that raised holds the exception.

        Raises LedgerUnavailable when none was applied.
        """
        return await self._enqueue(commands) if commands else []

    async def submit_together(self, commands: Sequence[Command]) -> list[Any]:
        """The outcomes of commands of which all or none are kept. Raises what one raised, or LedgerUnavailable."""
        outcomes: list[Any] = await self.submit(_Together(commands))
        return outcomes

    async def submit_priority(self, command: Command) -> Any:  # noqa: ANN401
        """Like `submit`, ahead of everything that waits, here and in the other processes on the same store.

        Never refused because the queue is full.
        """
        return _only(await self._put(self._urgent, (command,)))

    @property
    def on_slow_disk(self) -> bool:
        """Whether each of the last commits waited for the disk longer than it takes to get another batch going. One of
        them alone may have waited for this process itself.
        """
        return min(self._synced_s) > _SLOW_DISK_S

    async def close(self) -> None:
        """Refuse new commands, finish those that were accepted, and end the thread."""
        if self._closing is None:
            self._closing = self._loop.create_future()
            if not self._busy:
                self._next_batch()
        await asyncio.shield(self._closing)
        self._thread.join()

    def _enqueue(self, commands: Sequence[Command]) -> "asyncio.Future[list[Any]]":
        if self._waiting + len(commands) > self._max_waiting:
            raise LedgerUnavailable("Too many requests wait for the ledger.")
        self._waiting += len(commands)
        return self._put(self._ordinary, commands)

    def _put(self, queue: "deque[_Entry]", commands: Sequence[Command]) -> "asyncio.Future[list[Any]]":
        if self._closing is not None:
            raise LedgerUnavailable("The broker is shutting down.")
        done: asyncio.Future[list[Any]] = self._loop.create_future()
        queue.append(_Entry(commands, done))
        if not self._busy:
            self._busy = True
            self._loop.call_soon(self._next_batch)  # at the end of this tick, with whatever else it submits
        return done

    def _next_batch(self) -> None:
        """Hand the next batch to the thread: what is urgent alone, else as much as has come together."""
        batch = _Batch(self._take(self._urgent), priority=True)
        if not batch.entries:
            batch = _Batch(self._take(self._ordinary), priority=False)
            self._waiting -= sum(len(entry.commands) for entry in batch.entries)
        self._busy = bool(batch.entries)
        if self._busy:
            self._batches.put(batch)
        elif self._closing is not None and not self._closing.done():
            self._batches.put(None)
            self._closing.set_result(None)

    def _take(self, queue: "deque[_Entry]") -> list[_Entry]:
        """Entries up to the batch size (one at least), without those whose callers have given up."""
        taken: list[_Entry] = []
        room = self._max_batch
        while queue and (not taken or len(queue[0].commands) <= room):
            entry = queue.popleft()
            if entry.done.cancelled():
                self._waiting -= len(entry.commands) if queue is self._ordinary else 0
                continue
            taken.append(entry)
            room -= len(entry.commands)
        return taken

    def _run(self) -> None:
        """The writer's thread: commit, report, repeat."""
        while (batch := self._batches.get()) is not None:
            commands = [command for entry in batch.entries for command in entry.commands]
            began = time.perf_counter()
            try:
                outcome: list[Any] | Exception = self._ledger.commit(commands, priority=batch.priority)
            except Exception as error:  # noqa: BLE001  (the callers get it, and the thread lives on)
                outcome = error
            if self._observe is not None:
                failed = isinstance(outcome, Exception)
                self._observe(len(commands), time.perf_counter() - began, failed, self._waiting)
            try:
                self._loop.call_soon_threadsafe(self._deliver, batch, outcome, self._ledger.head)
            except RuntimeError:  # the loop is closed: nobody is left to tell
                return

    def _deliver(self, batch: _Batch, outcome: list[Any] | Exception, head: Head) -> None:
        """Keep the thread busy first, then tell the callers."""
        self._synced_s.append(self._ledger.synced_s)  # here, on the loop, which is where it is looked at
        self._next_batch()
        if isinstance(outcome, Exception):
            for entry in batch.entries:
                if not entry.done.done():
                    entry.done.set_exception(outcome)
            if isinstance(outcome, LedgerStopped) and self._on_stop is not None:
                told, self._on_stop = self._on_stop, None
                told(outcome)
            return
        start = 0
        for entry in batch.entries:
            end = start + len(entry.commands)
            if not entry.done.done():
                entry.done.set_result(outcome[start:end])
            start = end
        if self._on_commit is not None:
            self._on_commit(head, outcome)


def _only(results: list[Any]) -> Any:  # noqa: ANN401
    (result,) = results
    if isinstance(result, BaseException):
        raise result
    return result
