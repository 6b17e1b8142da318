"""The ASGI application of one broker process."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Final

import structlog
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from broker.errors import Malformed, NotFound, TaskpassError
from broker.keys import Keyring
from broker.service import Broker
from broker.signals.attempts import Attempts
from broker.telemetry.tracing import Spans, enter
from broker.web import audit, credentials, oauth, operations, operator, revocations, tasks, token
from broker.web.feed import Feed
from broker.web.guards import check_guards, guard, record, routes_of
from broker.web.http import naming, problem, unforeseen
from broker.web.openapi import publish
from broker.web.readiness import Ready

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class WebSettings:
    """What the web layer needs of the configuration."""

    issuer: str
    control_url: str
    jwks_keep_ms: int
    max_body: int
    metrics_token: str | None = None
    max_streams: int = 1_800


def create_app(
    *,
    broker: Broker,
    keyring: Keyring,
    feed: Feed | None,
    attempts: Attempts,
    settings: WebSettings,
    scopes: Callable[[], set[str]],
    ready: Ready,
    exposition: Callable[[], bytes] | None = None,
    spans: Spans | None = None,
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
    app.state.attempts = attempts
    app.state.settings, app.state.scopes, app.state.ready = settings, scopes, ready
    app.state.exposition, app.state.spans = exposition, spans or Spans()
    if tokens:
        app.serve_tokens(token.TokenEndpoint(broker, attempts, max_body=settings.max_body))
    app.include_router(oauth.router)
    app.include_router(tasks.router)
    app.include_router(credentials.router)
    app.direct("POST", "/v1/credentials", credentials.issue)
    if feed is not None:
        app.include_router(operator.router)
        app.include_router(audit.router)
        app.include_router(revocations.router)
        app.direct("POST", "/v1/revocations/ack", revocations.acknowledge)
        app.include_router(operations.scraping)
    app.include_router(operations.router)
    publish(app)
    for kind, handler in _HANDLERS:
        app.add_exception_handler(kind, handler)
    check_guards(app.router.routes)
    return app


class Application(FastAPI):
    """FastAPI, but for the routes that are called most: neither middleware nor routing stands before those. Their rows
    in the routing table are for the guard table, the document and wrong methods.
    """

    token_endpoint: token.TokenEndpoint | None = None

    def __init__(self, **more: Any) -> None:  # noqa: ANN401  (FastAPI's)
        super().__init__(**more)
        self._direct: dict[tuple[str, str], ASGIApp] = {}

    def serve_tokens(self, endpoint: token.TokenEndpoint) -> None:
        """Serve the token endpoint, which authenticates and renders for itself."""
        self.token_endpoint = endpoint
        self.router.routes.insert(0, Route(token.PATH, endpoint, methods=["POST"]))
        self._direct["POST", token.PATH] = endpoint

    def direct(self, method: str, path: str, handler: Callable[[Request], Awaitable[Response]]) -> None:
        """Call `handler` for exactly this, after the same guard and with the same errors as anywhere."""
        route = next(
            each for each in routes_of(self.router.routes) if each.path == path and method in (each.methods or ())
        )

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            request = Request({**scope, "app": self, "route": route}, receive)
            try:
                await guard(request)
                response = await handler(request)
            except TaskpassError as error:
                response = await _refused(request, error)
            except Exception as error:  # noqa: BLE001  (rendered as a 500 that leaks nothing)
                response = await _bug(request, error)
            await response(scope, receive, send)

        self._direct[method, path] = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, under its id."""
        app: ASGIApp = super().__call__
        if scope["type"] == "http":
            app = self._direct.get((scope["method"], scope["path"]), app)
            if app is not self.token_endpoint:  # which does without what this costs
                send = naming(enter(scope["headers"]), send)
        await app(scope, receive, send)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, TaskpassError)
    await record(request, error)
    return problem(error)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first: dict[str, Any] = error.errors()[0]
    where = " ".join(str(part) for part in first["loc"])[:120]
    return await _refused(request, Malformed(f"{where}: {first['msg']}."))


async def _misrouted(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return problem(NotFound("There is no such path."))
    found = problem(Malformed("This path does not take that method."), error.status_code)
    for name, value in (error.headers or {}).items():
        found.headers[name] = value
    return found


async def _bug(_: Request, error: Exception) -> Response:
    return problem(unforeseen(error))


_HANDLERS: Final[Sequence[tuple[type[Exception], Callable[[Request, Exception], Awaitable[Response]]]]] = (
    (TaskpassError, _refused),
    (RequestValidationError, _invalid),
    (HTTPException, _misrouted),
    (Exception, _bug),
)
