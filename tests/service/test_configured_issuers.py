"""Issuers as `taskpass.toml` names them, behind the whole broker: a PostgreSQL login that works until it is killed, a
certificate that says it cannot be; and what is wrong in a configuration or a registry is said at once.
"""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from broker.config import load_config
from broker.errors import ConfigurationInvalid
from broker.stores import wall_clock
from tests.issuers.postgres_harness import ADMIN_PASSWORD, a_server, valid_until
from tests.issuers.x509_harness import write_authority
from tests.kit import Broker, Home, on_postgres
from tests.postgres import Server
from tests.service.memory_backend import register


class Configured:
    """A broker whose one issuer stands in its configuration under the name `memory`, as the registry knows it."""

    def __init__(self, path: Path, issuer: str, settings: str) -> None:
        self.home = Home(path, clock=wall_clock)
        register(self.home)
        self.home.replace("registry/resources.yaml", "settings: {template: reader}", f"settings: {settings}")
        self.home.append("taskpass.toml", f"\n[issuers.memory]\n{issuer}\n")
        self.home.config = on_postgres(load_config(path / "taskpass.toml"))

    def start(self) -> Broker:
        return Broker(self.home)


def ask(broker: Broker, **changes: Any) -> Any:
    body = {"resource": "orders-db", "actions": ["orders:read"], **changes}
    return broker.post("/v1/credentials", body, by="data-bot")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = a_server(fsync="off")
    yield server
    server.close()


def test_a_login_works_until_it_is_killed(tmp_path: Path, server: Server):
    (tmp_path / "admin").write_text(ADMIN_PASSWORD)
    section = (
        f'kind = "postgres"\ndsn = "postgresql://tp_admin@127.0.0.1:{server.port}/app"\n'
        f'password_file = "{tmp_path / "admin"}"\n'
    )
    broker = Configured(tmp_path / "broker", section, "{roles: app_read}").start()
    try:
        task = broker.open_task("data-bot")
        first, second = (ask(broker, task=task, ttl_seconds=60).json() for _ in range(2))
        renewed = broker.post(f"/v1/credentials/{second['id']}/renew", {"ttl_seconds": 300}, by="data-bot").json()
        until = valid_until(server, second["values"]["username"])
        assert until == datetime.fromisoformat(renewed["expires_at"]).timestamp()
        assert until > datetime.fromisoformat(second["expires_at"]).timestamp() + 200
        with psycopg.connect(second["values"]["uri"]) as session:
            assert session.execute("SELECT count(*) FROM app_table").fetchone() == (0,)
            kill = broker.kill("task", task).json()
            broker.run(broker.process.reconciler.settle())
            with pytest.raises(psycopg.OperationalError):
                session.execute("SELECT 1")
        receipt = broker.get(f"/v1/kills/{kill['id']}", by="operator").json()["external"]
        assert (receipt["made"], receipt["confirmed"], receipt["complete"]) == (2, 2, True)
        for body in (first, second):
            with pytest.raises(psycopg.OperationalError):
                psycopg.connect(body["values"]["uri"])
        assert server.run("SELECT 1 FROM pg_roles WHERE rolname LIKE 'tp\\_%\\_%'") == []
    finally:
        broker.close()


def test_a_certificate_says_that_it_cannot_be_taken_back(tmp_path: Path):
    section = write_authority(tmp_path / "ca")
    lines = "\n".join(['kind = "x509"', *(f'{name} = "{value}"' for name, value in section.items())])
    broker = Configured(tmp_path / "broker", lines, "{}").start()
    try:
        body = ask(broker, ttl_seconds=120).json()
        assert body["ending"] == "expires-only"
        assert body["expires_at"] in body["note"]
        kill = broker.kill("grant", body["id"]).json()
        broker.run(broker.process.reconciler.settle())
        receipt = broker.get(f"/v1/kills/{kill['id']}", by="operator").json()["external"]
        assert (receipt["expires_only"], receipt["confirmed"], receipt["complete"]) == (1, 0, True)
        assert receipt["expires_only_until"]
    finally:
        broker.close()


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ('kind = "postgres"', "'dsn' is missing"),
        ('kind = "postgres"\ndsn = "postgresql://a@b/c"\nsurprise = 1', "'surprise' is no setting"),
        ('kind = "x509"\nsurprise = "y"', "'surprise' is no setting"),
        ('kind = "vault"\naddress = "https://vault.example.com"', "login must be"),
        ('kind = "github_app"\nsurprise = 1', "surprise"),
        ('kind = "aws_sts"\nsurprise = 1', "surprise"),
    ],
)
def test_a_wrong_option_is_named(tmp_path: Path, section: str, sentence: str):
    configured = Configured(tmp_path, section, "{}")
    with pytest.raises(ConfigurationInvalid) as refused:
        configured.start()
    assert "issuers.memory" in str(refused.value)
    assert sentence in str(refused.value)


def test_a_kind_that_there_is_not(tmp_path: Path):
    with pytest.raises(ConfigurationInvalid, match="kind"):
        Configured(tmp_path, 'kind = "bottle"', "{}")


def test_settings_are_checked_with_the_registry(tmp_path: Path):
    lines = "\n".join(['kind = "x509"', *(f'{k} = "{v}"' for k, v in write_authority(tmp_path / "ca").items())])
    configured = Configured(tmp_path / "broker", lines, "{surprise: 1}")
    with pytest.raises(ConfigurationInvalid, match="resource orders-db: settings: 'surprise'"):
        configured.start()
    configured.home.replace("registry/resources.yaml", "settings: {surprise: 1}", "settings: {}")
    configured.home.replace("registry/resources.yaml", "issuer: memory", "issuer: memmory")
    with pytest.raises(ConfigurationInvalid, match="no issuer memmory is configured"):
        configured.start()
    configured.home.replace("registry/resources.yaml", "issuer: memmory", "issuer: access_token")
    configured.home.replace("registry/resources.yaml", "settings: {}", "settings: {path: /x}")
    with pytest.raises(ConfigurationInvalid, match="access tokens have none"):
        configured.start()
