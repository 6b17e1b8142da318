"""How credentials at backends end: by every way there is, confirmed by a look, and never given up. The backend's own
view is what counts. 56, 57, 58, 60 and 64 of the attack catalogue.
"""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.ledger.commands.credentials import EXPIRES_ONLY
from broker.service.reconciler import backoff, unknown
from issuers import Ending, IssuerError
from tests.kit import Broker
from tests.service.memory_backend import MemoryIssuer, Site, bug, failed, happened, lost, until


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.broker.close()


@pytest.mark.parametrize("way", ["end", "deadline", "heartbeat", "task", "agent", "resource", "owner", "all", "grant"])
def test_every_way_to_end_a_task_or_its_credentials_reaches_the_backend(site: Site, way: str):
    task = site.broker.open_task("data-bot", deadline_seconds=300, heartbeat_seconds=60)
    body = site.granted(task=task)
    assert site.backend.works(body["handle"]["login"])
    hesitates = threading.Event()
    site.issuer.before["revoke"] = until(hesitates)  # the reconciler may set out before we look
    match way:
        case "end":
            site.broker.post(f"/v1/tasks/{task}/end", {}, by="data-bot")
        case "deadline" | "heartbeat":
            site.clock.forward(301 if way == "deadline" else 61)
            site.broker.do("expire_tasks")
        case _:
            values = {"task": task, "agent": "data-bot", "resource": "orders-db", "owner": "data-team"}
            site.broker.kill(way, values.get(way, body["id"] if way == "grant" else ""))
    assert site.state(body["id"]) == "revoking"
    assert "gone" not in site.types(body["id"])
    hesitates.set()
    site.settle()
    assert not site.backend.works(body["handle"]["login"])
    assert site.state(body["id"]) == "revoked"
    assert site.types(body["id"])[-1] == "gone"
    over = way not in ("grant", "resource")
    assert (site.backend.sessions == {}) == over  # what was opened for the task lasts as long as the task
    if not over:
        site.broker.post(f"/v1/tasks/{task}/end", {}, by="data-bot")
        site.settle()
        assert site.backend.sessions == {}
    assert site.broker.query("SELECT next_try FROM external_grants") == [(None,)]


def test_closing_comes_before_revoking_and_looking_last(site: Site):
    body = site.granted()
    site.backend.log.clear()
    site.killed("grant", body["id"])
    assert [step for step, _ in site.backend.log] == ["close", "revoke", "status"]


def test_an_expired_one_is_looked_at_before_it_is_called_gone(site: Site):
    body = site.granted(ttl_seconds=60)
    site.clock.forward(59)
    site.settle()
    assert site.state(body["id"]) == "live"
    site.clock.forward(2)
    site.settle()  # the backend does not expire anything by itself: it must be revoked
    assert not site.backend.works(body["handle"]["login"])
    assert site.broker.events("gone")[0]["how"] == "expired"
    again = site.granted(ttl_seconds=60)
    site.backend.logins.clear()
    site.backend.log.clear()
    site.clock.forward(61)
    site.settle()
    assert site.state(again["id"]) == "expired"
    assert "revoke" not in [step for step, _ in site.backend.log]


def test_60_a_revocation_that_fails_is_tried_until_it_is_seen(site: Site):
    body = site.granted()
    site.issuer.fail["revoke"] = [failed, lost, bug, happened]
    before = site.killed("grant", body["id"])
    assert (before["pending"], before["confirmed"], before["complete"]) == (1, 0, False)
    for _ in range(3):
        assert site.state(body["id"]) == "revoking"
        assert site.backend.works(body["handle"]["login"])
        site.settle()  # not before its time
        site.clock.forward(300)
        site.settle()
    assert site.issuer.calls["revoke"] == 4
    assert not site.backend.works(body["handle"]["login"])
    assert site.state(body["id"]) == "revoked"  # the answer was lost, and the look tells


def test_60_what_keeps_failing_is_stuck_and_tried_on(site: Site):
    body = site.granted()
    site.issuer.fail["revoke"] = [failed] * 9
    for _ in range(8):
        found = site.killed("grant", body["id"])
        site.clock.forward(300)
    assert site.state(body["id"]) == "stuck"
    stuck = site.broker.events("stuck")
    assert [(event["jti"], event["tries"]) for event in stuck] == [(body["id"], 8)]
    assert (found["stuck"], found["pending"], found["complete"]) == (1, 0, False)
    [told] = found["stuck_grants"]
    assert told["handle"] == body["handle"]
    assert told["problem"] == "The backend refused."
    assert "keeps trying" in told["next"]
    assert site.broker.process.reconciler.figures() == {"memory": {"stuck": 1}}
    site.settle()
    site.clock.forward(300)
    site.settle()
    assert site.state(body["id"]) == "revoked"
    assert site.broker.process.reconciler.figures() == {}
    assert len(site.broker.events("stuck")) == 1


