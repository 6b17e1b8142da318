"""The adapters over HTTP: status, challenge and body for every way in which a request can be refused."""

import asyncio
import contextlib
from typing import Annotated

import httpx2
import pytest
from fastapi import Depends, FastAPI

from broker.sdk.access_token import AccessToken
from broker.sdk.adapters.asgi import TaskpassMiddleware
from broker.sdk.adapters.fastapi import require

from .kit import AUDIENCE, asynchronous, broker_and_clock, verifier_of

METADATA = "https://invoices.test/.well-known/oauth-protected-resource"


def fastapi_app(verifier):
    app = FastAPI()

    @app.get("/invoices")
    async def read(token: Annotated[AccessToken, Depends(require(verifier, "invoices:read", "invoices:list"))]):
        return {"agent": token.agent, "task": token.task}

    @app.get("/livez")
    async def livez():
        return {}

    return app


def asgi_app(verifier):
    async def inner(scope, receive, send):
        token = scope.get("taskpass")
        assert token is scope.get("state", {}).get("taskpass")
        body = b"{}" if token is None else f'{{"agent":"{token.agent}","task":"{token.task}"}}'.encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    scopes = {"/invoices": ["invoices:read", "invoices:list"], "/any": []}
    return TaskpassMiddleware(inner, verifier=verifier, scopes=scopes, public=["/livez"])


@contextlib.asynccontextmanager
async def service(make_app):
    broker, clock = broker_and_clock()
    async with verifier_of(broker, clock, resource_metadata=METADATA) as verifier:
        transport = httpx2.ASGITransport(app=make_app(verifier))
        async with httpx2.AsyncClient(transport=transport, base_url=AUDIENCE) as web:
            yield broker, clock, web


both = pytest.mark.parametrize("make_app", [fastapi_app, asgi_app], ids=["fastapi", "asgi"])


def bearing(token):
    return {"Authorization": f"Bearer {token}"}


@both
@asynchronous
async def test_a_good_token_reaches_the_application(make_app):
    async with service(make_app) as (broker, _clock, web):
        token = broker.token(audience=AUDIENCE, scope="invoices:read invoices:list", task="tsk_1")
        for header in (bearing(token), {"authorization": f"bearer {token}"}):
            answer = await web.get("/invoices", headers=header)
            assert answer.json() == {"agent": "agent", "task": "tsk_1"}
        assert (await web.get("/livez")).status_code == 200


@both
@pytest.mark.parametrize("headers", [{}, {"Authorization": "Basic YTpi"}], ids=["none", "basic"])
@asynchronous
async def test_without_a_token_the_challenge_names_no_error(make_app, headers):
    async with service(make_app) as (_broker, _clock, web):
        answer = await web.get("/invoices", headers=headers)
        assert answer.status_code == 401
        challenge = answer.headers["www-authenticate"]
        assert challenge.startswith("Bearer ")
        assert f'resource_metadata="{METADATA}"' in challenge
        assert "error" not in challenge
        assert answer.headers["cache-control"] == "no-store"


@both
@asynchronous
async def test_a_dead_token_is_an_invalid_token(make_app):
    async with service(make_app) as (broker, _clock, web):
        token = broker.token(audience=AUDIENCE, scope="invoices:read invoices:list")
        assert (await web.get("/invoices", headers=bearing(token))).status_code == 200
        await broker.acknowledged(broker.kill(agent="agent"))
        answer = await web.get("/invoices", headers=bearing(token))
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith('Bearer error="invalid_token"')
        assert token not in answer.text


@both
@asynchronous
async def test_too_little_scope_is_told_all_that_is_needed(make_app):
    async with service(make_app) as (broker, _clock, web):
        answer = await web.get("/invoices", headers=bearing(broker.token(audience=AUDIENCE, scope="invoices:read")))
        assert answer.status_code == 403
        challenge = answer.headers["www-authenticate"]
        assert 'error="insufficient_scope"' in challenge
        assert 'scope="invoices:read invoices:list"' in challenge
        assert f'resource_metadata="{METADATA}"' in challenge


