"""POST /v1/credentials/{id}/renew: longer life within the task, on record before the backend hears of it, and
refused in words that say why. The backend's own view is what counts. 52, 57 and 59 of the attack catalogue.
"""

import asyncio
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from broker.ledger.commands.renewal import NotRenewed, Renew, Renewed, Renewing
from issuers import Ending, NotRenewable
from tests.service.memory_backend import MemoryIssuer, Site, bug, failed, happened, lost


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.broker.close()


def under_task(site: Site, *, deadline: int = 600, ttl: int = 60) -> dict[str, Any]:
    task = site.broker.open_task("data-bot", deadline_seconds=deadline)
    return site.granted(task=task, ttl_seconds=ttl)


def ends(site: Site, body: dict[str, Any]) -> int:
    """Until when it lives, by the ledger, in seconds."""
    told = site.broker.request("GET", f"/v1/credentials/{body['id']}", bearer=site.home.operator()).json()
    return int(datetime.fromisoformat(told["expires_at"]).timestamp())


def test_it_lives_longer_and_nothing_secret_is_told_again(site: Site):
    body = under_task(site)
    assert body["renewable"] is True
    first = ends(site, body)
    site.clock.forward(30)
    answer = site.renew(body["id"])
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert ends(site, body) == first + 30 == site.backend.until[body["handle"]["login"]]
    assert "values" not in told
    assert body["values"]["password"] not in answer.text
    assert site.types(body["id"]) == ["issuing", "prepared", "delivered", "renewing", "renewed"]
    [renewing] = site.broker.events("renewing")
    assert (renewing["exp"], renewing["actions"], renewing["outcome"]) == (first + 30, ["orders:read"], "automatic")
    explained = site.broker.get(f"/v1/decisions/{told['decision_id']}", by="data-bot").json()
    assert (explained["type"], explained["position"]) == ("renewing", renewing["seq"])
    receipt = site.broker.get(f"/v1/tasks/{body['task']}/receipt", by="data-bot").json()
    assert [event["type"] for event in receipt["events"]][-2:] == ["renewing", "renewed"]


def test_the_reconciler_waits_for_the_new_time_and_ends_it_then(site: Site):
    body = under_task(site)
    site.clock.forward(50)
    assert site.renew(body["id"]).status_code == 200
    site.clock.forward(20)
    site.settle()
    assert site.state(body["id"]) == "live"
    assert site.backend.works(body["handle"]["login"])
    site.clock.forward(41)
    site.settle()
    assert not site.backend.works(body["handle"]["login"])
    assert site.broker.events("gone")[0]["how"] == "expired"


def test_the_lifetime_is_the_least_of_all_caps(site: Site):
    body = under_task(site, deadline=400)
    start = site.clock.s

    def gained(**wish: Any) -> int:
        assert site.renew(body["id"], **wish).status_code == 200
        return ends(site, body) - site.clock.s

    assert gained(ttl_seconds=90) == 90
    site.issuer.max_ttl_s = 100
    assert gained(ttl_seconds=9_999) == 100
    site.issuer.max_ttl_s = 3_600
    assert gained(ttl_seconds=9_999) == 400  # the task's deadline
    assert site.backend.until[body["handle"]["login"]] == start + 400
    site.clock.forward(10)
    limit = site.renew(body["id"], ttl_seconds=9_999)
    assert (limit.status_code, limit.json()["outcome"]) == (409, "at_its_limit")
    assert "task" in limit.json()["next"]
    assert site.issuer.calls["renew"] == 3
    assert site.renew(body["id"], ttl_seconds=0).status_code == 400


def test_the_agents_own_limit_holds_as_it_is_now(site: Site):
    body = under_task(site)
    site.home.replace("registry/agents.yaml", "task_ttl_s: 600", "task_ttl_s: 70")
    assert site.broker.post("/v1/reload", {}, by="operator").status_code == 200
    assert site.renew(body["id"], ttl_seconds=300).status_code == 200
    assert ends(site, body) == site.clock.s + 70


def test_what_the_backend_gives_less_of_is_what_is_on_record(site: Site):
    body = under_task(site)
    site.issuer.last_s = site.clock.s + 75
    site.clock.forward(30)
    told = site.renew(body["id"], ttl_seconds=300).json()
    assert ends(site, body) == site.issuer.last_s
    assert told["expires_at"] == site.broker.get(f"/v1/credentials/{body['id']}", by="data-bot").json()["expires_at"]
    assert site.broker.events("renewed")[0]["exp"] == site.issuer.last_s


