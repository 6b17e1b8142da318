"""Laws over generated requests: what is issued lies within every input, and no answer's member is a way to set it."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.jose import parse
from tests.kit import ARCHIVE, CREDITS, INVOICES, PAYMENTS, Broker

BOUNDARY = {
    "dispute-bot": {INVOICES: {"invoices:read"}, CREDITS: {"credits:propose"}},
    "data-bot": {ARCHIVE: {"archive:read", "archive:list", "archive:export"}},
    "mesh-bot": {ARCHIVE: {"archive:read"}},
}
TTL = {"dispute-bot": 300, "data-bot": 120, "mesh-bot": 300}
ACTIONS = [
    "invoices:read", "credits:propose", "payments:transfer", "archive:read", "archive:list", "archive:export",
    "archive:purge", "no:such",
]  # fmt: skip
PARAMETERS = st.fixed_dictionaries(
    {},
    optional={
        "rows": st.sampled_from([0, 1, 100, 101, -1, 2**53, "7", True, 1.0]),
        "table": st.sampled_from(["t", "", "x" * 41, 7]),
        "full": st.booleans(),
        "invoice": st.sampled_from(["INV-1", "x" * 41]),
        "amount_cents": st.sampled_from([0, 1, 5000, 5001, 10**7, -5]),
        "extra": st.just(1),
    },
)
DETAILS = st.none() | st.fixed_dictionaries(
    {"actions": st.lists(st.sampled_from(ACTIONS), min_size=1, max_size=3, unique=True), "parameters": PARAMETERS}
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    agent=st.sampled_from(sorted(BOUNDARY)),
    resource=st.sampled_from([INVOICES, CREDITS, PAYMENTS, ARCHIVE]),
    scope=st.none() | st.lists(st.sampled_from(ACTIONS), min_size=1, max_size=3).map(" ".join),
    details=DETAILS,
    deadline=st.sampled_from([None, 5, 60, 3000]),
)
def test_44_49_what_is_issued_is_within_every_input(
    shared: Broker, agent: str, resource: str, scope: str | None, details: Any, deadline: int | None
):
    task = shared.open_task(agent, deadline_seconds=deadline) if deadline else None
    size = shared.size
    answer = shared.token(agent, resource=resource, scope=scope, details=details, task=task)
    issued = shared.events("issued", start=size)
    if answer.status_code != 200:
        assert answer.status_code in (400, 401)
        assert issued == []
        assert shared.get(f"/v1/decisions/{answer.json()['decision_id']}", by="reader").status_code == 200
    else:
        body = answer.json()
        claims = parse(body["access_token"]).unverified_claims
        limited = claims.get("authorization_details", [])
        actions = {*claims.get("scope", "").split(), *(action for each in limited for action in each["actions"])}
        named = {*(scope or "").split(), *((details or {}).get("actions", ()))}
        assert actions
        assert actions <= BOUNDARY[agent].get(resource, set())
        assert actions == named or not named
        assert not actions & {"archive:purge", "payments:transfer"}
        assert claims["aud"] == resource
        asked = (details or {}).get("parameters", {})
        for each in limited:
            assert each["locations"] == [resource]
            assert each.get("parameters", {}) == asked
            assert asked.get("rows", 0) <= 100
            assert asked.get("amount_cents", 0) <= 5000
        assert claims["exp"] <= shared.clock.s + min(TTL[agent], deadline or 10**9)
        assert claims["iat"] == shared.clock.s
        (event,) = issued
        assert (claims["seq"], claims["jti"]) == (event["seq"], event["jti"])
        assert (body.get("scope"), body.get("authorization_details")) == (
            claims.get("scope"),
            claims.get("authorization_details"),
        )
    if task:
        assert shared.post(f"/v1/tasks/{task}/end", by=agent).status_code == 200


def members(value: Any) -> set[str]:
    """Every member name in a JSON value."""
    if isinstance(value, dict):
        return set(value) | {name for each in value.values() for name in members(each)}
    return {name for each in value for name in members(each)} if isinstance(value, list) else set()


WRITES: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "/v1/tasks": ("dispute-bot", {"purpose": "x"}, {"purpose", "trigger", "on_behalf_of", "parent"}),
    "/v1/kills": ("operator", {"target": "key", "value": "x", "reason": "x"}, {"target", "value", "reason", "hold"}),
    "/v1/agents/dispute-bot/pause": ("operator", {"reason": "x"}, {"reason"}),
    "/v1/agents/dispute-bot/resume": ("operator", {"reason": "x"}, {"reason"}),
    "/v1/reload": ("operator", {"dry_run": True}, {"reason"}),
    "/v1/keys/rotate": ("operator", {"reason": "x"}, {"reason"}),
}


@pytest.mark.parametrize("path", WRITES)
def test_89_no_member_of_any_answer_can_be_posted_back(shared: Broker, path: str):
    shared.granted()
    shared.credit(6000)
    task = shared.open_task()
    answered: set[str] = set()
    for where in (
        "/v1/agents", "/v1/whoami", "/v1/tasks", f"/v1/tasks/{task}", f"/v1/tasks/{task}/receipt", "/v1/kills",
        "/v1/holds", "/v1/approvals", "/v1/keys", "/v1/revocations", "/v1/ledger?limit=100",
    ):  # fmt: skip
        answered |= members(shared.get(where, by="operator").json())
    who, body, known = WRITES[path]
    known = known | {"deadline_seconds", "heartbeat_seconds", "what", "dry_run"}
    size = shared.size
    for name in sorted(answered - known):
        answer = shared.post(path, {**body, name: "x"}, by=who)
        assert answer.status_code == 400, name
    assert shared.size == size
    assert len(answered) > 60


@pytest.mark.parametrize("name", ["access_token", "expires_in", "decision_id", "seq", "jti", "exp", "approved", "sub"])
def test_89_extra_form_fields_change_nothing(shared: Broker, name: str):
    body = shared.form("/oauth2/token", {**shared.token_fields(), name: "9999999999"}).json()
    claims = parse(body["access_token"]).unverified_claims
    assert claims["sub"] == "dispute-bot"
    assert claims["exp"] == shared.clock.s + 300
