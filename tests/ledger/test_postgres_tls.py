"""PostgreSQL across a network: warned of without TLS, and with it as strict as the URL says."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from structlog.testing import capture_logs

from broker.ledger import LedgerUnavailable
from broker.ledger.postgres import PostgresLedger
from broker.sections import LedgerSection
from broker.stores import create
from tests.kit import Broker, Home
from tests.ledger.postgres import PostgresMade
from tests.postgres import Server, server_or_skip
from tests.tls import Tls

NETWORK = "0.0.0.0"  # reaches this machine, and is no loopback address: all that a client can see of a network


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return Tls(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def server(tls: Tls) -> Iterator[Server]:
    """It takes TLS as `localhost`, and does without."""
    server = server_or_skip()
    data = server.place / "data"
    for source, name in zip(tls.files("localhost"), ("server.crt", "server.key"), strict=True):
        shutil.copyfile(source, data / name)
        (data / name).chmod(0o600)
        os.chown(data / name, data.stat().st_uid, data.stat().st_gid)
    switch(server, on=True)
    yield server
    server.close()


def switch(server: Server, *, on: bool) -> None:
    """TLS, from now on."""
    server.run(f"ALTER SYSTEM SET ssl = {'on' if on else 'off'}")
    server.run("SELECT pg_reload_conf()")
    deadline = time.monotonic() + 10
    while _takes_tls(server) is not on:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _takes_tls(server: Server) -> bool:
    try:
        psycopg.connect(f"{server.url()}?sslmode=require").close()
    except psycopg.OperationalError:
        return False
    return True


@pytest.fixture
def made(server: Server) -> Iterator[PostgresMade]:
    made = PostgresMade(server)
    yield made
    made.close()


def at(made: PostgresMade, host: str, query: str) -> str:
    return f"{made.url.replace('127.0.0.1', host)}?{query}"


def test_a_network_without_tls_is_a_concern(made: PostgresMade) -> None:
    (concern,) = made.open(url=at(made, NETWORK, "sslmode=disable")).concerns
    assert "without TLS" in concern
    assert made.open(url=at(made, NETWORK, "sslmode=require")).concerns == []
    assert made.open(url=at(made, "127.0.0.1", "sslmode=disable")).concerns == []


def test_a_broker_says_so_when_it_starts(server: Server, home: Home, start: Callable[..., Broker]) -> None:
    url = server.url(server.new_database()).replace("127.0.0.1", NETWORK)
    section = {"url": f"{url}?sslmode=disable", "state_path": home.path / "state", "origin": home.config.ledger.origin}
    home.config = home.config.model_copy(update={"ledger": LedgerSection.model_validate(section)})
    create(home.config, now=home.clock)
    with capture_logs() as logs:
        start()
    (why,) = (line["why"] for line in logs if line["event"] == "ledger_in_danger")
    assert "sslmode=verify-full" in why


def test_the_certificate_is_checked_as_the_url_says(made: PostgresMade, tls: Tls, tmp_path: Path) -> None:
    ours, another = tls.ca_file, Tls(tmp_path).ca_file
    ledger = made.open(url=at(made, "localhost", f"sslmode=verify-full&sslrootcert={ours}"))
    assert ledger.head.size == 1
    for host, query in (
        ("localhost", f"sslmode=verify-full&sslrootcert={another}"),
        ("localhost", f"sslmode=verify-ca&sslrootcert={another}"),
        ("127.0.0.1", f"sslmode=verify-full&sslrootcert={ours}"),
    ):
        with pytest.raises(LedgerUnavailable) as caught:
            PostgresLedger.open(at(made, host, query))
        assert "certificate" in str(caught.value.internal)


def test_tls_that_is_asked_for_is_never_done_without(made: PostgresMade) -> None:
    switch(made.server, on=False)
    with pytest.raises(LedgerUnavailable) as caught:
        PostgresLedger.open(at(made, "localhost", "sslmode=require"))
    assert "does not support SSL" in str(caught.value.internal)
    switch(made.server, on=True)
    assert made.open(url=at(made, "localhost", "sslmode=require")).head.size == 1
