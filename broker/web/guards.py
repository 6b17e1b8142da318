"""Who may call which route: one table, and a route without a row does not boot.

The guard authenticates the caller, compares its kind with the row, and spends its single-use proof, before the handler
runs. A handler that commits the proof together with its own act says so (`spends`). Rights and scope of operators are
the service's business; that no workload identity ever reaches an operator's route is decided here.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from starlette.routing import BaseRoute, Route

from broker.errors import Forbidden, NotAuthenticated, NotFound, TaskpassError
from broker.model import Caller
from broker.service import Broker
from broker.service.callers import kind_of
from broker.signals.attempts import Attempts

AGENT, VERIFIER, OPERATOR = "agent", "verifier", "operator"
ANY = frozenset({AGENT, VERIFIER, OPERATOR})


@dataclass(frozen=True, slots=True)
class Guard:
    """The kinds of callers a route is for; None: anonymous. With `spends` its handler spends the proof itself, in its
    own commit. With `kills` it works even while no proof can be recorded as spent. With `scrapes` its handler asks for
    the configured token of the scraper.
    """

    kinds: frozenset[str] | None
    spends: bool = False
    kills: bool = False
    scrapes: bool = False


_PUBLIC = Guard(None)
_OPERATORS = Guard(frozenset({OPERATOR}))
_KILLERS = Guard(frozenset({OPERATOR}), kills=True)
_AGENTS = Guard(frozenset({AGENT}))
_SEERS = Guard(frozenset({AGENT, OPERATOR}))

GUARDS: dict[tuple[str, str], Guard] = {
    # The token endpoint authenticates by the assertion in its form, together with its own commit.
    ("POST", "/oauth2/token"): _PUBLIC,
    ("POST", "/oauth2/introspect"): _PUBLIC,
    ("POST", "/oauth2/revoke"): _PUBLIC,
    ("GET", "/oauth2/jwks"): _PUBLIC,
    ("GET", "/.well-known/oauth-authorization-server"): _PUBLIC,
    ("GET", "/.well-known/openid-configuration"): _PUBLIC,
    ("GET", "/livez"): _PUBLIC,
    ("GET", "/readyz"): _PUBLIC,
    # A scraper has no identity of ours, but the configured token, which the handler asks for. Off by default.
    ("GET", "/metrics"): Guard(None, scrapes=True),
    ("GET", "/openapi.json"): _PUBLIC,
    ("POST", "/v1/sessions"): Guard(ANY, spends=True),
    ("GET", "/v1/whoami"): Guard(ANY),
    ("POST", "/v1/tasks"): Guard(frozenset({AGENT}), spends=True),
    ("GET", "/v1/tasks"): _SEERS,
    ("GET", "/v1/tasks/{task_id}"): _SEERS,
    ("GET", "/v1/tasks/{task_id}/receipt"): _SEERS,
    ("POST", "/v1/tasks/{task_id}/heartbeat"): _AGENTS,
    ("POST", "/v1/tasks/{task_id}/end"): _AGENTS,
    ("POST", "/v1/credentials"): Guard(frozenset({AGENT}), spends=True),
    ("GET", "/v1/credentials/{grant_id}"): _SEERS,
    ("POST", "/v1/credentials/{grant_id}/renew"): Guard(frozenset({AGENT}), spends=True),
    ("POST", "/v1/credentials/{grant_id}/revoke"): _AGENTS,
    ("GET", "/v1/decisions/{decision_id}"): _SEERS,
    ("GET", "/v1/approvals"): _SEERS,
    ("GET", "/v1/approvals/{approval_id}"): _SEERS,
    ("GET", "/v1/agents"): _OPERATORS,
    ("GET", "/v1/agents/{agent_id}"): _OPERATORS,
    ("POST", "/v1/agents/{agent_id}/pause"): _KILLERS,
    ("POST", "/v1/agents/{agent_id}/resume"): _OPERATORS,
    ("POST", "/v1/kills"): _KILLERS,
    ("GET", "/v1/kills"): _OPERATORS,
    ("GET", "/v1/kills/{kill_id}"): _OPERATORS,
    ("GET", "/v1/holds"): _OPERATORS,
    ("POST", "/v1/holds/{hold_id}/lift"): _OPERATORS,
    ("POST", "/v1/reload"): _OPERATORS,
    ("GET", "/v1/keys"): _OPERATORS,
    ("POST", "/v1/keys/rotate"): _OPERATORS,
    ("GET", "/v1/ledger"): _OPERATORS,
    ("GET", "/v1/ledger/checkpoint"): Guard(ANY),
    ("GET", "/v1/ledger/proof/{seq}"): Guard(ANY),
    ("GET", "/v1/ledger/consistency"): Guard(ANY),
    ("GET", "/v1/revocations"): Guard(frozenset({VERIFIER, OPERATOR})),
    ("GET", "/v1/revocations/stream"): Guard(frozenset({VERIFIER}), spends=True),
    ("POST", "/v1/revocations/ack"): Guard(frozenset({VERIFIER})),
}


async def guard(request: Request) -> None:
    """Authenticate the caller of a guarded route and leave it in the request's state."""
    broker: Broker = request.app.state.broker
    if not request.scope[
        "path"
    ].isprintable():  # the router takes a path with a newline at its end for the path without
        raise NotFound("There is no such path.")
    path = request.scope["route"].path
    row = GUARDS[request.method, path]
    if row.kinds is None:
        return
    caller = await authenticated(request, bearer(request), kills=row.kills)
    if kind_of(caller) not in row.kinds:
        raise Forbidden(f"This is for {' and '.join(sorted(row.kinds))}s; you are {kind_of(caller)} {caller.id}.")
    if not row.spends:
        await broker.callers.spend(caller, path, even_unrecorded=row.kills)


