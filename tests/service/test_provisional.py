"""A kill while the ledger cannot be written: in force here at once, spooled, durable as soon as that is possible."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from broker.ledger.sqlite import SqliteLedger
from tests.kit import Broker, Home


@contextmanager
def unwritable(broker: Broker) -> Iterator[None]:
    """The store takes no writes, as with a full disk."""
    ledger: Any = broker.process.ledger
    if isinstance(ledger, SqliteLedger):
        run, switch = ledger._connection.execute, "PRAGMA query_only = {}"
    else:
        run, switch = ledger._writer.script, "SET default_transaction_read_only = {}"
    run(switch.format("ON"))
    try:
        yield
    finally:
        if not broker.closed:
            run(switch.format("OFF"))


TARGETS = {"agent": "dispute-bot", "owner": "finance-platform", "resource": "invoices", "all": ""}


@pytest.mark.parametrize("target", TARGETS)
def test_it_is_in_force_at_once_and_durable_later(broker: Broker, target: str):
    token = broker.granted()["access_token"]
    for who in ("operator", "billing"):
        broker.session(who)
    with unwritable(broker):
        assert broker.token().status_code == 503
        answer = broker.kill(target, TARGETS[target])
        assert answer.status_code == 202
        body = answer.json()
        assert body["durable"] is body["complete"] is False
        assert body["position"] is None
        assert body["spooled"]
        refused = broker.token()  # no longer for the ledger's sake: for the kill's
        assert (refused.status_code, refused.json()["outcome"]) == (400, "held")
        assert not broker.active(token, by="billing")
        snapshot = broker.get("/v1/revocations", by="billing").json()
        assert next(kill for kill in snapshot["kills"] if kill.get("provisional"))["id"] == body["id"]
        assert broker.kill(target, TARGETS[target]).json()["id"] == body["id"]  # asking again changes nothing
        broker.run(broker.process.provisional.retry())
        assert not broker.get(f"/v1/kills/{body['id']}", by="operator").json()["durable"]
    broker.run(broker.process.provisional.retry())
    receipt = broker.get(f"/v1/kills/{body['id']}?wait_ms=1000", by="operator").json()
    assert receipt["durable"]
    assert receipt["id"].startswith("kil_")
    assert receipt["ended"]["tokens"] == 1
    assert not any(kill.get("provisional") for kill in broker.get("/v1/revocations", by="billing").json()["kills"])
    assert not broker.active(token, by="billing")
    assert broker.token().json()["hold"] == receipt["issuance"]["hold"]
    assert len(broker.events("killed")) == 1


@pytest.mark.parametrize("who", ["operator", "break-glass"])
def test_an_operator_without_a_session_is_heard_too(broker: Broker, who: str):
    proof = broker.home.operator(who)
    body = {"target": "agent", "value": "dispute-bot", "reason": "x"}
    with unwritable(broker):
        assert broker.request("POST", "/v1/kills", bearer=proof, json=body).status_code == 202
        # Its proof could not be marked, and is spent all the same.
        assert broker.request("POST", "/v1/kills", bearer=proof, json=body).status_code == 401
        fresh = broker.home.operator(who)
        pause = broker.request("POST", "/v1/agents/data-bot/pause", bearer=fresh, json={"reason": "x"})
        assert pause.status_code == 202
        for path in ("/v1/keys/rotate", "/v1/agents/dispute-bot/resume"):
            other = broker.request("POST", path, bearer=broker.home.operator(who), json={"reason": "x"})
            assert other.status_code in (403, 503)
    for again in (proof, fresh):
        assert broker.request("POST", "/v1/sessions", bearer=again).status_code == 401
    broker.run(broker.process.provisional.retry())
    assert broker.token().json()["outcome"] == "held"
    assert len(broker.events("alarm")) == (2 if who == "break-glass" else 0)


def test_others_are_told_to_come_back(broker: Broker):
    session, task = broker.session("dispute-bot"), broker.open_task()
    with unwritable(broker):
        asks: list[Any] = [
            broker.token(),
            broker.credit(6000),
            broker.token(scope="no:such"),
            broker.request("POST", "/v1/sessions", bearer=broker.home.assertion()),
            broker.request("POST", "/v1/tasks", bearer=broker.home.assertion(), json={"purpose": "x"}),
            broker.request("GET", "/v1/whoami", bearer=broker.home.assertion()),
            broker.request("POST", f"/v1/tasks/{task}/end", bearer=session),
            broker.request("POST", f"/v1/tasks/{task}/heartbeat", bearer=session),
        ]
        for answer in asks:
            assert answer.status_code == 503, answer.text
            assert answer.headers["retry-after"]
            assert "access_token" not in answer.json()
        assert broker.request("GET", "/v1/whoami", bearer=session).status_code == 200
        refused = broker.request("GET", "/v1/agents", bearer=session)  # cannot be recorded: refused all the same
        assert refused.status_code == 403
    assert broker.query("SELECT count(*) FROM grants") == [(0,)]
    assert broker.granted(task=task)


def test_a_restart_brings_it_back_before_anything_is_issued(home: Home, start: Callable[..., Broker]):
    first = start()
    token = first.granted()["access_token"]
    first.session("operator")
    with unwritable(first):
        provisional = first.kill("agent", "dispute-bot").json()["id"]
        first.close()
    second = start()
    assert second.token().json()["outcome"] == "held"
    assert not second.active(token)
    second.run(second.process.provisional.retry())
    (killed,) = second.events("killed")
    assert killed["value"] == "dispute-bot"
    assert provisional not in second.get("/v1/kills", by="operator").text
    third = start()  # and it is not killed twice
    third.run(third.process.provisional.retry())
    assert len(third.events("killed")) == 1


def test_a_storage_error_in_the_middle_of_a_commit_issues_nothing(broker: Broker, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any, **__: Any) -> Any:
        raise broken("no space left")

    sqlite = isinstance(broker.process.ledger, SqliteLedger)
    broken = sqlite3.OperationalError if sqlite else psycopg.errors.DiskFull
    size = broker.size
    monkeypatch.setattr("broker.ledger.transaction.Transaction.store", full)
    answer = broker.token()
    assert (answer.status_code, answer.json()["error"]) == (503, "temporarily_unavailable")
    monkeypatch.undo()
    assert broker.size == size
    assert broker.granted()


def test_57_a_credential_that_cannot_be_signed_is_recorded_as_failed(broker: Broker, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: Any) -> str:
        raise RuntimeError("hardware module gone; canary-in-an-exception")

    monkeypatch.setattr(broker.process.broker.issuance._issuer, "issue_all", broken)
    answer = broker.token()
    assert answer.status_code == 503
    assert "canary" not in answer.text
    (issued,), (failed,) = broker.events("issued"), broker.events("failed")
    assert failed["jti"] == issued["jti"]
    assert broker.query("SELECT count(*) FROM grants") == [(0,)]
