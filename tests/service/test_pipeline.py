"""The main path's decisions: what is granted by default, what two inputs narrow together, what waits for a human, and
what a reload in the middle does. 9, 67 and 71 of the attack catalogue.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from broker.jose import parse
from tests.kit import ARCHIVE, CREDITS, Broker, Home


def claims(body: dict[str, Any]) -> dict[str, Any]:
    return parse(body["access_token"]).unverified_claims


def granted_actions(body: dict[str, Any]) -> set[str]:
    """Everything that the answer says was granted, outright or within limits."""
    limited = [action for details in body.get("authorization_details", []) for action in details["actions"]]
    return {*body.get("scope", "").split(), *limited}


def test_without_a_scope_an_agent_gets_what_is_automatic(shared: Broker):
    body = shared.granted("data-bot")
    assert granted_actions(body) == {"archive:read", "archive:list"}
    assert granted_actions(shared.granted("data-bot", scope="")) == {"archive:read", "archive:list"}
    assert granted_actions(shared.granted("data-bot", scope="archive:list")) == {"archive:list"}


def test_scope_and_details_count_together(shared: Broker):
    details = {"actions": ["archive:export"], "parameters": {"rows": 5}}
    body = shared.granted("data-bot", scope="archive:read", details=details)
    assert granted_actions(body) == {"archive:read", "archive:export"}
    assert body["scope"] == "archive:read"  # never the limited one: whoever reads scope alone must not be misled
    token = claims(body)
    assert token["scope"] == "archive:read"
    assert token["authorization_details"][0]["parameters"] == {"rows": 5}
    assert token["authorization_details"][0]["locations"] == [ARCHIVE]
    assert token["aud"] == ARCHIVE
    # One that needs approval or is never taints the whole request: nothing is issued in part.
    big = shared.token("data-bot", scope="archive:read", details={**details, "parameters": {"rows": 500}})
    assert big.json()["outcome"] == "approval"
    assert shared.token("data-bot", scope="archive:read archive:purge").json()["outcome"] == "never"


def test_44_what_the_boundary_does_not_hold_is_never(shared: Broker):
    answer = shared.token("mesh-bot", scope="archive:list").json()
    assert (answer["error"], answer["outcome"]) == ("access_denied", "never")
    both = shared.token("mesh-bot", scope="archive:read archive:list").json()
    assert both["outcome"] == "never"
    assert "archive:list is outside the boundary" in both["error_description"]


def test_the_lifetime_is_the_least_of_all_caps(broker: Broker):
    now = broker.clock.s
    assert claims(broker.granted())["exp"] == now + 300  # the configuration's
    assert claims(broker.granted("data-bot"))["exp"] == now + 120  # the agent's
    broker.clock.forward(0.6)
    task = broker.open_task("data-bot", deadline_seconds=30)
    assert claims(broker.granted("data-bot", task=task))["exp"] == now + 30  # the task's, rounded down
    broker.clock.forward(29.5)
    refused = broker.token("data-bot", task=task).json()
    assert (refused["error"], refused["outcome"]) == ("access_denied", "too_short")


# --- Approval ---------------------------------------------------------------------------------------------------------


def test_71_an_approval_is_of_one_exact_request(broker: Broker):
    first = broker.credit(6000).json()
    assert broker.credit(6000).json()["approval"]["id"] == first["approval"]["id"]  # 75: asking again is not another
    others = [
        broker.credit(6001),
        broker.credit(
            6000, details={"actions": ["credits:propose"], "parameters": {"invoice": "INV-2", "amount_cents": 6000}}
        ),
        broker.credit(6000, task=broker.open_task()),
    ]
    ids = {answer.json()["approval"]["id"] for answer in others}
    assert len(ids) == 3
    assert first["approval"]["id"] not in ids
    listed = {each["id"]: each for each in broker.get("/v1/approvals", by="operator").json()}
    assert listed.keys() == ids | {first["approval"]["id"]}
    shown = listed[first["approval"]["id"]]
    assert shown["state"] == "pending"
    assert shown["request"]["parameters"] == {"amount_cents": 6000, "invoice": "INV-1"}
    assert [gate["id"] for gate in shown["gates"]] == ["credit-over-limit"]
    requested = broker.events("approval.requested")
    assert {event["approval"] for event in requested} == listed.keys()
    assert requested[0]["digest"] == requested[1]["digest"] == shown["digest"]
    assert broker.query("SELECT count(*) FROM grants") == [(0,)]


def test_72_a_pending_request_expires_and_is_then_another(broker: Broker):
    first = broker.credit(6000).json()["approval"]["id"]
    broker.clock.forward(3_601)
    second = broker.credit(6000).json()["approval"]["id"]
    assert second != first
    assert broker.request("GET", f"/v1/approvals/{first}", bearer=broker.home.assertion()).json()["state"] == "expired"


def test_a_hold_comes_before_an_approval(broker: Broker):
    broker.post("/v1/agents/dispute-bot/pause", {"reason": "x"}, by="operator")
    assert broker.credit(6000).json()["outcome"] == "held"
    assert broker.events("approval.requested") == []


# --- Policy errors (9, 67) --------------------------------------------------------------------------------------------

ERRS = """
@id("errs")
forbid (principal, action == Action::"archive:export", resource)
when { context.parameters.rows * 9223372036854775807 > 5 };
"""


def test_67_an_erroring_never_does_not_open_the_door(broker: Broker):
    broker.home.write("policies/nevers/errs.cedar", ERRS)
    assert broker.post("/v1/reload", {}, by="operator").status_code == 200
    size = broker.size
    answer = broker.token("data-bot", details={"actions": ["archive:export"], "parameters": {"rows": 50}})
    assert (answer.status_code, answer.json()["error"]) == (400, "access_denied")
    (event,) = broker.events(start=size)
    assert (event["type"], event["outcome"]) == ("refused", "never")
    assert "why" in event
    assert broker.granted("data-bot")


# --- Decided once -----------------------------------------------------------------------------------------------------

NEVER_WHEN = (
    '@id("no-reading")\n@reason("x")\nforbid (principal, action == Action::"archive:read", resource) when {{ {} }};'
)
FACTS: dict[str, tuple[str, dict[str, Any]]] = {
    "trigger": ('context.trigger == "schedule"', {"trigger": {"kind": "schedule"}}),
    "on-behalf": ("context.on_behalf", {"on_behalf_of": "Jane"}),
    "depth": ("context.depth > 0", {"parent": True}),
}


@pytest.mark.parametrize("fact", FACTS)
def test_what_was_granted_before_is_granted_again_only_to_the_same_question(broker: Broker, fact: str):
    condition, body = FACTS[fact]
    broker.home.write("policies/nevers/fact.cedar", NEVER_WHEN.format(condition))
    assert broker.post("/v1/reload", {}, by="operator").status_code == 200
    if "parent" in body:
        body = {"parent": broker.open_task("data-bot")}
    task = broker.open_task("data-bot", **body)
    for _ in range(3):
        assert broker.granted("data-bot", scope="archive:read")
        assert broker.token("data-bot", scope="archive:read", task=task).json()["policies"] == ["no-reading"]
        assert broker.granted("data-bot", scope="archive:list", task=task)
        assert broker.granted("data-bot")["scope"] == "archive:list archive:read"
        assert broker.granted("data-bot", task=task)["scope"] == "archive:list"


def test_what_was_granted_before_is_decided_anew_by_new_rules(broker: Broker):
    for _ in range(2):
        assert broker.granted("mesh-bot")
        broker.home.write("policies/nevers/stop.cedar", NEVER_READ)
        assert broker.post("/v1/reload", {}, by="operator").status_code == 200
        assert broker.token("mesh-bot").json()["policies"] == ["no-reading"]
        broker.home.write("policies/nevers/stop.cedar", "")
        assert broker.post("/v1/reload", {}, by="operator").status_code == 200
    broker.home.replace("registry/agents.yaml", 'archive: ["archive:read"]', 'archive: ["archive:list"]')
    assert broker.post("/v1/reload", {}, by="operator").status_code == 200
    assert broker.token("mesh-bot", scope="archive:read").json()["error"] == "access_denied"


# --- Reload -----------------------------------------------------------------------------------------------------------

NEVER_READ = '@id("no-reading")\n@reason("Stop.")\nforbid (principal, action == Action::"archive:read", resource);\n'


def test_a_reload_is_atomic_and_an_event_with_its_difference(broker: Broker):
    broker.home.write("policies/nevers/stop.cedar", NEVER_READ)
    preview = broker.post("/v1/reload", {"dry_run": True}, by="operator").json()
    assert preview["policies"]["changes"] == [{"kind": "policy", "id": "no-reading", "change": "added"}]
    assert broker.granted("mesh-bot")  # nothing happened yet
    size = broker.size
    done = broker.post("/v1/reload", {"reason": "ticket 9"}, by="operator").json()
    assert done["policies"]["hash"] == preview["policies"]["hash"]
    (event,) = [event for event in broker.events(start=size) if event["type"] == "policies.loaded"]
    assert (event["actor"], event["reason"], event["hash"]) == ("operator", "ticket 9", done["policies"]["hash"])
    assert event["diff"] == preview["policies"]["changes"]
    assert broker.token("mesh-bot").json()["policies"] == ["no-reading"]


UNKNOWN = '@id("x") forbid (principal, action == Action::"no:such", resource);'
HALF = '@id("data-bot-reads")\npermit (principal == Agent::"da'
BROKEN = {
    "policy-syntax": ("policies/nevers/bad.cedar", "forbid (", None),
    "policy-unknown-action": ("policies/nevers/bad.cedar", UNKNOWN, None),
    "policy-in-the-wrong-folder": ("policies/permits/bad.cedar", NEVER_READ, None),
    "policy-half-written": ("policies/permits/data.cedar", HALF, None),
    "registry-yaml": ("registry/agents.yaml", "agents: [", None),
    "registry-unknown-key": ("registry/resources.yaml", None, ("audience:", "audiense:")),
    "registry-dangling": ("registry/verifiers.yaml", None, ("owner: data-team", "owner: nobody")),
    "registry-operator-in-trust": (
        "registry/trust.yaml",
        None,
        ("  mesh:\n", '  thief:\n    kind: key\n    subject: operator\n    jwks: {{"file": "x.json"}}\n  mesh:\n'),
    ),
}  # fmt: skip


def damage(home: Home, name: str) -> None:
    path, text, change = BROKEN[name]
    if change is not None:
        home.replace(path, *change)
    else:
        home.write(path, text or "")


@pytest.mark.parametrize("name", BROKEN)
def test_67_a_reload_that_does_not_load_changes_nothing_and_is_an_event(broker: Broker, name: str):
    before = broker.process.ledger.head
    damage(broker.home, name)
    assert broker.post("/v1/reload", {"dry_run": True}, by="operator").status_code == 422
    answer = broker.post("/v1/reload", {}, by="operator")
    assert answer.status_code == 422
    assert answer.json()["problems"]
    after = broker.process.ledger.head
    assert (after.registry_hash, after.policy_hash) == (before.registry_hash, before.policy_hash)
    (event,) = broker.events("reload.failed")
    assert event["problems"]
    assert event["actor"] == "operator"
    assert broker.granted()


@pytest.mark.parametrize("name", BROKEN)
def test_a_start_with_broken_files_keeps_the_kill_switch(home: Home, start: Callable[..., Broker], name: str):
    first = start()
    token = first.granted()["access_token"]
    first.close()
    original = home.text(BROKEN[name][0]) if (home.path / BROKEN[name][0]).exists() else None
    damage(home, name)
    broker = start()
    refused = broker.token()
    assert (refused.status_code, refused.json()["error"]) == (503, "temporarily_unavailable")
    assert refused.headers["retry-after"]
    assert broker.get("/readyz").status_code == 503
    assert broker.active(token)
    assert broker.post("/v1/agents/dispute-bot/pause", {"reason": "x"}, by="operator").status_code == 201
    assert not broker.active(token)
    assert broker.query("SELECT count(*) FROM grants") == [(1,)]
    # A reload of the half that is whole does not restart issuance; one of everything, once mended, does.
    half = "registry" if "policy" in name else "policies"
    broker.post("/v1/reload", {"what": half}, by="operator")
    assert broker.token("data-bot").status_code == 503
    if original is None:
        (home.path / BROKEN[name][0]).unlink()
    else:
        home.write(BROKEN[name][0], original)
    assert broker.post("/v1/reload", {}, by="operator").status_code == 200
    assert broker.token("data-bot").status_code == 200
    assert broker.token().json()["outcome"] == "held"


def test_a_broken_agent_is_blocked_alone(broker: Broker):
    broker.home.replace("registry/agents.yaml", "subject: data-bot}", "subject: data-bot, nonsense: 1}")
    assert broker.post("/v1/reload", {}, by="operator").json()["blocked_agents"]
    answer = broker.token("data-bot")
    assert answer.status_code in (400, 401)
    assert "agents.yaml" not in answer.text or answer.json()["error"] == "unauthorized_client"
    assert broker.token("mesh-bot").status_code == broker.token().status_code == 200


def test_an_expired_review_blocks_its_agent_alone(broker: Broker):
    broker.clock.forward(200 * 86_400)  # past dispute-bot's and data's reviews
    assert broker.token().json()["error"] == "unauthorized_client"
    assert broker.request("POST", "/v1/tasks", bearer=broker.home.assertion(), json={"purpose": "x"}).status_code == 400
    assert [event["reason"] for event in broker.events("refused")] == ["agent_blocked", "unauthorized_client"]


def test_67_every_decision_is_of_exactly_one_bundle_while_reloads_run(broker: Broker):
    """Issuance in flight while the policy changes back and forth: what a decision says fits the hash that it names."""
    home = broker.home
    broker.session("operator")

    async def issue() -> list[Any]:
        answers = []
        for _ in range(25):
            fields = [broker.token_fields("mesh-bot") for _ in range(4)]
            answers += await asyncio.gather(*(broker.http.post("/oauth2/token", data=each) for each in fields))
        return answers

    async def reload() -> None:
        for n in range(8):
            home.write("policies/nevers/stop.cedar", NEVER_READ if n % 2 == 0 else "")
            answer = await broker.ask("POST", "/v1/reload", bearer=broker.session("operator"), json={})
            assert answer.status_code == 200
            await asyncio.sleep(0.003)

    async def both() -> list[Any]:
        answers, _ = await asyncio.gather(issue(), reload())
        return answers

    answers = broker.run(both())
    assert {answer.status_code for answer in answers} <= {200, 400}
    forbidding = {
        e["hash"]
        for e in broker.events("policies.loaded")
        if {"kind": "policy", "id": "no-reading", "change": "added"} in e["diff"]
    }
    assert forbidding
    in_force = None
    for event in broker.events():
        if event["type"] == "policies.loaded":
            in_force = event["hash"]
        elif event["type"] == "issued":
            assert event["bundle"] == in_force
            assert event["bundle"] not in forbidding
        elif event["type"] == "refused":
            assert event["bundle"] == in_force
            assert event["bundle"] in forbidding


def elsewhere(act: Callable[[], Any]) -> Any:
    """Do it in another thread, as another process would, while this one's loop stands still."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(act).result()


