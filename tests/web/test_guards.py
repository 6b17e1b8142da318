"""Who gets through to which route: every row of the guard table against every kind of caller, and what a refusal leaves
behind. 54 and 92 of the attack catalogue.
"""

from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from starlette.routing import Mount

from broker.jose import Signer
from broker.web.guards import GUARDS, check_guards
from tests.kit import Broker

KINDS = {"agent": "dispute-bot", "verifier": "billing", "operator": "reader"}
GUARDED = [(method, path, row) for (method, path), row in GUARDS.items() if row.kinds is not None]
NOT_GUARDED = [(method, path) for (method, path), row in GUARDS.items() if row.kinds is None and not row.scrapes]


def problem(answer: Any, code: str, status: int) -> dict[str, Any]:
    """The body of an RFC 9457 answer, its form checked."""
    assert (answer.status_code, answer.json().get("code")) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    body = dict(answer.json())
    assert body["status"] == status
    assert body["type"] == f"urn:taskpass:error:{code}"
    assert body["title"]
    assert body["detail"]
    assert body["request_id"] == answer.headers["x-request-id"]
    return body


def filled(path: str) -> str:
    return path.replace("{seq}", "3").replace("{", "").replace("}", "")


def name(value: Any) -> str:
    return value if isinstance(value, str) else ""


@pytest.mark.parametrize(("method", "path", "row"), GUARDED, ids=name)
def test_92_no_route_answers_strangers(shared: Broker, method: str, path: str, row: Any):
    size = shared.size
    answer = shared.request(method, filled(path))
    problem(answer, "invalid_client", 401)
    assert answer.headers["www-authenticate"] == "Bearer"
    for bad in ("x", "x.y.z", "a" * 20_000, shared.granted()["access_token"], "\x80"):  # 20: our own token too
        size = shared.size
        problem(
            shared.request(method, filled(path), headers={"authorization": b"Bearer " + bad.encode("latin-1")}),
            "invalid_client",
            401,
        )
        assert shared.size == size
    for scheme in ("Basic eDp5", "Bearer", "Bearer  ", ""):
        problem(shared.request(method, filled(path), headers={"authorization": scheme}), "invalid_client", 401)
    shared.do("flush_refusals")
    assert shared.events("refusals")[-1]["counts"]["no_credential"] >= 1


@pytest.mark.parametrize(("method", "path", "row"), GUARDED, ids=name)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["session", "assertion"])
def test_54_only_the_kinds_in_the_table_get_through(
    shared: Broker, method: str, path: str, row: Any, kind: str, how: str
):
    if path == "/v1/revocations/stream" and kind == "verifier":
        pytest.skip("an endless answer: tested over a socket")
    who = KINDS[kind]
    proof = shared.session(who) if how == "session" else shared.home.proof(who)
    size = shared.size
    answer = shared.request(method, filled(path), bearer=proof)
    assert answer.status_code < 500
    if kind in row.kinds:
        assert "This is for" not in answer.text
        return
    body = problem(answer, "forbidden", 403)
    (event,) = shared.events(start=size)  # 80: recorded, and the proof is spent
    assert (event["type"], event["caller"], event["reason"], event["route"]) == (
        "refused",
        [kind, who],
        "forbidden",
        path,
    )
    assert body["decision_id"].endswith(f"_{event['seq']}")
    assert ("proof" in event) == (how == "assertion")
    if how == "assertion":
        problem(shared.request("GET", "/v1/whoami", bearer=proof), "invalid_client", 401)


def test_no_workload_is_in_any_operators_row():
    for (method, path), row in GUARDS.items():
        acts_on_others = any(part in path for part in ("/agents", "/kills", "/holds", "/reload", "/keys"))
        if row.kinds is not None and acts_on_others:
            assert row.kinds == {"operator"}, (method, path)


@pytest.mark.parametrize("kind", ["plain", "included", "mounted"])
def test_a_route_without_a_guard_does_not_boot(kind: str):
    app, router = FastAPI(), APIRouter()

    async def handler() -> None: ...

    if kind == "mounted":
        app.mount("/v1/extra", FastAPI())
        assert any(isinstance(route, Mount) for route in app.router.routes)
    else:
        (app if kind == "plain" else router).add_api_route("/v1/extra", handler, methods=["GET"])
        app.include_router(router)
    with pytest.raises(RuntimeError, match="guard"):
        check_guards(app.router.routes)


