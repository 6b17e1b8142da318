"""The error tables of the OAuth endpoints, row by row: code, status, headers, and what the ledger says afterwards."""

import json
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.kit import ARCHIVE, ASSERTION_TYPE, CREDITS, FORM, GRANTS, INVOICES, JWT_BEARER, PAYMENTS, Broker

DROP = object()


def oauth(answer: Any, code: str, status: int = 400) -> dict[str, Any]:
    """The body of an RFC 6749 error, its form checked."""
    assert (answer.status_code, answer.json().get("error")) == (status, code), answer.text
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert not {"access_token", "token_type", "expires_in"} & body.keys()  # 53: never an error and a token
    assert all(32 <= ord(char) < 127 and char not in '"\\' for char in body["error_description"])
    assert body["request_id"] == answer.headers["x-request-id"]
    return body


MALFORMED = {
    "no-grant_type": ({"grant_type": DROP}, "invalid_request"),
    "empty-grant_type": ({"grant_type": ""}, "invalid_request"),
    "unknown-grant": ({"grant_type": "authorization_code"}, "unsupported_grant_type"),
    "exchange-grant": ({"grant_type": "urn:ietf:params:oauth:grant-type:token-exchange"}, "unsupported_grant_type"),
    "password-grant": ({"grant_type": "password"}, "unsupported_grant_type"),
    "no-assertion": ({"client_assertion": DROP}, "invalid_request"),
    "no-assertion-type": ({"client_assertion_type": DROP}, "invalid_request"),
    "saml-assertion-type": (
        {"client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:saml2-bearer"},
        "invalid_request",
    ),
    "29-both-assertions": ({"assertion": "x.y.z"}, "invalid_request"),
    "29-secret-too": ({"client_secret": "hunter2"}, "invalid_request"),
    "29-password-too": ({"username": "a", "password": "b"}, "invalid_request"),
    "client_id-form": ({"client_id": "a b"}, "invalid_request"),
    "client_id-long": ({"client_id": "a" * 201}, "invalid_request"),
    "task-form": ({"task": "tsk 1"}, "invalid_request"),
    "77-task-control": ({"task": "tsk_\x00\x1b"}, "invalid_request"),
    "no-resource": ({"resource": DROP}, "invalid_target"),
    "resource-fragment": ({"resource": INVOICES + "#x"}, "invalid_target"),
    "resource-relative": ({"resource": "/invoices"}, "invalid_target"),
    "resource-long": ({"resource": "https://" + "x" * 600}, "invalid_target"),
    "scope-tab": ({"scope": "invoices:read\tcredits:propose"}, "invalid_scope"),
    "scope-two-spaces": ({"scope": "invoices:read  credits:propose"}, "invalid_scope"),
    "scope-quote": ({"scope": 'invoices:"read'}, "invalid_scope"),
    "68-scope-unicode": ({"scope": "invoice\u017f:read"}, "invalid_scope"),
    "85-scope-huge": ({"scope": " ".join(f"s{n}" for n in range(1000))}, "invalid_scope"),
    "details-no-json": ({"authorization_details": "{"}, "invalid_authorization_details"),
    "details-object": ({"authorization_details": '{"type":"task_action"}'}, "invalid_authorization_details"),
    "details-empty": ({"authorization_details": "[]"}, "invalid_authorization_details"),
    "details-two": (
        {"authorization_details": '[{"type":"task_action","actions":["a"]},{"type":"task_action","actions":["b"]}]'},
        "invalid_authorization_details",
    ),
    "details-unknown-type": ({"authorization_details": '[{"type":"payment"}]'}, "invalid_authorization_details"),
    "details-no-actions": ({"authorization_details": '[{"type":"task_action"}]'}, "invalid_authorization_details"),
    "details-actions-string": (
        {"authorization_details": '[{"type":"task_action","actions":"invoices:read"}]'},
        "invalid_authorization_details",
    ),
    "89-details-extra-member": (
        {"authorization_details": '[{"type":"task_action","actions":["invoices:read"],"approved":true}]'},
        "invalid_authorization_details",
    ),
    "16-details-duplicate-member": (
        {"authorization_details": '[{"type":"task_action","actions":["a"],"actions":["invoices:read"]}]'},
        "invalid_authorization_details",
    ),
    "85-details-deep": ({"authorization_details": "[" * 2000 + "]" * 2000}, "invalid_authorization_details"),
    "16-details-nan": (
        {"authorization_details": '[{"type":"task_action","actions":["a"],"parameters":{"n":NaN}}]'},
        "invalid_authorization_details",
    ),
}