def test_67_a_batch_decided_by_old_rules_is_decided_again(broker: Broker, monkeypatch: pytest.MonkeyPatch):
    """Another process reloads between decision and commit: no gate that fell away lingers, no new one is missed."""
    other = Broker(broker.home)
    try:
        gate = broker.home.text("policies/gates/data.cedar")
        steps = broker.process.broker.issuance._steps
        decide = type(steps).decide

        def change(text: str) -> None:
            broker.home.write("policies/gates/data.cedar", text)
            assert elsewhere(lambda: other.post("/v1/reload", {}, by="operator")).status_code == 200

        def racing(text: str) -> Callable[..., Any]:
            def decided(self: Any, *args: Any) -> Any:
                outcome = decide(self, *args)
                monkeypatch.undo()
                change(text)
                return outcome

            return decided

        request = {"details": {"actions": ["archive:export"], "parameters": {"rows": 500}}}
        other.session("operator")
        monkeypatch.setattr(type(steps), "decide", racing(""))
        assert broker.token("data-bot", **request).status_code == 200  # the gate is gone
        monkeypatch.setattr(type(steps), "decide", racing(gate))
        assert broker.token("data-bot", **request).json()["outcome"] == "approval"  # and back
        outcomes = [(e["type"], e["outcome"]) for e in broker.events("issued", "approval.requested")]
        assert outcomes == [("issued", "automatic"), ("approval.requested", "approval")]
    finally:
        other.close()