def test_60_one_that_somebody_else_removed_is_gone(site: Site):
    body = site.granted()
    site.backend.logins.clear()
    found = site.killed("grant", body["id"])
    assert (found["confirmed"], found["complete"]) == (1, True)


def test_it_is_never_called_revoked_while_it_works(site: Site, monkeypatch: pytest.MonkeyPatch):
    """The backend says yes to a revocation and does nothing."""
    body = site.granted()
    monkeypatch.setattr(site.issuer, "revoke", lambda handle: None)
    found = site.killed("grant", body["id"])
    assert (found["pending"], found["confirmed"]) == (1, 0)
    assert site.state(body["id"]) == "revoking"
    monkeypatch.undo()
    site.clock.forward(10)
    site.settle()
    assert site.state(body["id"]) == "revoked"


@pytest.mark.parametrize("failure", [lost, happened, bug])
def test_a_look_that_fails_proves_nothing(site: Site, failure: Any):
    body = site.granted()
    site.issuer.fail["status"] = [failure]
    assert site.killed("grant", body["id"])["pending"] == 1
    site.clock.forward(10)
    site.settle()
    assert site.state(body["id"]) == "revoked"


def test_what_only_expires_is_reported_with_its_time(tmp_path: Path):
    issuer = MemoryIssuer(ending=Ending.EXPIRES_ONLY)
    site = Site(tmp_path, issuer)
    try:
        body = site.granted(ttl_seconds=90)
        assert body["ending"] == EXPIRES_ONLY
        ends = (site.clock.s + 90) * 1000
        kill = site.broker.kill("agent", "data-bot").json()["id"]
        site.settle()
        found = site.receipt(kill)["external"]
        assert (found["expires_only"], found["expires_only_until"]) == (1, ends)
        assert (found["pending"], found["stuck"], found["confirmed"], found["complete"]) == (0, 0, 0, True)
        assert issuer.calls["revoke"] == 0
        assert site.backend.sessions == {}  # what was opened for it is closed all the same
        site.backend.logins.clear()
        site.clock.forward(91)
        site.settle()
        assert site.broker.events("gone")[0]["how"] == "expired"
        assert site.receipt(kill)["external"]["confirmed"] == 1
    finally:
        site.broker.close()


def test_a_kill_counts_what_it_covered_and_nothing_else(site: Site):
    one, other = site.broker.open_task("data-bot"), site.broker.open_task("data-bot")
    site.granted(task=one)
    site.granted(task=one)
    kept = site.granted(task=other)
    first = site.killed("task", one)
    assert (first["made"], first["confirmed"], first["by_issuer"]) == (2, 2, {"memory": 2})
    dry = site.broker.kill("agent", "data-bot", dry_run=True).json()
    assert dry["would_end"]["external"] == 1
    second = site.killed("agent", "data-bot")
    assert (second["made"], second["confirmed"]) == (1, 1)
    assert site.state(kept["id"]) == "revoked"
    receipt = site.broker.get(f"/v1/tasks/{one}/receipt", by="operator").json()
    assert (receipt["external"]["made"], receipt["external"]["confirmed"]) == (2, 2)
    assert [event["type"] for event in receipt["events"]].count("delivered") == 2
    key = site.broker.kill("key", site.broker.process.ledger.head.active_kid)
    assert site.receipt(key.json()["id"])["external"]["made"] == 0


def test_64_what_is_no_longer_registered_is_ended_all_the_same(site: Site):
    body = site.granted(task=site.broker.open_task("data-bot"))
    site.home.replace("registry/resources.yaml", "  orders-db:", "  other-db:")
    site.home.replace("registry/agents.yaml", "      orders-db:", "      other-db:")
    site.home.replace("registry/resources.yaml", "https://orders-db.example.com", "https://other-db.example.com")
    assert site.broker.post("/v1/reload", {}, by="operator").status_code == 200
    found = site.killed("resource", "orders-db")
    assert (found["made"], found["confirmed"]) == (1, 1)
    assert not site.backend.works(body["handle"]["login"])


def test_64_an_issuer_that_is_configured_no_more_leaves_a_stuck_grant_not_a_lost_one(site: Site):
    body = site.granted()
    site.broker.close()
    site.broker = Broker(site.home)  # its registry does not hold either: issuance is stopped, kills are not
    assert site.broker.process.ledger.head.issuance_stopped
    kill = site.broker.kill("grant", body["id"]).json()["id"]
    for _ in range(9):
        site.settle()
        site.clock.forward(300)
    found = site.receipt(kill)["external"]
    assert found["stuck"] == 1
    assert "configured" in found["stuck_grants"][0]["problem"]
    site.broker.close()
    site.start()
    site.settle()
    assert not site.backend.works(body["handle"]["login"])
    assert site.state(body["id"]) == "revoked"