def test_the_table_has_no_row_without_a_route(shared: Broker):
    document = shared.get("/openapi.json").json()
    published = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert published | {("GET", "/openapi.json")} == set(GUARDS)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1",
        "/v1/agents/",
        "//v1/agents",
        "/v1//agents",
        "/v1/./agents",
        "/v1/x/../agents",
        "/v1/%2e%2e/v1/agents",
        "/V1/agents",
        "/v1/agents;x=1",
        "/v1/agents%00",
        "/v1/agents%0a",
        "/docs",
        "/redoc",
        "/metrics",
        "/console",
        "/internal",
        "/oauth2/token/",
        "/oauth2/authorize",
    ],
)
@pytest.mark.parametrize("by", [None, "operator"])
def test_54_path_tricks_reach_nothing(shared: Broker, path: str, by: str | None):
    scope_path = path.split("?", maxsplit=1)[0]

    async def ask() -> list[dict[str, Any]]:  # past the client, which would tidy the path
        sent: list[dict[str, Any]] = []
        headers = [(b"authorization", b"Bearer " + shared.session(by).encode())] if by else []
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http",
            "path": scope_path.replace("%00", "\x00").replace("%0a", "\n").replace("%2e", "."),
            "raw_path": scope_path.encode(), "query_string": b"", "root_path": "", "headers": headers,
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8700), "state": {},
        }  # fmt: skip

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await shared.process.app(scope, receive, send)
        return sent

    if by:
        shared.session(by)
    sent = shared.run(ask())
    assert sent[0]["status"] == 404


@pytest.mark.parametrize(("method", "path", "row"), GUARDED, ids=name)
def test_other_methods_are_not_allowed(shared: Broker, method: str, path: str, row: Any):
    allowed = {m for m, p in GUARDS if p == path}
    for other in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "LIST", "TRACE"} - allowed:
        answer = shared.request(other, filled(path), bearer=shared.session("operator"))
        assert answer.status_code == 405, other
        if other != "HEAD":
            problem(answer, "invalid_request", 405)


# --- Bodies and queries -----------------------------------------------------------------------------------------------

POSTS = {
    "/v1/tasks": ("dispute-bot", {"purpose": "x"}),
    "/v1/kills": ("operator", {"target": "task", "value": "tsk_00000000_1", "reason": "x"}),
    "/v1/agents/dispute-bot/pause": ("operator", {"reason": "x", "dry_run": True}),
    "/v1/reload": ("operator", {"dry_run": True}),
}
BODIES: dict[str, Any] = {
    "no-json": b"{",
    "array": b"[]",
    "string": b'"x"',
    "null": b"null",
    "utf16": '{"reason":"x"}'.encode("utf-16"),
    "16-bom": b"\xef\xbb\xbf{}",
    "16-duplicate": b'{"reason":"x","reason":"y","purpose":"x"}',
    "16-surrogate": b'{"reason":"\\ud800","purpose":"\\ud800"}',
    "16-deep": b'{"reason":' + b"[" * 5000 + b"]" * 5000 + b"}",
    "85-long": b'{"reason":"' + b"x" * 70_000 + b'"}',
    "16-digits": b'{"reason":' + b"1" * 5000 + b"}",
    "16-nan": b'{"reason":NaN}',
    "form": b"reason=x",
}


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("content", BODIES.values(), ids=BODIES.keys())
def test_16_bodies_that_are_no_strict_json(shared: Broker, path: str, content: bytes):
    answer = shared.request("POST", path, bearer=shared.session(POSTS[path][0]), content=content)
    problem(answer, "invalid_request", 400)


@pytest.mark.parametrize("path", POSTS)
def test_89_unknown_members_and_other_types_are_refused(shared: Broker, path: str):
    who, good = POSTS[path]
    for extra in ("id", "state", "owner", "seq", "is_admin", "approved", "expires_at", "__proto__", "actor", "alarm"):
        problem(shared.post(path, {**good, extra: True}, by=who), "invalid_request", 400)
    for member in good:
        for wrong in (None, 1.5, [], {}, 7):
            problem(shared.post(path, {**good, member: wrong}, by=who), "invalid_request", 400)


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=-1",
        "limit=1001",
        "limit=x",
        "limit=" + "9" * 400,
        "from=-1",
        "from=9007199254740993",
        "from=1.5",
    ],
    ids=lambda text: text[:20],
)
def test_85_query_parameters_are_bounded(shared: Broker, query: str):
    problem(shared.get(f"/v1/ledger?{query}", by="operator"), "invalid_request", 400)


