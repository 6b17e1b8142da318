"""What is said to the broker and how its answers are read, without doing either.

Each exchange is a *flow*: a generator that yields what it needs (an HTTP request, or an assertion of the workload's
identity) and is sent the answer, or thrown the Unavailable that was had instead. `client` drives the same flows with
threads or with asyncio, `light` with nothing but the standard library. Imports nothing heavy, on purpose.
"""

import json
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar
from urllib.parse import quote, urlencode, urlsplit

from broker.sdk.errors import (
    ApprovalNeeded,
    BrokerError,
    Denied,
    Held,
    InvalidRequest,
    Never,
    NotAuthenticated,
    NotFound,
    TaskOver,
    Unavailable,
)

MAX_ANSWER = 1 << 20
"""Bytes of an answer that anybody here is willing to read."""

TIMEOUT_S = 10.0
"""How long one exchange may take before it counts as no answer."""

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request. Its headers and body may hold secrets, so neither is shown."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)
    timeout_s: float | None = None  # None: as for any other


@dataclass(frozen=True, slots=True)
class Response:
    """One HTTP answer of at most `MAX_ANSWER` bytes; header names in lower case."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Assertion:
    """The flow needs proof of what this workload is, addressed to `audience`."""

    audience: str


Flow = Generator[Request | Assertion, Any, T]
"""Yields a Request and is sent a Response, or yields an Assertion and is sent a string; returns a T."""


def drive(flow: Flow[T], answer: Callable[[Request | Assertion], Response | str]) -> T:
    """Run a flow to its end, asking `answer` for what it needs. Raises what either of them raises: Unavailable only if
    the flow cannot go on without an answer.
    """
    given: Response | str | Unavailable | None = None
    while True:
        try:
            need = flow.throw(given) if isinstance(given, Unavailable) else flow.send(given)
        except StopIteration as end:
            result: T = end.value
            return result
        try:
            given = answer(need)
        except Unavailable as error:
            given = error


@dataclass(frozen=True, slots=True)
class Ask:
    """One credential request. Equal asks get the same credential while it lives."""

    resource: str
    scope: tuple[str, ...] = ()
    details: str = ""  # authorization_details as JSON, "" for none
    task: str | None = None

    @classmethod
    def of(
        cls,
        resource: str,
        *,
        scope: str | Iterable[str] = (),
        authorization_details: Iterable[Mapping[str, Any]] | None = None,
        task: str | None = None,
    ) -> "Ask":
        """`scope` may be one space separated string or the single ids."""
        scopes = scope.split() if isinstance(scope, str) else scope
        details = "" if authorization_details is None else _dump(list(authorization_details))
        return cls(resource=resource, scope=tuple(sorted(set(scopes))), details=details, task=task)


@dataclass(frozen=True, slots=True)
class Credential:
    """What the broker gave, and what it says about it. `expires_in` is in seconds from when it was asked for."""

    token: str = field(repr=False)
    expires_in: int
    resource: str
    scope: tuple[str, ...]
    authorization_details: tuple[Mapping[str, Any], ...]
    task: str | None
    decision_id: str | None


@dataclass(slots=True)
class Session:
    """A short token that stands for one proof of identity at `/v1`, so that heartbeats do not spend a proof each."""

    token: str | None = field(default=None, repr=False)


def checked_issuer(issuer: str) -> str:
    """`issuer` as given. Raises ValueError unless it is https, or http to this very machine: it is sent assertions."""
    parts = urlsplit(issuer)
    local = parts.scheme == "http" and parts.hostname in {"localhost", "127.0.0.1", "::1"}
    if not (parts.scheme == "https" or local) or not parts.hostname:
        raise ValueError(f"an issuer is an https URL (http only on loopback): {issuer[:200]!r}")
    if parts.query or parts.fragment or parts.username is not None or issuer.endswith("/"):
        raise ValueError(f"an issuer has no query, fragment, user or final slash: {issuer[:200]!r}")
    return issuer


# --- Flows ------------------------------------------------------------------------------------------------------------


def obtain(issuer: str, ask: Ask) -> Flow[Credential]:
    """One credential for `ask`. Raises what `refusal` makes of the answer."""
    assertion = yield Assertion(issuer)
    form = {
        "grant_type": "client_credentials",
        "client_assertion_type": ASSERTION_TYPE,
        "client_assertion": assertion,
        "resource": ask.resource,
    }
    optional = {"scope": " ".join(ask.scope), "authorization_details": ask.details, "task": ask.task}
    form.update({name: value for name, value in optional.items() if value})
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
    response = yield Request("POST", f"{issuer}/oauth2/token", headers, urlencode(form).encode())
    return _credential(ask, answer_of(response))


def open_task(
    issuer: str,
    session: Session,
    *,
    purpose: str,
    trigger: Mapping[str, str] | None = None,
    on_behalf_of: str | None = None,
    deadline_s: int | None = None,
    heartbeat_s: int | None = None,
    parent: str | None = None,
) -> Flow[dict[str, Any]]:
    """Open a task; its body as the broker describes it. Never repeated by itself: a repeat would open a second one."""
    wanted = {
        "purpose": purpose,
        "trigger": trigger,
        "on_behalf_of": on_behalf_of,
        "deadline_seconds": deadline_s,
        "heartbeat_seconds": heartbeat_s,
        "parent": parent,
    }
    body = {name: value for name, value in wanted.items() if value is not None}
    task = yield from call(issuer, session, "POST", "/v1/tasks", body)
    if not isinstance(task.get("id"), str):
        raise garbled()
    return task


def beat(issuer: str, session: Session, task_id: str) -> Flow[dict[str, Any]]:
    """Tell the broker that the task's worker is alive. Raises TaskOver when it is no longer wanted."""
    return (yield from call(issuer, session, "POST", f"/v1/tasks/{quote(task_id, safe='')}/heartbeat", {}))


