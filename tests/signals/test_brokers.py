"""Two brokers on one ledger, woken by Redis: and what they do when it is gone."""

import asyncio
import time
from collections.abc import Iterator

import pytest
from pydantic import SecretStr

from broker.sections import SignalsSection
from broker.signals.redis import RedisSignals
from broker.web import feed as feed_module
from broker.web.feed import Listener
from tests.kit import Broker, Home
from tests.signals.servers import RedisServer, redis_or_skip

PATIENT_S = 30.0


@pytest.fixture
def server(tmp_path) -> Iterator[RedisServer]:
    made = redis_or_skip(tmp_path)
    yield made
    made.close()


def use(home: Home, server: RedisServer) -> None:
    section = SignalsSection(url=SecretStr(server.url))
    home.config = home.config.model_copy(update={"signals": section})


def connected(broker: Broker) -> Listener:
    """A verifier's stream at this broker, once its greeting is read."""
    feed = broker.process.feed
    assert feed is not None

    async def connect() -> Listener:
        listener = feed.connect(instance="i-1", verifier="invoice-service", stamp=None, cursor=None, hello={})
        while not listener.events.empty():
            listener.events.get_nowait()
        return listener

    return broker.run(connect())


async def _kill_event(listener: Listener) -> bytes:
    while True:
        event = await listener.events.get()
        if event is not None and event.startswith(b"event: kill"):
            return event


def seconds_until_told(here: Broker, there: Broker, listener: Listener) -> float:
    """A kill here; how long until the listener there hears of it."""

    async def kill_here() -> None:
        answer = await here.ask(
            "POST",
            "/v1/kills",
            bearer=here.home.operator(),
            json={"target": "agent", "value": "dispute-bot", "reason": "test", "hold": False},
        )
        assert answer.status_code == 201, answer.text

    async def both_loops() -> float:
        loop = asyncio.get_running_loop()
        began = time.monotonic()
        killed = loop.run_in_executor(None, here.run, kill_here())
        async with asyncio.timeout(10):
            await _kill_event(listener)
        took = time.monotonic() - began
        await killed
        return took

    return there.run(both_loops())


def test_a_kill_here_wakes_the_feed_there(home, start, server, monkeypatch):
    use(home, server)
    here, there = start(), start()
    listener = connected(there)
    signals = there.process.feed._tell.__self__
    assert isinstance(signals, RedisSignals)

    async def listening() -> None:
        async with asyncio.timeout(5):
            while not signals.connected:  # noqa: ASYNC110  (it has no event)
                await asyncio.sleep(0.01)

    there.run(listening())
    monkeypatch.setattr(
        feed_module, "POLL_S", PATIENT_S
    )  # by itself it would look in half a minute, or with a heartbeat
    monkeypatch.setattr(feed_module, "HEARTBEAT_S", PATIENT_S)
    there.run(asyncio.sleep(0.1))
    assert seconds_until_told(here, there, listener) < 5


def test_without_redis_the_feed_there_looks_by_itself(home, start, server):
    use(home, server)
    here, there = start(), start()
    listener = connected(there)
    server.stop()
    assert seconds_until_told(here, there, listener) < 1
