"""Vault behind the whole broker: leases and sessions that end, a receipt that says so, and no secret kept."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.issuers import vault as kit
from tests.kit import Broker
from tests.service.test_configured_issuers import Configured, ask

pytestmark = pytest.mark.bao


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kit.Site]:
    made = kit.Site(tmp_path_factory.mktemp("vault"))
    yield made
    made.close()


def started(site: kit.Site, place: Path, settings: str) -> Broker:
    section = (
        f'kind = "vault"\naddress = "{site.bao.address}"\nlogin = "token"\nlogin_file = "{site.token_file}"\n'
        f'admins = {{ orders = "file:{site.admin_file}" }}'
    )
    return Configured(place / "broker", section, settings).start()


@pytest.fixture
def broker(site: kit.Site, tmp_path: Path) -> Iterator[Broker]:
    running = started(site, tmp_path, "{path: database/creds/readonly, admin: orders}")
    yield running
    running.close()


def settle(broker: Broker) -> None:
    broker.run(broker.process.reconciler.settle())


def test_a_kill_ends_every_lease_and_every_session_and_the_receipt_says_so(site: kit.Site, broker: Broker) -> None:
    task = broker.open_task("data-bot")
    bodies = [ask(broker, task=task, ttl_seconds=60).json() for _ in range(5)]
    renewal = broker.post(f"/v1/credentials/{bodies[0]['id']}/renew", {"ttl_seconds": 300}, by="data-bot")
    assert renewal.json()["expires_at"] > bodies[0]["expires_at"], renewal.text
    names = {body["values"]["username"] for body in bodies}
    assert names <= site.roles()
    session = site.connect(bodies[0]["values"])
    kill = broker.kill("agent", "data-bot").json()
    settle(broker)
    receipt = broker.get(f"/v1/kills/{kill['id']}", by="operator").json()["external"]
    assert (receipt["made"], receipt["confirmed"], receipt["complete"]) == (5, 5, True)
    with pytest.raises(psycopg.OperationalError):
        session.execute("SELECT 1")
    assert not names & site.roles()
    assert site.bao.leases("database/creds/readonly") == []
    sessions = [
        site.bao.ask("POST", "auth/token/lookup-accessor", {"accessor": a})["data"] for a in site.bao.accessors()
    ]
    assert not [each for each in sessions if (each["meta"] or {}).get("task") == task]


def test_the_end_of_a_grant_leaves_the_others_of_its_task(site: kit.Site, broker: Broker) -> None:
    task = broker.open_task("data-bot")
    one, two = (ask(broker, task=task).json() for _ in range(2))
    broker.kill("grant", one["id"])
    settle(broker)
    assert one["values"]["username"] not in site.roles()
    site.connect(two["values"]).close()
    broker.kill("task", task)
    settle(broker)
    assert two["values"]["username"] not in site.roles()


def test_what_was_issued_before_a_restart_is_ended_after_it(site: kit.Site, tmp_path: Path) -> None:
    broker = started(site, tmp_path, "{path: database/creds/readonly}")
    body = ask(broker, task=broker.open_task("data-bot")).json()
    home = broker.home
    broker.close()
    again = Broker(home)
    try:
        again.kill("agent", "data-bot")
        settle(again)
        assert body["values"]["username"] not in site.roles()
    finally:
        again.close()


def test_a_static_value_is_reported_as_one(site: kit.Site, tmp_path: Path) -> None:
    broker = started(site, tmp_path, "{path: secret/data/mail, kv: 2}")
    try:
        body = ask(broker).json()
        assert body["values"]["password"] == "s3cret-kv-two"
        assert body["ending"] == "expires-only"
        kill = broker.kill("grant", body["id"]).json()
        settle(broker)
        receipt = broker.get(f"/v1/kills/{kill['id']}", by="operator").json()["external"]
        assert (receipt["expires_only"], receipt["confirmed"]) == (1, 0)
        assert not [
            path for path in broker.home.path.rglob("*") if path.is_file() and b"s3cret-kv" in path.read_bytes()
        ]
    finally:
        broker.close()
