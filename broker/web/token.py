"""`POST /oauth2/token`, the hot route: no form parser, no dependency injection, no response model, no middleware.

What a request must look like and what an answer holds is here, once. Two ways lead in: any ASGI server by `__call__`,
and `taskpass serve` by `web.exchange`, which needs no task and no ASGI messages for it.
"""

from collections.abc import Sequence
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from broker.errors import InvalidGrant, Malformed, NotAuthenticated, NotFound, TaskpassError
from broker.service import Broker
from broker.service.asks import TokenRequest, read_token_request
from broker.service.issuance import Tell, TokenAnswer
from broker.signals.attempts import Attempts
from broker.telemetry.tracing import new_request_id, request_id_in, traceparent_in
from broker.web.http import REQUEST_ID, oauth_error, parse_form, unforeseen
from issuers.access_token import details

PATH = "/oauth2/token"

HEADERS = ((b"content-type", b"application/json"), (b"cache-control", b"no-store"), (b"pragma", b"no-cache"))
"""Of every granted answer, beside its length and the request's id."""

_PROVED_NOTHING = (Malformed, NotAuthenticated, InvalidGrant)
"""Refusals, when no decision is recorded with them: their sender is unknown."""


class TokenEndpoint:
    """Reads token requests and hands them to the pipeline."""

    def __init__(self, broker: Broker, attempts: Attempts, *, max_body: int) -> None:
        self._broker = broker
        self._attempts = attempts
        self.max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one token request as an ASGI application."""
        address = scope["client"][0] if scope.get("client") else None
        request_id = request_id_in(scope["headers"])
        try:
            self.admit(address)
            if not scope["path"].isprintable():  # as in `guards.guard`
                raise NotFound("There is no such path.")
            request = self.read(scope["headers"], await _body(receive, self.max_body), query=scope["query_string"])
            answer = await self._broker.issuance.issue(request)
        except Exception as error:  # noqa: BLE001  (rendered: a refusal, or a 500 that leaks nothing)
            await self.refusal(error, address, request_id)(scope, receive, send)
            return
        payload = granted(answer)
        headers = [*HEADERS, *named(request_id), (b"content-length", str(len(payload)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": payload})

    def admit(self, address: str | None) -> None:
        """Before a request is read. Raises TooManyAttempts when those of its address failed too often."""
        self._attempts.admit(address)

    def read(self, headers: Sequence[tuple[bytes, bytes]], body: bytes | None, *, query: bytes = b"") -> TokenRequest:
        """1: bounded and read; a body of None was too long. Raises Malformed or a subclass.

        What is no request is counted, never recorded: nobody has proved an identity yet.
        """
        try:
            if query:
                raise Malformed("Parameters belong in the body: URLs end up in logs.")
            if body is None:
                raise Malformed(f"The request body is longer than {self.max_body} bytes.")
            return read_token_request(parse_form(_content_type(headers), body), traceparent=traceparent_in(headers))
        except Malformed as error:
            self._broker.refusals.count(error.code)
            raise

    def submit(self, request: TokenRequest, tell: Tell) -> None:
        """See `Issuance.submit`."""
        self._broker.issuance.submit(request, tell)

    def refusal(self, error: Exception, address: str | None, request_id: str | None) -> Response:
        """The answer to a request that failed. It counts against its address when its sender is unknown."""
        if not isinstance(error, TaskpassError):
            error = unforeseen(error)
        elif isinstance(error, _PROVED_NOTHING) and error.decision_id is None:
            self._attempts.failed(address)
        reference = request_id or new_request_id()
        response = oauth_error(error, reference)
        response.raw_headers += named(reference)
        return response


def named(request_id: str | None) -> list[tuple[bytes, bytes]]:
    """The header that repeats a request's id. One that came without is only given one to join a refusal to its log
    line: what was granted has its `decision_id`, and is not logged.
    """
    return [] if request_id is None else [(REQUEST_ID, request_id.encode())]


def granted(answer: TokenAnswer) -> bytes:
    """The success body (RFC 6749 section 5.1): it repeats what was granted."""
    order = answer.order
    body: dict[str, Any] = {
        "access_token": answer.token,
        "token_type": "Bearer",
        "expires_in": order.exp - order.iat,
        "task": order.task,
        "decision_id": answer.decision_id,
    }
    if order.actions:
        body["scope"] = " ".join(order.actions)
    if order.limited:
        body["authorization_details"] = details(order)
    return orjson.dumps(body)


def _content_type(headers: Sequence[tuple[bytes, bytes]]) -> str | None:
    """The content type, in a request that authenticates by its assertion alone. Raises Malformed."""
    found: str | None = None
    for name, value in headers:
        if name == b"content-type":
            if found is not None:
                raise Malformed("Content-Type is repeated.")
            found = value.decode("latin-1")
        elif name == b"authorization":
            raise Malformed("Authenticate with the assertion alone: send no Authorization header here.")
    return found


async def _body(receive: Receive, limit: int) -> bytes | None:
    """The whole body; None as soon as it is longer than `limit`. Raises Malformed when the client went away."""
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Malformed("The client went away.")
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            return None
        parts.append(part)
        more = message.get("more_body", False)
    return b"".join(parts)