@pytest.mark.parametrize(("changes", "code"), MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_requests_are_counted_and_issue_nothing(shared: Broker, changes: dict[str, Any], code: str):
    size = shared.size
    fields = {k: v for k, v in (shared.token_fields() | changes).items() if v is not DROP}
    oauth(shared.form("/oauth2/token", fields), code)
    shared.do("flush_refusals")
    assert [event["type"] for event in shared.events(start=size)] == ["refusals"]
    assert shared.events(start=size)[0]["counts"] == {code: 1}


REFUSED = {
    "unknown-resource": ({"resource": "https://nowhere.example.com"}, "invalid_target"),
    "22-resource-slash": ({"resource": INVOICES + "/"}, "invalid_target"),
    "22-resource-case": ({"resource": INVOICES.upper()}, "invalid_target"),
    "68-resource-pattern": ({"resource": "https://*.example.com"}, "invalid_target"),
    "77-resource-control": ({"resource": "https://x\r\nSet-Cookie: a=b"}, "invalid_target"),
    "unknown-scope": ({"scope": "invoices:write"}, "invalid_scope"),
    "scope-of-another-resource": ({"scope": "credits:propose"}, "invalid_scope"),
    "details-unknown-action": ({"details": {"actions": ["invoices:write"]}}, "invalid_authorization_details"),
    "details-location-elsewhere": (
        {"details": {"actions": ["invoices:read"], "locations": [CREDITS]}},
        "invalid_target",
    ),
    "details-unknown-parameter": (
        {"details": {"actions": ["invoices:read"], "parameters": {"all": True}}},
        "invalid_authorization_details",
    ),
    "details-missing-parameter": (
        {"resource": CREDITS, "details": {"actions": ["credits:propose"], "parameters": {"invoice": "I"}}},
        "invalid_authorization_details",
    ),
    "missing-parameters-for-scope": (
        {"resource": CREDITS, "scope": "credits:propose"},
        "invalid_authorization_details",
    ),
    "50-task-unknown": ({"task": "tsk_00000000_1"}, "unauthorized_client"),
    "29-client_id-differs": ({"client_id": "data-bot"}, "invalid_client"),
    "never": (
        {"resource": PAYMENTS, "details": {"actions": ["payments:transfer"], "parameters": {"amount_cents": 1}}},
        "access_denied",
    ),
    "outside-the-boundary": ({"resource": ARCHIVE, "scope": "archive:read"}, "access_denied"),
}


@pytest.mark.parametrize("grant", GRANTS, ids=["credentials", "bearer"])
@pytest.mark.parametrize(("changes", "code"), REFUSED.values(), ids=REFUSED.keys())
def test_refusals_of_an_agent_are_events_and_spend_its_proof(
    shared: Broker, changes: dict[str, Any], code: str, grant: str
):
    size, proof = shared.size, shared.home.assertion()
    body = oauth(shared.token(assertion=proof, grant=grant, **changes), code, 401 if code == "invalid_client" else 400)
    (event,) = shared.events(start=size)
    assert event["type"] == "refused"
    assert event["agent"] == "dispute-bot"
    assert body["decision_id"].endswith(f"_{event['seq']}")
    again = shared.token(assertion=proof, grant=grant)  # 80: refused, and spent all the same
    oauth(again, *(("invalid_grant", 400) if grant == JWT_BEARER else ("invalid_client", 401)))
    explained = shared.get(f"/v1/decisions/{body['decision_id']}", by="dispute-bot")
    assert explained.json()["reason"] == event["reason"]


PARAMETERS: dict[str, Any] = {
    "float": 100.0,
    "string": "100",
    "bool": True,
    "null": None,
    "list": [100],
    "68-entity": {"__entity": {"type": "Agent", "id": "x"}},
    "68-extension": {"__extn": {"fn": "decimal", "arg": "1.0"}},
    "zero": 0,
    "negative": -1,
    "too-much": 1_000_001,
    "67-i64+1": 2**63,
    "67-u64": 2**64 - 1,
    "67-beyond": 10**30,
    "67-min": -(2**63),
}


@pytest.mark.parametrize("value", PARAMETERS.values(), ids=PARAMETERS.keys())
def test_mistyped_parameters_are_refused(shared: Broker, value: Any):
    details = {
        "type": "task_action",
        "actions": ["credits:propose"],
        "parameters": {"invoice": "I", "amount_cents": value},
    }
    answer = shared.token(resource=CREDITS, authorization_details=json.dumps([details]))
    oauth(answer, "invalid_authorization_details")


@pytest.mark.parametrize("rows", [2**53 - 1, 2**53, 2**63 - 1, -(2**63), 2**63], ids=str)
def test_67_unbounded_numbers_under_a_gate_are_answered(shared: Broker, rows: int):
    details = {"actions": ["archive:export"], "parameters": {"rows": rows}}
    answer = shared.token("data-bot", details=details)
    assert answer.status_code in (200, 400)
    assert answer.json().get("error") in (None, "access_denied", "invalid_authorization_details")


@pytest.mark.parametrize("name", ["grant_type", "client_assertion", "scope", "task", "client_id"])
def test_29_a_repeated_parameter_is_invalid(shared: Broker, name: str):
    pairs = [*shared.token_fields().items(), (name, "x"), (name, "y")]
    oauth(shared.form("/oauth2/token", pairs), "invalid_request")


def test_a_second_resource_is_an_invalid_target(shared: Broker):
    oauth(shared.form("/oauth2/token", [*shared.token_fields().items(), ("resource", CREDITS)]), "invalid_target")


FORMS: dict[str, tuple[bytes | None, dict[str, str]]] = {
    "86-json": (b'{"grant_type":"client_credentials"}', {"content-type": "application/json"}),
    "86-json-as-form": (b'{"grant_type":"client_credentials"}', FORM),
    "85-multipart": (b"--x\r\n\r\n--x--", {"content-type": "multipart/form-data; boundary=x"}),
    "no-type": (None, {}),
    "text": (None, {"content-type": "text/plain"}),
    "empty": (b"", FORM),
    "raw-utf8": ("grant_type=ä".encode(), FORM),
    "overlong-utf8": (b"grant_type=%c0%af", FORM),
    "lone-surrogate": (b"grant_type=%ed%a0%80", FORM),
    "no-equals": (b"grant_type", FORM),
    "85-many-fields": (b"&".join(b"a%d=1" % n for n in range(10_000)), FORM),
    "85-too-long": (b"grant_type=" + b"x" * 70_000, FORM),
}


@pytest.mark.parametrize(("content", "headers"), FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize("path", ["/oauth2/token", "/oauth2/introspect", "/oauth2/revoke"])
def test_bodies_that_are_no_form(shared: Broker, path: str, content: bytes | None, headers: dict[str, str]):
    content = urlencode(shared.token_fields()).encode() if content is None else content
    oauth(shared.request("POST", path, content=content, headers=headers), "invalid_request")


@pytest.mark.parametrize("path", ["/oauth2/token", "/oauth2/introspect"])
def test_85_a_chunked_body_without_length_is_bounded(shared: Broker, path: str):
    served = 0

    async def endless():
        nonlocal served
        while served < 10_000:
            served += 1
            yield b"x" * 1024

    oauth(shared.request("POST", path, content=endless(), headers=FORM), "invalid_request")
    # The in-process transport reads ahead; over a socket the connection ends. The broker itself stopped at its limit.


@pytest.mark.parametrize("path", ["/oauth2/token", "/oauth2/introspect", "/oauth2/revoke"])
def test_90_parameters_in_the_url_are_refused(shared: Broker, path: str):
    fields = shared.token_fields() | {"token": "x"}
    oauth(shared.form(f"{path}?{urlencode(fields)}", fields, bearer=shared.session("operator")), "invalid_request")


def test_86_a_repeated_content_type_is_refused(shared: Broker):
    async def ask():
        return await shared.http.post(
            "/oauth2/token", content=b"a=b", headers=[("content-type", FORM["content-type"])] * 2
        )

    oauth(shared.run(ask()), "invalid_request")


@pytest.mark.parametrize("scheme", ["Basic ZGlzcHV0ZS1ib3Q6", "Bearer abc", "DPoP abc"])
def test_29_an_authorization_header_at_the_token_endpoint_is_a_second_method(shared: Broker, scheme: str):
    oauth(shared.form("/oauth2/token", shared.token_fields(), headers={"authorization": scheme}), "invalid_request")


def test_a_success_repeats_what_was_granted_and_is_not_cached(shared: Broker):
    answer = shared.credit(100)
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["pragma"] == "no-cache"
    body = answer.json()
    assert body["token_type"] == "Bearer"
    assert body["authorization_details"][0]["actions"] == ["credits:propose"]
    assert body["authorization_details"][0]["parameters"] == {"amount_cents": 100, "invoice": "INV-1"}
    assert body.keys() == {
        "access_token", "token_type", "expires_in", "task", "decision_id", "authorization_details",
    }  # fmt: skip


def test_approval_and_never_do_not_look_alike(shared: Broker):
    approval = oauth(shared.credit(6000), "access_denied")
    never = oauth(
        shared.token(resource=PAYMENTS, details={"actions": ["payments:transfer"], "parameters": {"amount_cents": 1}}),
        "access_denied",
    )
    assert (approval["outcome"], never["outcome"]) == ("approval", "never")
    assert approval["approval"]["approvers"] == ["finance-oncall"]
    assert approval["approval"]["id"] in approval["error_description"]
    assert "no-agent-moves-money" in never["policies"]
    assert never["retry"] is False


# --- Introspection and revocation (3.3) -------------------------------------------------------------------------------


def introspect(broker: Broker, token: str, **options: Any) -> Any:
    return broker.form("/oauth2/introspect", {"token": token}, **options)


def test_introspection_needs_a_caller(shared: Broker):
    answer = introspect(shared, "x.y.z")
    oauth(answer, "invalid_client", 401)
    bad = introspect(shared, "x.y.z", bearer="a.b.c")
    oauth(bad, "invalid_client", 401)
    assert bad.headers["www-authenticate"].startswith("Bearer")  # RFC 6749 5.2: the header was used


@pytest.mark.parametrize(
    "token", ["x", "x.y.z", "\x00", "🔑", "a" * 20_000, "operator-session"], ids=lambda text: ascii(text)[:12]
)
def test_a_token_that_is_not_one_is_inactive_and_nothing_else(shared: Broker, token: str):
    token = shared.session("operator") if token == "operator-session" else token
    answer = introspect(shared, token, bearer=shared.session("operator"))
    assert (answer.status_code, answer.json()) == (200, {"active": False})


def test_introspection_is_for_the_services_audience_only(shared: Broker):
    token = shared.granted()["access_token"]
    assert shared.active(token, by="billing")
    assert not shared.active(token, by="vault-door")  # 3.3: not for this resource server
    assert shared.active(token, by="dispute-bot")
    assert not shared.active(token, by="data-bot")
    assert not shared.active(token, by="data-lead")


def test_a_client_assertion_in_the_form_authenticates(shared: Broker):
    token = shared.granted()["access_token"]
    proof = {"client_assertion_type": ASSERTION_TYPE, "client_assertion": shared.home.assertion("billing")}
    assert shared.form("/oauth2/introspect", {"token": token, **proof}).json()["active"]
    oauth(shared.form("/oauth2/introspect", {"token": token, **proof}), "invalid_client", 401)  # 25
    both = shared.form("/oauth2/introspect", {"token": token, **proof}, bearer=shared.session("billing"))
    oauth(both, "invalid_request")  # 29
    other = {"client_assertion_type": ASSERTION_TYPE, "client_assertion": shared.home.assertion("billing")}
    oauth(
        shared.form("/oauth2/introspect", {"token": token, "client_id": "vault-door", **other}), "invalid_client", 401
    )


def test_revocation_of_ones_own_token_and_of_others(broker: Broker):
    token = broker.granted()["access_token"]
    for text in ("x", "x.y.z", "a" * 20_000):
        assert broker.form("/oauth2/revoke", {"token": text}, bearer=broker.session("data-bot")).status_code == 200
    other = broker.form("/oauth2/revoke", {"token": token}, bearer=broker.session("data-bot"))
    assert (other.status_code, other.content) == (200, b"")  # 50: as if it did not exist
    assert broker.active(token)
    for who in ("billing", "operator"):
        oauth(broker.form("/oauth2/revoke", {"token": token}, bearer=broker.session(who)), "unauthorized_client")
    own = broker.form("/oauth2/revoke", {"token": token}, bearer=broker.session("dispute-bot"))
    assert (own.status_code, own.content, own.headers["cache-control"]) == (200, b"", "no-store")
    assert not broker.active(token)


@pytest.mark.parametrize("path", ["/oauth2/introspect", "/oauth2/revoke"])
def test_introspection_and_revocation_need_one_token(shared: Broker, path: str):
    session = shared.session("dispute-bot")
    oauth(shared.form(path, {"x": "y"}, bearer=session), "invalid_request")
    oauth(shared.form(path, {"token": ""}, bearer=session), "invalid_request")
    oauth(shared.form(path, [("token", "a"), ("token", "b")], bearer=session), "invalid_request")


# --- Methods ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/oauth2/token", "/oauth2/introspect", "/oauth2/revoke"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "LIST"])
def test_54_other_methods_are_not_allowed(shared: Broker, path: str, method: str):
    answer = shared.request(method, path)
    assert answer.status_code == 405
    assert "POST" in answer.headers["allow"]