async def authenticated(request: Request, token: str | None, *, kills: bool = False) -> Caller:
    """The caller, left in the request's state; its proof is not spent. An address that failed too often waits, but for
    a kill. Raises NotAuthenticated, TooManyAttempts, Unavailable.
    """
    broker: Broker = request.app.state.broker
    attempts: Attempts = request.app.state.attempts
    address = request.client.host if request.client is not None else None
    if not kills:
        attempts.admit(address)
    try:
        caller = request.state.caller = await broker.callers.authenticate(token, even_late=kills)
    except NotAuthenticated:
        attempts.failed(address)
        raise
    return caller


async def record(request: Request, error: TaskpassError) -> None:
    """Make the refusal of a caller who proved an identity an event, unless the refusal is one already."""
    caller: Caller | None = getattr(request.state, "caller", None)
    if caller is not None and error.decision_id is None:
        broker: Broker = request.app.state.broker
        error.decision_id = await broker.callers.refuse(caller, request.scope["route"].path, error)


def bearer(request: Request) -> str | None:
    """The bearer credential, if there is exactly one (RFC 6750 section 2.1)."""
    values = request.headers.getlist("authorization")
    if len(values) != 1:
        return None
    scheme, _, token = values[0].partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


async def _caller(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller


CallerOf = Annotated[Caller, Depends(_caller)]
"""A handler's caller, as the guard left it."""


def routes_of(routes: Iterable[BaseRoute]) -> Iterator[Route]:
    """All routes, those of included routers too. Raises RuntimeError for one that is no plain route."""
    for route in routes:
        included = getattr(route, "original_router", None)
        if included is not None:
            yield from routes_of(included.routes)
        elif isinstance(route, Route):
            yield route
        else:
            raise RuntimeError(f"{route!r} is no plain route, so no guard can stand before it")


def check_guards(routes: Iterable[BaseRoute]) -> None:
    """Refuse to boot with a route that has no row. Raises RuntimeError."""
    for route in routes_of(routes):
        for method in (route.methods or set()) - {"HEAD"}:
            if (method, route.path) not in GUARDS:
                raise RuntimeError(f"{method} {route.path} has no guard")
