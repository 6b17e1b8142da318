"""Redis fails in every way that it has: signals come back by themselves, and nobody waits for them meanwhile."""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Iterator

import pytest

from broker.config import SignalsSection
from broker.errors import ConfigurationInvalid
from broker.signals import redis as module
from broker.signals.redis import RedisPlace, RedisSignals
from broker.stores import signals_of
from tests.kit import Home
from tests.signals.servers import LIES, RedisServer, liar, redis_or_skip
from tests.signals.test_conformance import Ear, until

NAME = "failed:192.0.2.1"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rules in less time."""
    monkeypatch.setattr(module, "REPLY_S", 0.2)
    monkeypatch.setattr(module, "PING_S", 0.2)
    monkeypatch.setattr(module, "PAUSE_S", (0.02, 0.1))


@pytest.fixture
def server(tmp_path) -> Iterator[RedisServer]:
    made = redis_or_skip(tmp_path)
    yield made
    made.close()


def two(server: RedisServer, test: Callable[[RedisSignals, RedisSignals, Ear], Awaitable[None]]) -> None:
    async def run() -> None:
        a, b = (RedisSignals(RedisPlace(server.url), ledger="faults") for _ in range(2))
        ear = Ear()
        await a.start(None)
        await b.start(ear)
        try:
            await until(lambda: b.connected)
            assert await ear.woken()
            await test(a, b, ear)
        finally:
            await a.close()
            await b.close()

    asyncio.run(run())


async def told_again(a: RedisSignals, ear: Ear) -> None:
    """Before long a telling wakes again."""
    position = 1000
    async with asyncio.timeout(10):
        while True:
            a.tell(position)
            position += 1
            if await ear.woken(0.1):
                return


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart(server, how):
    async def test(a, b, ear):
        await asyncio.to_thread(server.stop, how)
        a.tell(1)
        a.count(NAME)
        await until(lambda: not b.connected)
        await until(lambda: a.lost and b.lost)
        await asyncio.to_thread(server.start)
        await until(lambda: b.connected)
        await until(lambda: not (a.lost or b.lost))
        assert await ear.woken(), "what was told meanwhile was not heard, so it looks"
        await told_again(a, ear)

    two(server, test)


def test_everything_flushed(server):
    async def test(a, b, ear):
        counted = []
        await until(lambda: counted.append(a.count(NAME)) or counted[-1] > 5)
        await asyncio.to_thread(server.ask, "FLUSHALL")
        await until(lambda: 0 < a.count(NAME) <= 5)
        a.tell(1)
        assert await ear.woken()

    two(server, test)


def test_a_black_hole(server):
    async def test(a, b, ear):
        server.freeze()
        before = time.monotonic()
        for position in range(1000):
            a.tell(position)
            a.count(f"{NAME}{position}")
        assert time.monotonic() - before < 0.2, "whoever tells and counts waits for nothing"
        await until(lambda: not b.connected)
        await until(lambda: a.lost and b.lost)
        server.thaw()
        await until(lambda: b.connected)
        await until(lambda: not (a.lost or b.lost))
        await told_again(a, ear)

    two(server, test)


def test_no_memory_left(server):
    async def test(a, b, ear):
        counted = []
        await until(lambda: counted.append(a.count(NAME)) or counted[-1] > 5)
        await asyncio.to_thread(server.ask, "CONFIG", "SET", "maxmemory", "1")
        a.tell(1)
        assert await ear.woken()
        await until(lambda: a.count(NAME) == 0)
        await asyncio.to_thread(server.ask, "CONFIG", "SET", "maxmemory", "0")
        await until(lambda: a.count(NAME) > 0)

    two(server, test)


def test_a_replica_that_takes_nothing_and_is_then_promoted_with_old_counts(server, tmp_path):
    (tmp_path / "replica").mkdir()
    replica = redis_or_skip(tmp_path / "replica")

    async def test(a, b, ear):
        counted = []
        await asyncio.to_thread(replica.ask, "REPLICAOF", "127.0.0.1", str(server.port))
        await until(lambda: counted.append(a.count(NAME)) or counted[-1] == 0)  # it takes no writes
        await asyncio.to_thread(server.stop, signal.SIGKILL)
        await asyncio.to_thread(replica.ask, "REPLICAOF", "NO", "ONE")
        await until(lambda: a.count(NAME) > 0)
        await told_again(a, ear)

    try:
        two(replica, test)
    finally:
        replica.close()


@pytest.mark.parametrize("lie", LIES)
def test_lies_wake_at_most_so_often_and_stop_nobody(lie):
    woken = []

    async def run():
        with liar(lie) as server:
            signals = RedisSignals(RedisPlace(server.url), ledger="lies")
            await signals.start(lambda: woken.append(time.monotonic()))
            slowest, end = 0.0, time.monotonic() + 0.7
            while time.monotonic() < end:
                before = time.monotonic()
                signals.tell(int(before * 1000))
                assert 0 <= signals.count(NAME) <= 1 << 53
                await asyncio.sleep(0.001)
                slowest = max(slowest, time.monotonic() - before)
            assert server.asked
            before = time.monotonic()
            await signals.close()
            assert time.monotonic() - before < 2
            return slowest

    slowest = asyncio.run(run())
    assert slowest < 0.5, "the event loop goes on"
    assert len(woken) <= 0.7 / 0.005 + 10


def test_nobody_there():
    async def run():
        signals = RedisSignals(RedisPlace("redis://127.0.0.1:1/0"), ledger="nobody")
        await signals.start(lambda: None)
        signals.tell(1)
        assert signals.count(NAME) == 0
        await asyncio.sleep(0.1)
        await signals.close()

    asyncio.run(run())


# --- Configuration ----------------------------------------------------------------------------------------------------


def test_the_password_is_asked_for_and_given(server, tmp_path, home: Home):
    server.ask("CONFIG", "SET", "requirepass", "opensesame")
    file = tmp_path / "password"
    file.write_text("opensesame\n")
    file.chmod(0o600)

    def made(**given: object) -> RedisSignals:
        section = SignalsSection.model_validate({"url": server.url, **given})
        signals = signals_of(home.config.model_copy(update={"signals": section}))
        assert isinstance(signals, RedisSignals)
        return signals

    async def connects(signals: RedisSignals) -> bool:
        await signals.start(lambda: None)
        try:
            async with asyncio.timeout(0.5):
                await until(lambda: signals.connected)
        except TimeoutError:
            return False
        finally:
            await signals.close()
        return True

    assert not asyncio.run(connects(made()))
    assert asyncio.run(connects(made(password_file=file)))
    assert asyncio.run(connects(made(password="opensesame")))
    assert asyncio.run(connects(made(url=server.url.replace("//", "//:opensesame@"))))
    file.chmod(0o644)
    with pytest.raises(ConfigurationInvalid, match="chmod 600"):
        made(password_file=file)


@pytest.mark.parametrize(
    "given",
    [
        {"url": "http://127.0.0.1/0"},
        {"url": "redis:///0"},
        {"url": "redis://h/0?socket_timeout=100"},
        {"url": "redis://:a@h/0", "password": "b"},
        {"password": "b"},
        {"url": "redis://h/0", "password": "b", "password_file": "c"},
    ],
)
def test_what_cannot_be_meant_is_refused(given):
    with pytest.raises(ValueError, match=r"signals|url|password"):
        SignalsSection.model_validate(given)
