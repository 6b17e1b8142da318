"""The main job through the front door, on every store, and on PostgreSQL by two brokers at once."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from broker.ledger.verify import verify_store
from broker.stores import ledger_exists, ledger_place, ledger_to_verify, upgrade
from tests.kit import Broker, Home
from tests.postgres import Server


@pytest.fixture(params=["sqlite", "postgres"])
def home(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    if request.param == "postgres":
        server: Server = request.getfixturevalue("server")
        monkeypatch.setenv("TASKPASS_TEST_POSTGRES", server.url())
    return Home(tmp_path / "broker")


@pytest.fixture
def start(home: Home) -> Iterator[Callable[[], Broker]]:
    with ExitStack() as stack:
        yield lambda: stack.enter_context(closing(Broker(home)))


def test_a_credential_its_task_its_kill_and_the_proof(home: Home, start: Callable[[], Broker]) -> None:
    broker = start()
    task = broker.open_task()
    token = broker.granted(task=task)["access_token"]
    assert broker.active(token)
    assert broker.credit(100).status_code == 200
    assert broker.credit(100_000).json()["outcome"] == "approval"
    killed = broker.kill("agent", "dispute-bot")
    assert (killed.status_code, killed.json()["durable"]) == (201, True)
    assert not broker.active(token)
    assert broker.token().json()["outcome"] == "held"
    for path in ("/v1/agents", "/v1/kills", "/v1/holds", "/v1/approvals", "/v1/keys", "/v1/ledger/proof/3"):
        assert broker.get(path, by="operator").status_code == 200, path
    assert broker.post("/v1/agents/dispute-bot/resume", {"reason": "done"}, by="operator").status_code == 200
    assert broker.granted()
    report = verify_store(ledger_to_verify(home.config))
    assert report.sound, report.findings


def test_what_one_broker_kills_is_dead_at_another(home: Home, start: Callable[[], Broker]) -> None:
    one, two = start(), start()
    token, assertion = one.granted()["access_token"], home.assertion()
    assert two.active(token)
    assert one.granted(assertion=assertion)
    assert two.token(assertion=assertion).status_code in (400, 401), "a proof is spent for all"
    assert two.kill("agent", "dispute-bot").json()["durable"]
    assert not one.active(token)
    assert one.token().json()["outcome"] == "held"


def test_creating_and_upgrading(home: Home) -> None:
    before, after = upgrade(home.config, now=home.clock)
    assert before == after > 0
    assert ledger_exists(home.config)
    assert "taskpass@" not in ledger_place(home.config)


def test_an_empty_database_is_made_a_ledger(tmp_path: Path, server: Server, home: Home) -> None:
    from pydantic import SecretStr

    from broker.config import LedgerSection

    url = SecretStr(server.url(server.new_database()))
    config = home.config.model_copy(update={"ledger": LedgerSection(url=url, state_path=tmp_path / "state")})
    assert not ledger_exists(config)
    assert upgrade(config)[0] == 0
    assert upgrade(config)[0] > 0
    assert verify_store(ledger_to_verify(config)).sound