def test_67_trust_that_a_reload_withdrew_counts_no_more(broker: Broker, monkeypatch: pytest.MonkeyPatch):
    other = Broker(broker.home)
    try:
        other.session("operator")
        old, new = broker.home.idp.jwk, broker.home.other_idp.jwk
        steps = broker.process.broker.issuance._steps
        decide = type(steps).decide

        def decided(self: Any, *args: Any) -> Any:
            monkeypatch.undo()
            outcome = decide(self, *args)
            broker.home.replace("registry/trust.yaml", old["x"], new["x"])
            broker.home.replace("registry/trust.yaml", old["y"], new["y"])
            broker.home.replace("registry/trust.yaml", old["kid"], "replaced")
            assert elsewhere(lambda: other.post("/v1/reload", {}, by="operator")).status_code == 200
            return outcome

        monkeypatch.setattr(type(steps), "decide", decided)
        assert broker.token().status_code == 401
        assert broker.query("SELECT count(*) FROM grants") == [(0,)]
    finally:
        other.close()


@pytest.mark.parametrize("resource", [CREDITS, ARCHIVE])
def test_68_agents_cannot_smuggle_entities_through_ids(shared: Broker, resource: str):
    for text in ('Agent::"data-bot"', "archive:read\u200b", "ARCHIVE:READ", "archive:read*", "archive:*"):
        answer = shared.token("mesh-bot", resource=resource, scope=text)
        assert answer.status_code == 400
        assert answer.json()["error"] == "invalid_scope"
