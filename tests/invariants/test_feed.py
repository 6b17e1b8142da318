"""The feed when reading or writing the ledger fails or stands still: no kill is skipped, and no heartbeat vouches for a
kill that its listener was not told of.
"""

import asyncio
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import orjson
import pytest

from broker.ledger import LedgerUnavailable
from broker.ledger.commands.kills import Kill, Killed
from broker.ledger.sqlite import SqliteLedger
from broker.ledger.writer import Writer
from broker.model import Selector, Target
from broker.web import feed as module
from broker.web.feed import Feed, Listener
from broker.wire import Cursor

NUMBERS = itertools.count()


class Flaky:
    """A ledger whose next reads fail, as many as one says."""

    def __init__(self, ledger: SqliteLedger) -> None:
        self._ledger = ledger
        self.failing = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    @contextmanager
    def read(self) -> Iterator[Any]:
        if self.failing:
            self.failing -= 1
            raise LedgerUnavailable("injected")
        with self._ledger.read() as r:
            yield r


class Followed:
    """A feed with one listener; kills are committed as another process would."""

    def __init__(self, path: Path) -> None:
        SqliteLedger.create(path, now=lambda: 1_000, origin="test")
        self.ledger = Flaky(SqliteLedger.open(path, now=lambda: 1_000))
        self.elsewhere = SqliteLedger.open(path, now=lambda: 1_000)
        self.writer = Writer(ledger=self.ledger, loop=asyncio.get_running_loop())
        self.feed = Feed(ledger=self.ledger, writer=self.writer, now=lambda: 1_000)

    async def __aenter__(self) -> Self:
        await self.feed.start()
        self.listener = self.connect("first")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.feed.stop()
        await self.writer.close()
        self.ledger.close()
        self.elsewhere.close()

    def connect(self, instance: str, cursor: Cursor | None = None) -> Listener:
        return self.feed.connect(instance=instance, verifier="billing", stamp=0, cursor=cursor, hello={})

    def kill(self) -> int:
        command = Kill(selector=Selector(Target.ALL), reason="r", actor="o", hold=False, registry_hash="")
        (killed,) = self.elsewhere.commit([command])
        assert isinstance(killed, Killed)
        return killed.seq


async def next_of(listener: Listener, name: str, *, within_s: float = 5) -> dict[str, Any]:
    """The next event of this name; whatever comes before it is passed over."""
    async with asyncio.timeout(within_s):
        while True:
            event = await listener.events.get()
            assert event is not None
            if event.startswith(f"event: {name}\n".encode()):
                body: dict[str, Any] = orjson.loads(event.split(b"data: ", 1)[1])
                return body


def run(scenario: Callable[[Followed], Awaitable[None]], path: Path) -> None:
    async def play() -> None:
        async with Followed(path / f"{next(NUMBERS)}.db") as followed:
            await scenario(followed)

    asyncio.run(play())


def test_a_kill_that_could_not_be_read_at_first_is_sent_once_it_can(tmp_path: Path) -> None:
    async def scenario(followed: Followed) -> None:
        followed.ledger.failing = 3
        position = followed.kill()
        assert (await next_of(followed.listener, "kill"))["seq"] == position

    run(scenario, tmp_path)


def test_a_heartbeat_comes_after_the_kills_it_vouches_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_S", 60)  # nothing but the heartbeat looks
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.05)

    async def scenario(followed: Followed) -> None:
        await next_of(followed.listener, "heartbeat")
        await asyncio.sleep(0)
        position, told = followed.kill(), -1
        async with asyncio.timeout(5):
            while True:
                event = await followed.listener.events.get()
                assert event is not None
                body = orjson.loads(event.split(b"data: ", 1)[1])
                if event.startswith(b"event: kill"):
                    told = body["seq"]
                elif event.startswith(b"event: heartbeat") and body["position"] >= position:
                    assert told == position
                    return

    run(scenario, tmp_path)


def test_heartbeats_come_in_turns_and_none_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.05)
    send, rounds, crowd = Listener.send, 4, 2 * module.TURNS + 4

    async def scenario(followed: Followed) -> None:
        listeners = [followed.listener, *(followed.connect(f"{n:08}") for n in range(crowd - 1))]
        told: list[str] = []
        enough = asyncio.Event()

        def recorded(listener: Listener, event: bytes) -> None:
            assert event.startswith(b"event: heartbeat")
            told.append(listener.instance)
            if len(told) == rounds * crowd:
                enough.set()
            send(listener, event)

        monkeypatch.setattr(Listener, "send", recorded)
        followed.ledger.failing = 2  # a turn that could not be read for comes again
        async with asyncio.timeout(5):
            await enough.wait()
        everyone = {listener.instance for listener in listeners}
        assert all(set(told[n * crowd : (n + 1) * crowd]) == everyone for n in range(rounds))
        assert max(Counter(listener.turn for listener in listeners).values()) == 3

    run(scenario, tmp_path)


def test_heartbeats_go_on_while_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.05)

    async def scenario(followed: Followed) -> None:
        written = asyncio.Event()

        async def stuck(command: object) -> None:
            await written.wait()

        monkeypatch.setattr(followed.writer, "submit", stuck)
        for _ in range(5):
            await next_of(followed.listener, "heartbeat", within_s=1)
        written.set()

    run(scenario, tmp_path)


def test_there_is_no_gap_between_two_connections(tmp_path: Path) -> None:
    async def scenario(followed: Followed) -> None:
        first = followed.kill()
        seen = await next_of(followed.listener, "kill")
        epoch = followed.elsewhere.head.epoch
        missed = [followed.kill() for _ in range(3)]
        again = followed.connect("first", Cursor(epoch, seen["seq"]))
        later = followed.kill()
        assert seen["seq"] == first
        expected = [*missed, later]
        while expected:  # twice is no harm, out of order and never is
            position = (await next_of(again, "kill"))["seq"]
            assert position in missed or position == expected[0]
            if position == expected[0]:
                expected.pop(0)

    run(scenario, tmp_path)


def test_another_epoch_or_the_future_gets_a_snapshot(tmp_path: Path) -> None:
    async def scenario(followed: Followed) -> None:
        position, epoch = followed.kill(), followed.elsewhere.head.epoch
        for cursor in (None, Cursor("0" * 8, position), Cursor(epoch, position + 1_000)):
            snapshot = await next_of(followed.connect("first", cursor), "snapshot")
            assert [kill["seq"] for kill in snapshot["kills"]] == [position]

    run(scenario, tmp_path)
