"""The asynchronous front: what becomes a batch, who goes first, and what happens at the edges."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from broker.ledger import Command, Head, LedgerShrunk, LedgerUnavailable
from broker.ledger.sqlite import SqliteLedger
from broker.ledger.writer import Writer
from tests.ledger.kit import Made, Note, Poison, count


class Gate:
    """A real ledger that waits at a gate before each commit, and notes what it was given."""

    def __init__(self, ledger: SqliteLedger) -> None:
        self._ledger = ledger
        self.batches: list[tuple[int, bool]] = []
        self.open = threading.Semaphore(0)
        self.error: Exception | None = None
        self.synced_s = 0.0

    @property
    def head(self) -> Head:
        return self._ledger.head

    def commit(self, commands: Sequence[Command], *, priority: bool = False) -> list[Any]:
        self.batches.append((len(commands), priority))
        assert self.open.acquire(timeout=10)
        if self.error is not None:
            raise self.error
        return self._ledger.commit(commands, priority=priority)

    def let(self, batches: int) -> None:
        self.open.release(batches)


def run(test: Callable[[Writer, Gate], Awaitable[None]], ledger: SqliteLedger, **options: Any) -> Gate:
    """Run `test` with a writer on a gated ledger, and close the writer after it."""
    gate = Gate(ledger)

    async def main() -> None:
        writer = Writer(ledger=gate, loop=asyncio.get_running_loop(), **options)
        try:
            await test(writer, gate)
        finally:
            gate.let(100)
            await writer.close()

    asyncio.run(asyncio.wait_for(main(), 20))
    return gate


async def ticks(number: int = 3) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def started(gate: Gate, batches: int) -> None:
    """Until the thread has taken so many batches."""
    while len(gate.batches) < batches:  # noqa: ASYNC110  (the other side is a thread)
        await asyncio.sleep(0.001)


def test_one_tick_is_one_batch_and_what_arrives_meanwhile_is_the_next(ledger: SqliteLedger) -> None:
    async def test(writer: Writer, gate: Gate) -> None:
        first = [asyncio.ensure_future(writer.submit(Note())) for _ in range(5)]
        await started(gate, 1)
        later = []
        for _ in range(4):
            later += [asyncio.ensure_future(writer.submit(Note())) for _ in range(3)]
            await ticks()
        gate.let(2)
        assert await asyncio.gather(*first) == [1, 2, 3, 4, 5]
        assert await asyncio.gather(*later) == list(range(6, 18))

    assert run(test, ledger).batches == [(5, False), (12, False)]


def test_batches_have_a_largest_size(ledger: SqliteLedger) -> None:
    async def test(writer: Writer, gate: Gate) -> None:
        gate.let(10)
        await asyncio.gather(*(writer.submit(Note()) for _ in range(10)), writer.submit_many([Note()] * 9))

    assert run(test, ledger, max_batch=4).batches == [(4, False), (4, False), (2, False), (9, False)]


def test_what_is_submitted_together_is_committed_together(ledger: SqliteLedger) -> None:
    async def test(writer: Writer, gate: Gate) -> None:
        gate.let(10)
        one, many = await asyncio.gather(writer.submit(Note()), writer.submit_many([Note(), Poison(), Note()]))
        assert one == 1
        assert [many[0], many[2]] == [2, 3]
        assert isinstance(many[1], RuntimeError)
        assert await writer.submit_many([]) == []

    run(test, ledger)


def test_all_or_none(ledger: SqliteLedger) -> None:
    async def test(writer: Writer, gate: Gate) -> None:
        gate.let(10)
        assert await writer.submit_together([Note(), Note()]) == [1, 2]
        with pytest.raises(RuntimeError, match="poison"):
            await writer.submit_together([Note(), Poison(), Note()])
        assert await writer.submit(Note()) == 3

    run(test, ledger)


def test_a_commands_error_is_raised_to_its_own_caller(ledger: SqliteLedger) -> None:
    async def test(writer: Writer, gate: Gate) -> None:
        gate.let(10)
        results = await asyncio.gather(
            writer.submit(Note()), writer.submit(Poison()), writer.submit(Note()), return_exceptions=True
        )
        assert [results[0], results[2]] == [1, 2]
        assert isinstance(results[1], RuntimeError)

    run(test, ledger)


def test_a_kill_goes_before_everything_that_waits(ledger: SqliteLedger) -> None:
    async def test(writer: Writer, gate: Gate) -> None:
        first = asyncio.ensure_future(writer.submit(Note()))
        await started(gate, 1)
        waiting = [asyncio.ensure_future(writer.submit(Note())) for _ in range(3)]
        kill = asyncio.ensure_future(writer.submit_priority(Note("kill")))
        await ticks()
        gate.let(3)
        assert await asyncio.gather(first, kill, *waiting) == [1, 2, 3, 4, 5]

    assert run(test, ledger).batches == [(1, False), (1, True), (3, False)]


def test_a_full_queue_refuses_but_never_a_kill(ledger: SqliteLedger) -> None:
    async def test(writer: Writer, gate: Gate) -> None:
        first = asyncio.ensure_future(writer.submit(Note()))
        await started(gate, 1)
        waiting = [asyncio.ensure_future(writer.submit(Note())) for _ in range(4)]
        await ticks()
        with pytest.raises(LedgerUnavailable) as caught:
            await writer.submit(Note())
        assert caught.value.retry_after >= 1
        kill = asyncio.ensure_future(writer.submit_priority(Note()))
        gate.let(10)
        assert await asyncio.gather(first, kill, *waiting) == [1, 2, 3, 4, 5, 6]
        assert await writer.submit(Note()) == 7

    run(test, ledger, max_waiting=4)


def test_a_failing_store_fails_the_whole_batch_and_passes(ledger: SqliteLedger) -> None:
    async def test(writer: Writer, gate: Gate) -> None:
        gate.error = LedgerUnavailable("disk full")
        gate.let(1)
        results = await asyncio.gather(
            writer.submit(Note()), writer.submit_many([Note(), Note()]), return_exceptions=True
        )
        assert results == [gate.error, gate.error]
        gate.error = None
        gate.let(1)
        assert await writer.submit(Note()) == 1

    run(test, ledger)


def test_a_stop_is_told_once(ledger: SqliteLedger) -> None:
    told: list[Exception] = []

    async def test(writer: Writer, gate: Gate) -> None:
        gate.error = LedgerShrunk("rolled back")
        gate.let(2)
        for _ in range(2):
            with pytest.raises(LedgerShrunk):
                await writer.submit(Note())

    run(test, ledger, on_stop=told.append)
    assert [type(error) for error in told] == [LedgerShrunk]


def test_every_commit_is_told_with_its_head(ledger: SqliteLedger) -> None:
    told: list[tuple[int, list[Any]]] = []

    async def test(writer: Writer, gate: Gate) -> None:
        gate.let(10)
        await writer.submit_many([Note(), Note()])
        await writer.submit(Note())

    run(test, ledger, on_commit=lambda head, results: told.append((head.size, results)))
    assert told == [(3, [1, 2]), (4, [3])]


def test_closing_finishes_what_was_accepted_and_refuses_the_rest(ledger: SqliteLedger) -> None:
    async def test(writer: Writer, gate: Gate) -> None:
        accepted = [asyncio.ensure_future(writer.submit(Note())) for _ in range(3)]
        await started(gate, 1)
        accepted += [asyncio.ensure_future(writer.submit(Note())) for _ in range(3)]
        await ticks()
        closing = [asyncio.ensure_future(writer.close()) for _ in range(2)]
        await ticks()
        for submit in (writer.submit, writer.submit_priority):
            with pytest.raises(LedgerUnavailable, match="shutting down"):
                await submit(Note())
        gate.let(2)
        assert await asyncio.gather(*accepted) == [1, 2, 3, 4, 5, 6]
        await asyncio.gather(*closing)

    run(test, ledger)
    assert not [thread for thread in threading.enumerate() if thread.name == "ledger-writer"]


def test_who_gave_up_in_the_queue_is_not_written_and_who_gave_up_later_is(ledger: SqliteLedger) -> None:
    async def test(writer: Writer, gate: Gate) -> None:
        in_flight = asyncio.ensure_future(writer.submit(Note()))
        await started(gate, 1)
        waiting = asyncio.ensure_future(writer.submit(Note()))
        stays = asyncio.ensure_future(writer.submit(Note()))
        await ticks()
        in_flight.cancel()
        waiting.cancel()
        gate.let(2)
        assert await stays == 2

    run(test, ledger)
    assert count(ledger, "events") == 3


def test_a_loop_that_is_gone_does_not_hang_the_thread(made: Made, ledger: SqliteLedger) -> None:
    gate = Gate(ledger)
    loop = asyncio.new_event_loop()
    writer = Writer(ledger=gate, loop=loop)

    async def leave() -> None:
        task = asyncio.ensure_future(writer.submit(Note()))
        await started(gate, 1)
        task.cancel()

    loop.run_until_complete(leave())
    loop.run_until_complete(ticks())
    loop.close()
    gate.let(1)
    writer._thread.join(10)
    assert not writer._thread.is_alive()
    assert count(ledger, "events") == 2


def test_a_disk_is_slow_when_none_of_the_last_commits_was_quick(ledger: SqliteLedger):
    async def main(writer: Writer, gate: Gate) -> None:
        gate.let(100)
        gate.synced_s = 0.004
        for _ in range(7):
            await writer.submit(Note())
        assert not writer.on_slow_disk
        await writer.submit(Note())
        assert writer.on_slow_disk
        gate.synced_s = 0.0002
        await writer.submit(Note())
        assert not writer.on_slow_disk

    run(main, ledger)


def test_a_commit_says_how_long_its_disk_took(ledger: SqliteLedger):
    ledger.commit([Note()])
    assert ledger.synced_s > 0
