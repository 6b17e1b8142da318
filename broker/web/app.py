"""The ASGI application of one broker process."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import structlog
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from broker.errors import Malformed, NotFound, TaskpassError
from broker.keys import Keyring
from broker.service import Broker
from broker.web import audit, credentials, oauth, operator, revocations, tasks
from broker.web.feed import Feed
from broker.web.guards import check_guards, guard, record
from broker.web.http import json_answer, problem, unforeseen
from broker.web.openapi import publish

log = structlog.get_logger(__name__)

_TOKEN = "/oauth2/token"  # noqa: S105  (a path)


@dataclass(frozen=True, slots=True)
class WebSettings:
    """What the web layer needs of the configuration."""

    issuer: str
    control_url: str
    jwks_keep_ms: int
    max_body: int


def create_app(
    *,
    broker: Broker,
    keyring: Keyring,
    feed: Feed | None,
    settings: WebSettings,
    scopes: Callable[[], set[str]],
    ready: Callable[[], list[str]],
    tokens: bool,
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]] | None = None,
) -> FastAPI:
    """The application of a token worker (`tokens`), of the control process (`feed`), or of both in one.

    Raises RuntimeError when a route has no guard.
    """
    app = Application(
        title="Taskpass",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        dependencies=[Depends(guard)],
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.broker, app.state.keyring, app.state.feed = broker, keyring, feed
    app.state.settings, app.state.scopes, app.state.ready = settings, scopes, ready
    if tokens:
        app.token_endpoint = oauth.TokenEndpoint(broker, max_body=settings.max_body)
        app.router.routes.insert(0, Route(_TOKEN, app.token_endpoint, methods=["POST"]))
    app.include_router(oauth.router)
    app.include_router(tasks.router)
    app.include_router(credentials.router)
    if feed is not None:
        app.include_router(operator.router)
        app.include_router(audit.router)
        app.include_router(revocations.router)
    app.add_api_route("/livez", _livez, methods=["GET"])
    app.add_api_route("/readyz", _readyz, methods=["GET"])
    publish(app)
    _render_errors(app)
    check_guards(app.router.routes)
    return app


class Application(FastAPI):
    """FastAPI, but for the one hot route: neither middleware nor routing stands before it. Its row in the routing table
    is for the guard table, the document and wrong methods.
    """

    token_endpoint: oauth.TokenEndpoint | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        hot = self.token_endpoint
        if hot is not None and scope["type"] == "http" and scope["path"] == _TOKEN and scope["method"] == "POST":
            await hot(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


async def _livez() -> Response:
    return json_answer({"status": "alive"})


async def _readyz(request: Request) -> Response:
    """Ready to issue, or the reasons why not."""
    reasons = request.app.state.ready()
    return json_answer(
        {"status": "ready" if not reasons else "not ready", "reasons": reasons}, 200 if not reasons else 503
    )


def _render_errors(app: FastAPI) -> None:
    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, TaskpassError)
        await record(request, error)
        return problem(error)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first: dict[str, Any] = error.errors()[0]
        where = " ".join(str(part) for part in first["loc"])[:120]
        return await refused(request, Malformed(f"{where}: {first['msg']}."))

    async def routing(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 404:
            return problem(NotFound("There is no such path."))
        found = problem(Malformed("This path does not take that method."), error.status_code)
        for name, value in (error.headers or {}).items():
            found.headers[name] = value
        return found

    async def bug(_: Request, error: Exception) -> Response:
        return problem(unforeseen(error))

    handlers: list[tuple[type[Exception], Callable[[Request, Exception], Awaitable[Response]]]] = [
        (TaskpassError, refused),
        (RequestValidationError, invalid),
        (HTTPException, routing),
        (Exception, bug),
    ]
    for kind, handler in handlers:
        app.add_exception_handler(kind, handler)