def end_task(issuer: str, session: Session, task_id: str, *, outcome: str) -> Flow[dict[str, Any]]:
    """End the task, and with it everything issued under it. Ending one that is over already is not an error."""
    try:
        return (
            yield from call(issuer, session, "POST", f"/v1/tasks/{quote(task_id, safe='')}/end", {"outcome": outcome})
        )
    except TaskOver:
        return {"id": task_id}


def whoami(issuer: str, session: Session) -> Flow[dict[str, Any]]:
    """Who the broker takes this workload for."""
    return (yield from call(issuer, session, "GET", "/v1/whoami", None))


def call(
    issuer: str,
    session: Session,
    method: str,
    path: str,
    body: Mapping[str, Any] | None,
    *,
    timeout_s: float | None = None,
) -> Flow[dict[str, Any]]:
    """One exchange at `/v1` under a session, which is opened, or opened again, when it must be."""
    if session.token is None:
        session.token = yield from _open_session(issuer)
    request = replace(_json_request(method, issuer + path, body), timeout_s=timeout_s)
    response = yield _bearing(request, session.token)
    if response.status == 401:  # it ran out, or a kill covers it: prove the identity again, once
        session.token = None
        session.token = yield from _open_session(issuer)
        response = yield _bearing(request, session.token)
    return answer_of(response)


def _open_session(issuer: str) -> Flow[str]:
    assertion = yield Assertion(issuer)
    response = yield _bearing(_json_request("POST", f"{issuer}/v1/sessions", {}), assertion)
    token = answer_of(response).get("session_token")
    if not isinstance(token, str):
        raise garbled()
    return token


def _json_request(method: str, url: str, body: Mapping[str, Any] | None) -> Request:
    headers = {"Accept": "application/json"}
    if body is None:
        return Request(method, url, headers)
    return Request(method, url, headers | {"Content-Type": "application/json"}, _dump(body).encode())


def _bearing(request: Request, token: str) -> Request:
    return replace(request, headers={**request.headers, "Authorization": f"Bearer {token}"})


# --- Answers ----------------------------------------------------------------------------------------------------------


def answer_of(response: Response) -> dict[str, Any]:
    """The JSON object of a good answer. Raises the typed refusal of any other."""
    try:
        body = json.loads(response.body) if response.body else {}
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        body = {} if response.status >= 400 else None
    if body is None:
        raise garbled()
    if 200 <= response.status < 300:
        return body
    raise refusal(response.status, body, response.headers)


def refusal(status: int, body: Mapping[str, Any], headers: Mapping[str, str]) -> BrokerError:
    """The typed error for a refusal in either dialect: RFC 6749 at the token endpoint, RFC 9457 elsewhere."""
    code = _text(body.get("error") or body.get("code")) or f"http_{status}"
    sentence = (
        _text(body.get("error_description") or body.get("detail") or body.get("title")) or f"The broker said {code}."
    )
    known: dict[str, Any] = {
        "code": code,
        "status": status,
        "decision_id": _text(body.get("decision_id")),
        "next": _text(body.get("next")),
    }
    if status >= 500 or status == 429 or code == "temporarily_unavailable":
        retry_after = headers.get("retry-after", "")
        return Unavailable(sentence, retry_after=int(retry_after) if retry_after.isdecimal() else 1, **known)
    if code == "access_denied" and body.get("outcome") == "task_over":
        return TaskOver(sentence, **known)
    if code == "access_denied":
        return _denial(sentence, body, known)
    if status == 401 or code == "invalid_client":
        return NotAuthenticated(sentence, **known)
    if code == "not_found":
        return NotFound(sentence, **known)
    if code == "conflict":
        return TaskOver(sentence, **known)
    return InvalidRequest(sentence, **known)


def _denial(sentence: str, body: Mapping[str, Any], known: dict[str, Any]) -> Denied:
    policies = body.get("policies")
    known["policies"] = tuple(str(policy) for policy in policies) if isinstance(policies, list) else ()
    outcome, approval = body.get("outcome"), body.get("approval")
    if outcome == "approval" and isinstance(approval, dict):
        return ApprovalNeeded(sentence, approval=approval, **known)
    if outcome == "never":
        return Never(sentence, **known)
    if outcome == "held":
        return Held(sentence, **known)
    return Denied(sentence, **known)


def _credential(ask: Ask, body: Mapping[str, Any]) -> Credential:
    token, expires_in, scope = body.get("access_token"), body.get("expires_in"), body.get("scope", "")
    details = body.get("authorization_details", [])
    good = isinstance(token, str) and type(expires_in) is int and isinstance(scope, str) and isinstance(details, list)
    if not good or str(body.get("token_type")).lower() != "bearer":
        raise garbled()
    assert isinstance(token, str)
    assert isinstance(expires_in, int)
    return Credential(
        token=token,
        expires_in=expires_in,
        resource=ask.resource,
        scope=tuple(scope.split()),
        authorization_details=tuple(details),
        task=_text(body.get("task")),
        decision_id=_text(body.get("decision_id")),
    )


def garbled() -> Unavailable:
    """What to raise for an answer without what must be in it."""
    return Unavailable("The broker's answer was not understood.", code="server_error", status=502)


def _text(value: object) -> str | None:
    return value[:2000] if isinstance(value, str) and value else None


def _dump(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=False, allow_nan=False)
