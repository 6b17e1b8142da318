"""Redis behind TLS (`rediss://`), by the real server: spoken to only where its certificate is the right one."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from structlog.testing import capture_logs

from broker.config import SignalsSection
from broker.signals import redis as module
from broker.signals.redis import RedisSignals
from broker.stores import signals_of
from demo.ports import free_port
from tests.kit import Home
from tests.signals.servers import redis_or_skip
from tests.signals.test_conformance import Ear, until
from tests.tls import Tls

NAME = "failed:192.0.2.1"
STAYS_AWAY_S = 0.7


class Ports(NamedTuple):
    """Of one server."""

    tls: int
    plain: int


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return Tls(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory, tls: Tls) -> Iterator[dict[str, Ports]]:
    """Of a server with a certificate for `localhost`, and of one with another's."""
    servers, found = [], {}
    for host in ("localhost", "elsewhere.test"):
        secure = free_port()
        certificate, key = map(str, tls.files(host))
        options = ["--tls-port", str(secure), "--tls-cert-file", certificate, "--tls-key-file", key]
        options += ["--tls-ca-cert-file", tls.ca_file, "--tls-auth-clients", "no"]
        servers.append(redis_or_skip(tmp_path_factory.mktemp("redis"), *options))
        found[host] = Ports(secure, servers[-1].port)
    yield found
    for server in servers:
        server.close()


def signals_at(home: Home, url: str, ca_file: str | None) -> RedisSignals:
    """As the broker makes them from its configuration."""
    section = SignalsSection.model_validate({"url": url, "ca_file": ca_file})
    signals = signals_of(home.config.model_copy(update={"signals": section}))
    assert isinstance(signals, RedisSignals)
    return signals


def test_brokers_hear_each_other_through_tls(home: Home, ports: dict[str, Ports], tls: Tls) -> None:
    async def run() -> None:
        a, b = (signals_at(home, f"rediss://localhost:{ports['localhost'].tls}/0", tls.ca_file) for _ in range(2))
        ear, counted = Ear(), [0]
        await a.start(None)
        await b.start(ear)
        try:
            assert await ear.woken(), "it listens, and looks once"
            a.tell(7)
            assert await ear.woken()
            b.count(NAME)
            await until(lambda: counted.append(a.count(NAME)) or counted[-1] > 2)
        finally:
            await a.close()
            await b.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("scheme", "certified", "port", "authority"),
    [
        ("rediss", "localhost", "tls", "another"),
        ("rediss", "localhost", "tls", "the system's"),
        ("rediss", "elsewhere.test", "tls", "ours"),
        ("rediss", "localhost", "plain", "ours"),
        ("redis", "localhost", "tls", "none"),
    ],
)
def test_a_server_that_is_not_the_one_meant_is_told_nothing(
    home: Home, ports: dict[str, Ports], tls: Tls, tmp_path: Path, monkeypatch, scheme, certified, port, authority
) -> None:
    monkeypatch.setattr(module, "REPLY_S", 0.3)
    monkeypatch.setattr(module, "PAUSE_S", (0.02, 0.1))
    ca_file = {"ours": tls.ca_file, "another": Tls(tmp_path).ca_file}.get(authority)
    there = ports[certified]

    async def run() -> None:
        signals = signals_at(home, f"{scheme}://localhost:{getattr(there, port)}/0", ca_file)
        inside, ear = signals_at(home, f"redis://localhost:{there.plain}/0", None), Ear()
        await signals.start(lambda: None)
        await inside.start(ear)
        try:
            assert await ear.woken(), "it listens, and looks once"
            signals.tell(9)
            assert not await ear.woken(STAYS_AWAY_S)
            assert not signals.connected
            assert signals.count(NAME) == 0
        finally:
            await signals.close()
            await inside.close()

    with capture_logs() as logs:
        asyncio.run(run())
    assert {line["part"] for line in logs if line["event"] == "signals_lost"} == {"_send", "_listen"}
