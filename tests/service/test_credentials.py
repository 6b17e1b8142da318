"""POST /v1/credentials: the pipeline with its two commits, seen from the client, the ledger and the backend."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.ledger.commands.credentials import Begun, Deliver, Delivered
from broker.ledger.commands.issue import Asked, Stop
from broker.model import Workload
from issuers import Ending, Minted
from tests.kit import ARCHIVE
from tests.service.memory_backend import ForeseeingIssuer, MemoryIssuer, Site, bug, failed, happened, lost


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.broker.close()


def test_a_credential_is_on_record_before_it_leaves(site: Site):
    task = site.broker.open_task("data-bot")
    body = site.granted(task=task)
    assert body["task"] == task
    assert (body["resource"], body["actions"], body["parameters"]) == ("orders-db", ["orders:read"], {})
    assert (body["issuer"], body["ending"]) == ("memory", "revocable")
    assert site.backend.logins == {body["handle"]["login"]: body["values"]["password"]}
    assert site.types(body["id"]) == ["issuing", "prepared", "delivered"]
    delivered = site.broker.events("delivered")[0]
    assert delivered["seq"] == body["seq"]
    assert delivered["handle"] == body["handle"]
    assert body["expires_at"].endswith("Z")
    answer = site.broker.get(f"/v1/credentials/{body['id']}", by="data-bot").json()
    assert "values" not in answer
    assert answer["state"] == "live"
    told = site.broker.get(f"/v1/decisions/{body['decision_id']}", by="data-bot").json()
    assert told["type"] == "issuing"
    assert told["after"]["state"] == "live"


def test_what_is_foreseen_is_on_record_with_the_intent(tmp_path: Path):
    site = Site(tmp_path, ForeseeingIssuer())
    seen: list[Any] = []

    def look() -> None:
        seen.append(site.broker.query("SELECT state, handle FROM external_grants"))

    site.issuer.before["issue"] = look
    body = site.granted()
    login = body["handle"]["login"]
    assert seen == [[("issuing", f'{{"login":"{login}"}}')]]  # as committed before the backend is asked
    assert site.issuer.calls["prepare"] == 0
    issuing, prepared, delivered = site.broker.events("issuing", "prepared", "delivered")
    assert prepared["seq"] == issuing["seq"] + 1
    assert (prepared["jti"], prepared["handle"]) == (body["id"], {"login": login})
    assert delivered["handle"] == body["handle"]
    site.broker.close()


def test_what_is_foreseen_and_certainly_not_made_is_failed(tmp_path: Path):
    site = Site(tmp_path, ForeseeingIssuer())
    site.issuer.fail["issue"] = [failed, lost]
    assert site.ask().status_code == 503
    assert site.last()[0] == "failed"
    assert site.ask().status_code == 503
    site.settle()
    assert site.last()[0] == "revoked"
    site.broker.close()


def test_without_a_task_it_lives_as_long_as_a_token_would(site: Site):
    body = site.granted()
    assert body["task"].startswith("tsk_")
    issuing = site.broker.events("issuing")[0]
    assert issuing["exp"] - issuing["iat"] == 120


def test_the_lifetime_is_the_least_of_all_caps(site: Site):
    def life(**changes: Any) -> int:
        site.granted(**changes)
        event = site.broker.events("issuing")[-1]
        return int(event["exp"] - event["iat"])

    assert life(ttl_seconds=30) == 30
    assert life(ttl_seconds=9_999) == 600  # the agent's
    assert life(task=site.broker.open_task("data-bot", deadline_seconds=60)) == 60
    site.issuer.max_ttl_s = 20
    assert life(ttl_seconds=30) == 20
    too_short = site.ask(ttl_seconds=4)
    assert (too_short.status_code, too_short.json()["code"]) == (400, "invalid_request")
    late = site.ask(task=site.broker.open_task("data-bot", deadline_seconds=3)).json()
    assert late["outcome"] == "too_short"
    assert site.ask(ttl_seconds=0).status_code == 400


def test_each_door_says_which_is_the_right_one(site: Site):
    wrong = site.ask(resource="archive", actions=["archive:read"]).json()
    assert wrong["code"] == "invalid_target"
    assert "/oauth2/token" in wrong["next"]
    token = site.broker.token("data-bot", resource="https://orders-db.example.com", scope="orders:read").json()
    assert token["error"] == "invalid_target"
    assert "/v1/credentials" in token["next"]
    assert site.ask(resource="https://orders-db.example.com").status_code == 201  # the audience is as good as the id
    assert site.ask(resource=ARCHIVE, actions=["archive:read"]).status_code == 400


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"actions": []}, 400, "invalid_authorization_details"),
        ({"actions": ["orders:eat"]}, 400, "invalid_authorization_details"),
        ({"actions": ["orders:fix"]}, 400, "invalid_authorization_details"),
        ({"resource": "nothing"}, 400, "invalid_target"),
        ({"parameters": {"order": 4.5}}, 400, "invalid_authorization_details"),
        ({"task": "tsk_00000000_1"}, 400, "unauthorized_client"),
        ({"surprise": 1}, 400, "invalid_request"),
        ({"resource": ""}, 400, "invalid_request"),
    ],
)
def test_what_is_malformed_asks_nothing_of_the_backend(site: Site, changes: Any, status: int, code: str):
    answer = site.ask(**changes)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert answer.json()["decision_id"]
    assert site.issuer.calls == {}


def test_policy_decides_as_for_tokens(site: Site):
    never = site.ask(actions=["orders:drop"])
    assert (never.status_code, never.json()["outcome"]) == (403, "never")
    gated = site.ask(actions=["orders:fix"], parameters={"order": "all"}).json()
    assert gated["outcome"] == "approval"
    assert gated["approval"]["approvers"] == ["data-oncall"]
    fixed = site.granted(actions=["orders:fix"], parameters={"order": "4711"})
    assert fixed["parameters"] == {"order": "4711"}
    site.broker.kill("resource", "orders-db")
    held = site.ask()
    assert (held.status_code, held.json()["outcome"]) == (403, "held")
    assert site.ask(agent="dispute-bot").json()["outcome"] == "never"


def test_a_proof_opens_one_credential(site: Site):
    proof = site.home.proof("data-bot")
    body = {"resource": "orders-db", "actions": ["orders:read"]}
    first, second = (site.broker.request("POST", "/v1/credentials", json=body, bearer=proof) for _ in range(2))
    assert (first.status_code, second.status_code) == (201, 401)
    assert len(site.backend.logins) == 1
    assert site.broker.post("/v1/credentials", body, by="operator").status_code == 403
    assert site.broker.post("/v1/credentials", body, by="data-bot").status_code == 201


@pytest.mark.parametrize("step", ["prepare", "issue"])
@pytest.mark.parametrize("failure", [failed, lost, happened, bug])
def test_a_backend_that_fails_leaves_nothing(site: Site, step: str, failure: Any):
    site.issuer.fail[step].append(failure)
    answer = site.ask()
    assert (answer.status_code, answer.json()["code"]) == (503, "temporarily_unavailable")
    assert answer.json()["decision_id"]
    state, jti = site.last()
    assert state == ("failed" if step == "prepare" or failure is failed else "revoking")
    site.clock.forward(66)
    site.settle()
    assert site.backend.logins == {}
    state, jti = site.last()
    assert state == ("failed" if step == "prepare" or failure is failed else "revoked")
    assert ("gone" in site.types(jti)) == (state == "revoked")
    if not (step == "prepare" and failure is happened):  # the one thing that only its own short limit ends
        assert site.backend.sessions == {}


def test_what_outlives_its_order_is_revoked(site: Site, monkeypatch: pytest.MonkeyPatch):
    issue = site.issuer.issue

    def longer(order: Any, prepared: Any) -> Minted:
        made = issue(order, prepared)
        return Minted(made.values, made.handle, order.exp + 1)

    monkeypatch.setattr(site.issuer, "issue", longer)
    assert site.ask().status_code == 503
    assert site.backend.logins
    site.settle()
    assert site.backend.logins == {}
    assert site.last()[0] == "revoked"


def test_a_holder_gives_back(site: Site):
    body = site.granted(task=site.broker.open_task("data-bot"))
    path = f"/v1/credentials/{body['id']}"
    assert site.broker.get(path, by="dispute-bot").status_code == 404
    assert site.broker.post(path + "/revoke", by="dispute-bot").status_code == 404
    assert site.broker.post(path + "/revoke", by="operator").status_code == 403
    assert site.broker.post(path + "/revoke", by="data-bot").json()["state"] == "revoking"
    assert site.broker.post(path + "/revoke", by="data-bot").json()["state"] == "revoking"
    site.settle()
    assert site.backend.logins == {}
    assert site.broker.post(path + "/revoke", by="data-bot").json()["state"] == "revoked"
    assert site.types(body["id"]) == ["issuing", "prepared", "delivered", "revoking", "gone"]


def test_what_is_given_back_by_its_implicit_tasks_id_is_recorded_as_the_grant_that_it_is(site: Site):
    body = site.granted()
    assert site.broker.post(f"/v1/credentials/{body['task']}/revoke", by="data-bot").json()["state"] == "revoking"
    [event] = site.broker.events("revoking")
    assert (event["jti"], event["task"]) == (body["id"], body["task"])


def test_what_only_expires_says_so(tmp_path: Path):
    site = Site(tmp_path, MemoryIssuer(ending=Ending.EXPIRES_ONLY))
    try:
        body = site.granted()
        assert body["ending"] == "expires-only"
        assert body["expires_at"] in body["note"]
    finally:
        site.broker.close()


def test_one_of_which_nobody_was_told_is_ended(site: Site):
    body = site.granted()
    (row,) = site.broker.query("SELECT seq, task, issuer FROM external_grants")
    begun = Begun(row[0], body["id"], row[1], row[2], 0, 0, "")
    asked = Asked("data-bot", "data-team", Workload("idp", "oidc", "i", "s", {}, 0, None), None, None)
    follows = Deliver(begun, asked, body["handle"], 0).unheard(Delivered(7))
    assert follows is not None
    site.broker.run(site.broker.process.writer.submit(follows))
    site.settle()
    assert site.state(body["id"]) == "revoked"
    assert Deliver(begun, asked, body["handle"], 0).unheard(Stop("held", "It is on hold.")) is None