# --- Orphans ----------------------------------------------------------------------------------------------------------


def sweep(site: Site) -> None:
    site.broker.run(site.broker.process.reconciler.sweep())


def test_an_orphan_is_ended_once_it_is_certain_to_be_one(site: Site):
    body = site.granted(task=site.broker.open_task("data-bot", deadline_seconds=600))
    site.backend.logins |= {"tp_0badf00d_7": "x", "somebody_elses": "y"}
    sweep(site)
    site.clock.forward(60)
    sweep(site)
    assert site.backend.works("tp_0badf00d_7")  # somebody may just be making it
    site.clock.forward(61)
    sweep(site)
    assert set(site.backend.logins) == {body["handle"]["login"], "somebody_elses"}
    assert [event["handle"] for event in site.broker.events("orphan.ended")] == [{"login": "tp_0badf00d_7"}]


def test_an_orphan_that_resists_is_tried_at_every_sweep(site: Site):
    site.backend.logins["tp_0badf00d_7"] = "x"
    site.issuer.fail["revoke"] = [failed, bug]
    for _ in range(3):
        sweep(site)
        site.clock.forward(121)
        assert not site.broker.events("orphan.ended")
    sweep(site)
    assert site.backend.logins == {}
    assert len(site.broker.events("orphan.ended")) == 1


def test_a_backend_that_cannot_be_searched_is_left_for_the_next_sweep(site: Site, monkeypatch: pytest.MonkeyPatch):
    for error in (IssuerError("The backend is sealed."), RuntimeError("a bug")):

        def refuses(error: Exception = error) -> Any:
            raise error

        monkeypatch.setattr(site.issuer, "orphans", refuses)
        sweep(site)


def test_which_handles_nobody_owns():
    known = [
        {"accessor": "a1", "path": "p", "lease": "l1"},
        {"accessor": "a2", "path": "q"},
        {"role": "r1", "oid": "5"},
    ]
    owned = [{"accessor": "a1"}, {"lease": "l1", "path": "p"}, {"accessor": "a2"}, {"role": "r1"}]
    owned.append({"lease": "l9", "path": "q"})  # the lease of a2 may be this one: nobody has learnt it yet
    orphans = [{"accessor": "a3"}, {"lease": "l2", "path": "p"}, {"role": "r2", "oid": "5"}, {"role": "r2"}]
    assert unknown([*owned, *orphans], known) == orphans
    assert unknown(orphans, []) == orphans


def test_tries_drift_apart_and_never_stop():
    for tries in range(200):
        longest = min(300_000, 1_000 * 2 ** min(tries, 16))
        assert longest // 2 <= backoff(tries) <= longest
    assert len({backoff(9) for _ in range(20)}) > 1


# --- Crashes and races ------------------------------------------------------------------------------------------------


def test_57_an_intent_without_an_outcome_is_revoked_at_the_next_start(site: Site, monkeypatch: pytest.MonkeyPatch):
    """The broker dies after the backend answered: nothing of it is in the ledger but the intent and the handle."""
    from broker.ledger.commands.credentials import Deliver

    def dies(self: Any, tx: Any) -> Any:
        raise RuntimeError("died")

    monkeypatch.setattr(Deliver, "apply", dies)
    assert site.ask().status_code == 500
    assert len(site.backend.logins) == 1
    monkeypatch.undo()
    state, jti = site.last()
    assert state == "issuing"
    site.broker.close()
    site.start()
    if site.home.config.ledger.url is None:  # where brokers share a ledger, it may be another one's that still runs
        assert site.last()[0] == "revoking"
        site.settle()
        assert site.backend.logins == {}
        assert site.last()[0] == "revoking"  # gone, but a call of the dead process may still arrive there
    site.clock.forward(66)
    site.settle()
    assert site.last() == ("revoked", jti)
    assert [event["why"] for event in site.broker.events("revoking")] == ["interrupted"]


def test_57_intents_are_also_missed_while_running(site: Site, monkeypatch: pytest.MonkeyPatch):
    from broker.ledger.commands.credentials import Abandon, Deliver

    def dies(self: Any, tx: Any) -> Any:
        raise RuntimeError("died")

    monkeypatch.setattr(Deliver, "apply", dies)
    monkeypatch.setattr(Abandon, "apply", dies)
    assert site.ask().status_code == 500
    monkeypatch.undo()
    site.settle()
    assert site.last()[0] == "issuing"
    site.clock.forward(66)
    site.settle()
    assert site.last()[0] == "revoked"
    assert site.backend.logins == {}