@both
@asynchronous
async def test_a_stale_strict_verifier_asks_to_come_back(make_app):
    async with service(make_app) as (broker, clock, web):
        token = broker.token(audience=AUDIENCE, scope="invoices:read invoices:list")
        clock.sleep(6)
        answer = await web.get("/invoices", headers=bearing(token))
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        assert "www-authenticate" not in answer.headers


@both
@pytest.mark.parametrize(
    "headers",
    [
        [("Authorization", "Bearer a.b.c"), ("Authorization", "Bearer d.e.f")],
        [("Authorization", "Bearer")],
        [("Authorization", "Bearer  a.b.c")],
        [("Authorization", "Bearer a.b.c d")],
        [("Authorization", b"Bearer \xff")],
    ],
    ids=["two headers", "no token", "two spaces", "two tokens", "not ASCII"],
)
@asynchronous
async def test_an_ambiguous_header_is_a_bad_request(make_app, headers):
    async with service(make_app) as (_broker, _clock, web):
        answer = await web.get("/invoices", headers=headers)
        assert answer.status_code == 400
        assert 'error="invalid_request"' in answer.headers["www-authenticate"]


@both
@asynchronous
async def test_a_new_signing_key_is_found_without_a_refusal(make_app):
    async with service(make_app) as (broker, _clock, web):
        broker.rotate()
        token = broker.token(audience=AUDIENCE, scope="invoices:read invoices:list")
        assert (await web.get("/invoices", headers=bearing(token))).status_code == 200


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/any", 200),
        ("/any/thing", 200),
        ("/anything", 403),
        ("/other", 403),
        ("/livez/x", 403),
        ("/invoices/7", 403),
        ("//any", 403),
    ],
)
@asynchronous
async def test_the_middleware_refuses_paths_that_nothing_covers(path, status):
    async with service(asgi_app) as (broker, _clock, web):
        answer = await web.get(f"{AUDIENCE}{path}", headers=bearing(broker.token(audience=AUDIENCE)))
        assert answer.status_code == status


@asynchronous
async def test_the_middleware_closes_a_websocket_without_a_token_and_lets_lifespan_pass():
    broker, clock = broker_and_clock()
    reached, sent = [], []

    async def inner(scope, _receive, _send):
        reached.append((scope["type"], "taskpass" in scope))

    async def send(message):
        sent.append(message)

    async with verifier_of(broker, clock) as verifier:
        app = TaskpassMiddleware(inner, verifier=verifier)
        socket = {"type": "websocket", "path": "/", "headers": []}
        await app(socket, None, send)
        token = broker.token(audience=AUDIENCE)
        await app(socket | {"headers": [(b"authorization", b"Bearer " + token.encode())]}, None, send)
        await app({"type": "lifespan"}, None, send)
    assert [message["type"] for message in sent] == ["websocket.close"]
    assert reached == [("websocket", True), ("lifespan", False)]


def test_openapi_shows_that_a_token_is_needed():
    broker, clock = broker_and_clock()
    document = fastapi_app(verifier_of(broker, clock)).openapi()
    assert document["paths"]["/invoices"]["get"]["security"] == [{"Taskpass": []}]
    assert document["components"]["securitySchemes"]["Taskpass"]["scheme"] == "bearer"


def test_a_real_service_stops_accepting_when_the_broker_kills():
    """Everything over loopback sockets: the broker, the feed, and the service that follows it."""
    import socket
    import threading

    import uvicorn

    from broker.sdk.testkit import FakeBroker

    broker = FakeBroker()
    listener = socket.create_server(("127.0.0.1", 0))
    with broker.serve():
        verifier = broker.verifier(audience=AUDIENCE, http=None)

        @contextlib.asynccontextmanager
        async def lifespan(_app):
            async with verifier:
                yield

        app = FastAPI(lifespan=lifespan)
        app.mount("/", fastapi_app(verifier))
        config = uvicorn.Config(app, log_level="critical", ws="none", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            broker.feed.until(lambda: bool(broker.feed.acknowledged))
            token = broker.token(audience=AUDIENCE, scope="invoices:read invoices:list")
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/invoices"
            assert httpx2.get(url, headers=bearing(token)).status_code == 200
            asyncio.run(broker.acknowledged(broker.kill(agent="agent")))
            assert httpx2.get(url, headers=bearing(token)).status_code == 401
        finally:
            server.should_exit = True
            thread.join()
            listener.close()
