"""The broker's routes, as the commands call them. An answer that is a refusal ends the command."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

from broker.cli.context import Context
from broker.cli.errors import Failure
from broker.cli.sessions import OperatorSession
from broker.sdk import protocol
from broker.sdk.identity import Identity
from broker.sdk.protocol import Ask, Assertion, Credential, Request, Response

if TYPE_CHECKING:
    from broker.sdk.secret import Secret


class Api:
    """One caller's view of one broker: an operator's session, or a workload that proves itself anew for each call."""

    def __init__(self, context: Context, *, base: str, identity: Identity | None, token: str | None = None) -> None:
        self._context = context
        self._base = base
        self._identity = identity
        self._token = token

    @classmethod
    def of_workload(cls, context: Context) -> "Api":
        """For what agents do."""
        return cls(context, base=context.issuer(), identity=context.workload())

    @classmethod
    def of_operator(cls, context: Context) -> "Api":
        """For what only operators do."""
        session = context.operator()
        return cls(context, base=session.control, identity=None, token=session.token)

    @classmethod
    def of_key(cls, context: Context, identity: Identity) -> "Api":
        """For an operator without a session: every call is signed. The way in when nothing else works."""
        return cls(context, base=control_url(context), identity=identity)

    @classmethod
    def of_anyone(cls, context: Context, *, at_control: bool = False) -> "Api":
        """For what both may see: the workload if one is configured, else the operator. Some of it the control process
        alone can answer.
        """
        if context.settings.session or context.identity() is None:
            return cls.of_operator(context)
        return cls.of_key(context, context.workload()) if at_control else cls.of_workload(context)

    def open_session(self) -> None:
        """Prove the identity once for all calls that follow."""
        self._token = str(self._call("POST", "/v1/sessions", {}, bearer=self._assertion())["session_token"])

    def get(self, path: str, *, timeout_s: float = protocol.TIMEOUT_S, **query: object) -> Any:  # noqa: ANN401  (JSON)
        """The answer to a GET. Query members that are None are left out."""
        wanted = urlencode({name: value for name, value in query.items() if value is not None})
        return self._call("GET", f"{path}?{wanted}" if wanted else path, None, timeout_s=timeout_s)

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:  # noqa: ANN401  (JSON)
        """The answer to a POST. Members that are None are left out."""
        return self._call("POST", path, {name: value for name, value in (body or {}).items() if value is not None})

    def text(self, path: str) -> str:
        """The answer to a GET that is no JSON."""
        return self._send("GET", path, None, self._token or self._assertion(), protocol.TIMEOUT_S).body.decode()

    def obtain(self, ask: Ask) -> Credential:
        """One credential. Raises Failure, with the exit code of the policy's outcome."""
        return protocol.drive(
            protocol.obtain(self._base, ask),
            lambda need: (
                self._assertion() if isinstance(need, Assertion) else _good(self._context.transport.send(need))
            ),
        )

    def secret(self, body: Mapping[str, Any]) -> "Secret":
        """One secret, for a `wish`. Raises Failure, with the exit code of the policy's outcome."""
        from broker.sdk.secret import TIMEOUT_S, Secret

        return Secret.of(self._call("POST", "/v1/credentials", body, timeout_s=TIMEOUT_S))

    def renew(self, secret_id: str, ttl: int | None = None) -> Any:  # noqa: ANN401  (JSON)
        """Have a secret live longer: what the broker knows of it then. Raises Failure."""
        from broker.sdk.secret import TIMEOUT_S

        body = {} if ttl is None else {"ttl_seconds": ttl}
        return self._call("POST", f"/v1/credentials/{segment(secret_id)}/renew", body, timeout_s=TIMEOUT_S)

    def _assertion(self) -> str:
        assert self._identity is not None
        return self._identity.assertion(self._context.issuer())

    def _call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        *,
        bearer: str | None = None,
        timeout_s: float = protocol.TIMEOUT_S,
    ) -> Any:  # noqa: ANN401
        answer = self._send(method, path, body, bearer or self._token or self._assertion(), timeout_s)
        return _json(answer.body)

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None, bearer: str, timeout_s: float) -> Response:
        headers = {"Accept": "application/json", "Authorization": f"Bearer {bearer}"}
        content = b""
        if body is not None:
            headers["Content-Type"], content = "application/json", json.dumps(body).encode()
        request = Request(method, self._base + path, headers, content)
        return _good(self._context.transport.send(request, timeout_s=timeout_s))


def control_url(context: Context) -> str:
    """Where operators' requests go, from the issuer's metadata."""
    issuer = context.issuer()
    url = urlsplit(issuer)
    address = f"{url.scheme}://{url.netloc}/.well-known/oauth-authorization-server{url.path}"
    answer = _good(context.transport.send(Request("GET", address, {"Accept": "application/json"})))
    document = _json(answer.body)
    if not isinstance(document, dict) or document.get("issuer") != issuer:
        raise Failure(
            "server_error", f"What answers at {issuer} is another issuer.", next="Check --url, to the letter."
        )
    control = str(document.get("taskpass_control", issuer))
    if urlsplit(control).scheme not in {"https", url.scheme}:  # never from https down to http
        raise Failure("server_error", "The issuer's metadata names a control address that is not https.")
    return control.rstrip("/")


def session_for(context: Context, *, operator: str, identity: Identity) -> OperatorSession:
    """Open an operator session with a key."""
    import time

    control = control_url(context)
    body = Api(context, base=control, identity=identity).post("/v1/sessions")
    if body.get("kind") != "operator":
        raise Failure(
            "forbidden", f"{operator} is registered, but as {body.get('kind')}, not as an operator.", exit_code=4
        )
    return OperatorSession(
        issuer=context.issuer(),
        control=control,
        operator=str(body["id"]),
        expires=int(time.time()) + int(body["expires_in"]),
        token=str(body["session_token"]),
    )


def segment(value: str) -> str:
    """One path segment."""
    return quote(value, safe="")


def _good(answer: Response) -> Response:
    if 200 <= answer.status < 300:
        return answer
    try:
        body = json.loads(answer.body)
    except (ValueError, RecursionError):
        body = None
    refusal = body if isinstance(body, dict) else {}
    if "x-request-id" in answer.headers:
        refusal.setdefault("request_id", answer.headers["x-request-id"])
    raise Failure.of_answer(answer.status, refusal)


def _json(body: bytes) -> Any:  # noqa: ANN401
    try:
        return json.loads(body) if body else {}
    except (ValueError, RecursionError):
        raise Failure("server_error", "The broker's answer was not understood.") from None
