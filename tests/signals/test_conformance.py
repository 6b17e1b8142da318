"""What every implementation of the signals does, for two brokers of one ledger."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pytest

from broker.signals import Signals
from broker.signals.memory import Hub, MemorySignals
from broker.signals.redis import RedisPlace, RedisSignals
from tests.signals.servers import RedisServer, redis_or_skip

SOON_S = 5.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    made = redis_or_skip(tmp_path_factory.mktemp("redis"))
    yield made
    made.close()


@pytest.fixture(params=["memory", "redis"])
def make(request: pytest.FixtureRequest) -> Callable[[], Signals]:
    """Makes one broker's signals."""
    if request.param == "memory":
        hub = Hub()
        return lambda: MemorySignals(hub=hub)
    url = request.getfixturevalue("server").url
    ledger = request.node.name
    return lambda: RedisSignals(RedisPlace(url), ledger=ledger)


class Ear:
    """Hears wake-ups."""

    def __init__(self) -> None:
        self.heard = asyncio.Event()

    def __call__(self) -> None:
        self.heard.set()

    async def woken(self, within_s: float = SOON_S) -> bool:
        try:
            async with asyncio.timeout(within_s):
                await self.heard.wait()
        except TimeoutError:
            return False
        self.heard.clear()
        return True


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON_S):
        while not done():  # noqa: ASYNC110  (what is waited for has no event)
            await asyncio.sleep(0.005)


async def listening(signals: Signals, ear: Ear) -> None:
    """Start it, and wait until it can be heard."""
    await signals.start(ear)
    if isinstance(signals, RedisSignals):
        assert await ear.woken(), "whoever begins to listen looks once"


def two(make: Callable[[], Signals], test: Callable[[Signals, Signals, Ear, Ear], Awaitable[None]]) -> None:
    async def run() -> None:
        a, b, at_a, at_b = make(), make(), Ear(), Ear()
        await listening(a, at_a)
        await listening(b, at_b)
        try:
            await test(a, b, at_a, at_b)
        finally:
            await a.close()
            await b.close()
            await b.close()

    asyncio.run(run())


def test_who_is_told_looks_and_who_tells_need_not(make):
    async def test(a, b, at_a, at_b):
        a.tell(7)
        assert await at_b.woken()
        b.tell(8)
        assert await at_a.woken()

    two(make, test)


def test_many_positions_wake_at_least_once(make):
    async def test(a, b, at_a, at_b):
        for position in range(500):
            a.tell(position)
        assert await at_b.woken()

    two(make, test)


def test_counts_are_of_everybody(make):
    async def test(a, b, at_a, at_b):
        for _ in range(5):
            a.count("failed:192.0.2.1")
            b.count("failed:192.0.2.1")
            b.count("failed:192.0.2.2")
        counted = []
        await until(lambda: counted.append(a.count("failed:192.0.2.1")) or counted[-1] > 10)
        assert b.count("failed:192.0.2.3") <= 1

    two(make, test)


def test_who_does_not_want_to_know_counts_all_the_same(make):
    async def run():
        deaf, other, ear = make(), make(), Ear()
        await deaf.start(None)
        await listening(other, ear)
        other.tell(3)
        await until(lambda: deaf.count("failed:192.0.2.4") > 1)
        deaf.tell(4)
        assert await ear.woken()
        await deaf.close()
        await other.close()

    asyncio.run(run())


def test_one_that_was_never_started_can_be_used_and_closed(make):
    async def run():
        signals = make()
        signals.tell(1)
        assert signals.count("failed:192.0.2.5") <= 1
        await signals.close()

    asyncio.run(run())