def test_85_a_query_with_ten_thousand_parameters(shared: Broker):
    query = "&".join(f"{n % 10}=" for n in range(10_000))
    assert shared.get(f"/v1/agents?{query}", by="operator").status_code in (200, 400)


@pytest.mark.parametrize("seq", ["-1", "999999", "9007199254740993", "9" * 30, "x", "1.5", "0x1", "%00"])
def test_79_proofs_of_positions_that_do_not_exist(shared: Broker, seq: str):
    assert shared.get(f"/v1/ledger/proof/{seq}", by="operator").status_code in (400, 404)


@pytest.mark.parametrize("query", ["from=0", "from=1&to=999999", "from=5&to=2", "from=x", "to=3", "from=1&size=0"])
def test_79_consistency_of_sizes_that_do_not_fit(shared: Broker, query: str):
    answer = shared.get(f"/v1/ledger/consistency?{query}", by="operator")
    assert answer.status_code in (400, 404) or query == "from=1&size=0"


# --- Sessions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["dispute-bot", "billing", "operator", "break-glass"])
def test_a_session_opens_no_other_session(shared: Broker, who: str):
    problem(shared.post("/v1/sessions", by=who), "forbidden", 403)


def test_87_a_session_says_who_it_is_and_nothing_else_can_make_one(shared: Broker):
    from broker.jose import parse

    session = shared.session("reader")
    claims = parse(session).unverified_claims
    header = parse(session).header
    forged = Signer(private_key=shared.home.idp._key, kid=header.kid).sign("session+jwt", {**claims, "sub": "operator"})
    problem(shared.request("GET", "/v1/whoami", bearer=forged), "invalid_client", 401)
    for change in ({"kind": "operator"}, {"sub": "operator"}, {"seq": 1 << 60}, {"exp": claims["exp"] + 9}):
        key = shared.process.keyring.signer(header.kid)
        stale_kind = key.sign("at+jwt", {**claims, **change})  # the right key under another type
        problem(shared.request("GET", "/v1/whoami", bearer=stale_kind), "invalid_client", 401)
    problem(shared.request("GET", "/v1/whoami", bearer=session[:-4] + "AAAA"), "invalid_client", 401)


def test_62_the_session_of_a_killed_agent_is_dead_for_good(broker: Broker):
    session = broker.session("dispute-bot")
    assert broker.get("/v1/whoami", by="dispute-bot").status_code == 200
    broker.post("/v1/agents/dispute-bot/pause", {"reason": "test"}, by="operator")
    problem(broker.request("GET", "/v1/whoami", bearer=session), "invalid_client", 401)
    assert broker.request("POST", "/v1/sessions", bearer=broker.home.assertion()).status_code == 403
    broker.post("/v1/agents/dispute-bot/resume", {"reason": "test"}, by="operator")
    for _ in range(4):  # while the floor passes the kill, and tokens of that time have long expired
        broker.clock.forward(200)
        broker.granted("data-bot")
        broker.do("housekeep")
        problem(broker.request("GET", "/v1/whoami", bearer=session), "invalid_client", 401)
    assert broker.request("GET", "/v1/whoami", bearer=broker.home.assertion()).status_code == 200


def test_an_operators_session_outlives_a_kill_of_everything(broker: Broker):
    broker.session("reader")
    assert broker.kill("all").status_code == 201
    assert broker.get("/v1/whoami", by="reader").status_code == 200


def test_sessions_end_with_their_registration(broker: Broker):
    for who in ("data-bot", "data-lead", "vault-door"):
        assert broker.get("/v1/whoami", by=who).status_code == 200
    home = broker.home
    home.replace("registry/agents.yaml", "  data-bot:\n", "  data-bot:\n    retired: true\n")
    operators = home.text("registry/operators.yaml")
    home.write("registry/operators.yaml", operators[: operators.index("  data-lead:")])
    verifiers = home.text("registry/verifiers.yaml")
    home.write("registry/verifiers.yaml", verifiers[: verifiers.index("  vault-door:")])
    assert broker.post("/v1/reload", {}, by="operator").status_code == 200
    for who in ("data-bot", "data-lead", "vault-door"):
        problem(broker.get("/v1/whoami", by=who), "invalid_client", 401)


@pytest.mark.parametrize("path", NOT_GUARDED, ids=lambda pair: pair[1])
def test_public_routes_show_no_more_than_they_should(shared: Broker, path: tuple[str, str]):
    method, where = path
    if method == "GET":
        answer = shared.request(method, where)
        assert answer.status_code == 200
        assert '"d":' not in answer.text
        assert "cache-control" in answer.headers