# --- Refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "status", "outcome"),
    [
        ("end", 403, "task_over"),
        ("deadline", 403, "task_over"),
        ("task", 403, "task_over"),
        ("agent", 403, "held"),
        ("pause", 403, "held"),
        ("resource", 403, "held"),
        ("owner", 403, "held"),
        ("all", 403, "held"),
        ("grant", 409, "ended"),
        ("given back", 409, "ended"),
        ("expired", 409, "ended"),
    ],
)
def test_what_is_over_is_not_renewed(site: Site, way: str, status: int, outcome: str):
    body = under_task(site, deadline=300)
    match way:
        case "end":
            site.broker.post(f"/v1/tasks/{body['task']}/end", {}, by="data-bot")
        case "deadline":
            site.clock.forward(301)
        case "expired":
            site.clock.forward(61)
        case "pause":
            site.broker.post("/v1/agents/data-bot/pause", {"reason": "test"}, by="operator")
        case "given back":
            site.broker.post(f"/v1/credentials/{body['id']}/revoke", by="data-bot")
        case _:
            values = {"task": body["task"], "agent": "data-bot", "resource": "orders-db", "owner": "data-team"}
            site.broker.kill(way, values.get(way, body["id"] if way == "grant" else ""))
    answer = site.renew(body["id"])
    assert answer.headers["content-type"] == "application/problem+json"
    told = answer.json()
    assert (answer.status_code, told["outcome"]) == (status, outcome), answer.text
    assert told["decision_id"]
    assert site.issuer.calls["renew"] == 0
    assert not site.broker.events("renewing")
    site.settle()
    assert not site.backend.works(body["handle"]["login"])


def test_what_only_expires_is_not_renewed(tmp_path: Path):
    site = Site(tmp_path, MemoryIssuer(ending=Ending.EXPIRES_ONLY))
    try:
        body = under_task(site)
        assert body["renewable"] is False
        answer = site.renew(body["id"])
        assert (answer.status_code, answer.json()["outcome"]) == (409, "not_renewable")
        assert answer.json()["decision_id"]
        assert site.issuer.calls["renew"] == 0
    finally:
        site.broker.close()


def test_what_was_made_for_one_use_is_not_renewed(site: Site):
    body = site.granted()
    assert body["renewable"] is False
    answer = site.renew(body["id"])
    assert (answer.status_code, answer.json()["outcome"]) == (409, "not_renewable")
    assert site.issuer.calls["renew"] == 0


def test_what_the_backend_made_for_one_life_keeps_its_time(site: Site):
    def never(_: Any) -> Any:
        raise NotRenewable("It is made for one life.")

    body = under_task(site)
    first = ends(site, body)
    site.issuer.fail["renew"] = [never]
    answer = site.renew(body["id"], ttl_seconds=120)
    assert (answer.status_code, answer.json()["outcome"]) == (409, "not_renewable")
    assert ends(site, body) == first


def test_52_nobody_else_renews_it(site: Site):
    body = under_task(site)
    path = f"/v1/credentials/{body['id']}/renew"
    assert site.renew(body["id"], agent="dispute-bot").status_code == 404
    assert site.broker.post(path, {}, by="operator").status_code == 403
    assert site.renew("grt_00000000_1").status_code == 404
    assert site.issuer.calls["renew"] == 0


def test_a_proof_renews_once(site: Site):
    body = under_task(site)
    proof, path = site.home.proof("data-bot"), f"/v1/credentials/{body['id']}/renew"
    answers = [site.broker.request("POST", path, json={"ttl_seconds": n}, bearer=proof) for n in (90, 120)]
    assert [answer.status_code for answer in answers] == [200, 401]
    assert ends(site, body) == site.clock.s + 90


def test_it_is_decided_by_the_rules_in_force_now(site: Site):
    body = under_task(site)
    site.home.replace("policies/permits/data.cedar", '"data-bot"', '"dispute-bot"')
    assert site.broker.post("/v1/reload", {}, by="operator").status_code == 200
    answer = site.renew(body["id"])
    assert (answer.status_code, answer.json()["outcome"]) == (403, "never")
    assert site.issuer.calls["renew"] == 0


def test_what_needs_a_person_now_is_not_renewed(site: Site):
    task = site.broker.open_task("data-bot", deadline_seconds=600)
    body = site.granted(task=task, actions=["orders:fix"], parameters={"order": "7"}, ttl_seconds=60)
    site.home.replace("policies/gates/data.cedar", '== "all"', '!= "all"')
    assert site.broker.post("/v1/reload", {}, by="operator").status_code == 200
    answer = site.renew(body["id"])
    assert (answer.status_code, answer.json()["outcome"]) == (403, "approval")
    assert not site.broker.events("approval.requested")
    assert site.issuer.calls["renew"] == 0


# --- Failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", [failed, lost, happened, bug])
def test_a_backend_that_fails_leaves_no_doubt_that_is_not_on_record(site: Site, failure: Any):
    body = under_task(site)
    login, first = body["handle"]["login"], ends(site, body)
    site.issuer.fail["renew"] = [failure]
    site.clock.forward(30)
    answer = site.renew(body["id"], ttl_seconds=300)
    assert (answer.status_code, answer.json()["code"]) == (503, "temporarily_unavailable")
    assert answer.json()["decision_id"]
    assert site.types(body["id"])[-2:] == ["renewing", "renewal.failed"]
    on_record = ends(site, body)
    assert site.backend.until[login] <= on_record  # no receipt ever says less than the backend gives
    assert on_record == (first if failure is failed else site.clock.s + 300)
    site.clock.forward(31)
    if failure is not happened:
        site.backend.logins.pop(login)  # the backend ended it at the old time
    site.settle()
    assert site.state(body["id"]) == ("live" if failure is happened else "expired")


def test_57_what_stops_between_the_commits_is_found_out_at_the_old_time(site: Site, monkeypatch: pytest.MonkeyPatch):
    body = under_task(site)

    def dies(self: Any, tx: Any) -> Any:
        raise RuntimeError("died")

    monkeypatch.setattr(Renewed, "apply", dies)
    assert site.renew(body["id"], ttl_seconds=300).status_code == 500
    monkeypatch.undo()
    site.broker.close()
    site.start()
    assert ends(site, body) == site.clock.s + 300 == site.backend.until[body["handle"]["login"]]
    site.clock.forward(61)
    site.settle()
    assert site.state(body["id"]) == "live"
    site.clock.forward(240)
    site.settle()
    assert site.state(body["id"]) == "expired"
    assert not site.backend.works(body["handle"]["login"])


def test_one_of_which_nobody_was_told_keeps_its_time(site: Site, monkeypatch: pytest.MonkeyPatch):
    body = under_task(site)
    first = ends(site, body)
    kept: list[tuple[Renew, Renewing]] = []
    apply = Renew.apply

    def seen(self: Renew, tx: Any) -> Any:
        outcome = apply(self, tx)
        assert isinstance(outcome, Renewing)
        kept.append((self, outcome))
        return outcome

    monkeypatch.setattr(Renew, "apply", seen)
    site.issuer.fail["renew"] = [lost]
    site.renew(body["id"], ttl_seconds=120)
    [(command, outcome)] = kept
    follows = command.unheard(outcome)
    assert isinstance(follows, NotRenewed)
    site.broker.run(site.broker.process.writer.submit(follows))
    assert ends(site, body) == first


# --- Races ------------------------------------------------------------------------------------------------------------


def test_59_a_kill_while_it_is_renewed_ends_it_longer_life_and_all(site: Site):
    body = under_task(site)
    entered, go = threading.Event(), threading.Event()

    def pause() -> None:
        entered.set()
        assert go.wait(10)

    site.issuer.before["renew"] = pause

    async def race() -> Any:
        path, bearer = f"/v1/credentials/{body['id']}/renew", site.home.proof("data-bot")
        asking = asyncio.ensure_future(site.broker.ask("POST", path, json={}, bearer=bearer))
        await asyncio.to_thread(entered.wait, 10)
        kill = {"target": "grant", "value": body["id"], "reason": "test"}
        await site.broker.ask("POST", "/v1/kills", json=kill, bearer=site.home.operator())
        go.set()
        return await asking

    site.clock.forward(10)
    answer = site.broker.run(race())
    assert (answer.status_code, answer.json()["outcome"]) == (409, "ended")
    site.settle()
    assert site.state(body["id"]) == "revoked"
    assert not site.backend.works(body["handle"]["login"])
    assert not site.broker.events("renewed")


def test_a_kill_that_the_ledger_has_yet_to_record_stops_it(site: Site, monkeypatch: pytest.MonkeyPatch):
    body = under_task(site)
    first = ends(site, body)
    stops = site.broker.process.broker.renewals._steps._stops
    covering, calls = stops.covering, []

    def late(claims: Any, kid: Any) -> Any:
        calls.append(claims)
        return covering(claims, kid) if len(calls) == 1 else "kil_provisional"  # it comes after the decision

    monkeypatch.setattr(stops, "any", lambda: True)
    monkeypatch.setattr(stops, "covering", late)
    site.clock.forward(10)
    assert site.renew(body["id"]).status_code == 403
    assert calls[-1]["jti"] == body["id"]
    assert site.issuer.calls["renew"] == 0
    assert ends(site, body) == first


def test_the_last_second_belongs_to_one_of_both(site: Site):
    """Either it is renewed, or it is over: never renewed and then ended as if it had not been."""
    for late, status in ((59, 200), (60, 409)):
        body = under_task(site)
        site.clock.forward(late)
        assert site.renew(body["id"], ttl_seconds=60).status_code == status
        site.settle()
        assert site.backend.works(body["handle"]["login"]) == (status == 200)
