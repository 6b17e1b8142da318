"""The token endpoint on the wire of `taskpass serve`: a plain request is answered without a task, a scope or an event.

Uvicorn's connection goes on serving everything else, and whatever is not plain about a token request: a query, an
escaped path, `Expect`, HTTP/1.0, pipelining, a client that does not read, one more than the broker takes.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from broker.service.issuance import TokenAnswer
from broker.telemetry.tracing import request_id_in
from broker.web.connections import BoundedProtocol
from broker.web.token import HEADERS, PATH, TokenEndpoint, granted, named

_PATH: Final = PATH.encode()


def _head(status: int, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    return STATUS_LINE[status] + _lines(headers)


def _lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"".join([b"%b: %b\r\n" % pair for pair in headers])


_GRANTED: Final = _head(200, HEADERS)  # and then its length


class TokenConnection(BoundedProtocol):
    """One client's connection."""

    def __init__(self, **more: Any) -> None:  # noqa: ANN401  (passed on)
        super().__init__(**more)
        self._endpoint: TokenEndpoint | None = getattr(self.config.app, "token_endpoint", None)
        self._proxies = self.app.trusted_hosts if isinstance(self.app, ProxyHeadersMiddleware) else None

    def on_headers_complete(self) -> None:
        """Take the request, if it is a plain one for a token."""
        endpoint, parser = self._endpoint, self.parser
        if (
            endpoint is None
            or self.url != _PATH
            or parser.get_method() != b"POST"
            or self.expect_100_continue
            or parser.get_http_version() != "1.1"
            or parser.should_upgrade()
            or self.flow.write_paused
            or self._busy()
            or self.crowded()
        ):
            super().on_headers_complete()
        else:
            self.head_ended()
            self.cycle = Exchange(self, endpoint, keep_alive=parser.should_keep_alive())  # type: ignore[assignment]

    def _busy(self) -> bool:
        cycle: object = self.cycle
        return cycle is not None and not self.cycle.response_complete

    def address_of(self, headers: Sequence[tuple[bytes, bytes]]) -> str | None:
        """Whose request it is. As for an ASGI application, that is what a trusted proxy says."""
        peer = self.client[0] if self.client is not None else None
        if self._proxies is None or peer not in self._proxies:
            return peer
        forwarded = b", ".join(value for name, value in headers if name == b"x-forwarded-for").decode("latin-1")
        return self._proxies.get_trusted_client_address(forwarded)[0] or peer

    def on_body(self, body: bytes) -> None:
        """Part of the body."""
        cycle: object = self.cycle
        if isinstance(cycle, Exchange):
            cycle.add(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        cycle: object = self.cycle
        if isinstance(cycle, Exchange):
            cycle.begin(self.headers)
        else:
            super().on_message_complete()


class _NobodyWaits:
    """In the place of the event on which an ASGI application waits for its client."""

    def set(self) -> None:
        """Nothing to wake."""


class Exchange:
    """One token request and its answer. To its connection it is what a request-response cycle is."""

    __slots__ = (
        "_address",
        "_body",
        "_connection",
        "_endpoint",
        "_request_id",
        "disconnected",
        "keep_alive",
        "more_body",
        "response_complete",
    )

    message_event = _NobodyWaits()

    def __init__(self, connection: TokenConnection, endpoint: TokenEndpoint, *, keep_alive: bool) -> None:
        self._connection = connection
        self._endpoint = endpoint
        self._body: bytes | None = b""
        self._address: str | None = None
        self._request_id: str | None = None
        self.more_body = True
        self.keep_alive = keep_alive  # cleared by the connection when the server stops
        self.disconnected = False  # set by the connection
        self.response_complete = False

    def add(self, part: bytes) -> None:
        """Keep a part of the body, up to the limit."""
        if self._body is not None:
            self._body = self._body + part if len(self._body) + len(part) <= self._endpoint.max_body else None

    def begin(self, headers: list[tuple[bytes, bytes]]) -> None:
        """The request is whole: read it and hand it over."""
        self.more_body = False
        self._address = self._connection.address_of(headers)
        self._request_id = request_id_in(headers)
        try:
            self._endpoint.admit(self._address)
            request = self._endpoint.read(headers, self._body)
            self._endpoint.submit(request, self._answer)
        except Exception as error:  # noqa: BLE001  (rendered: a refusal, or a 500 that leaks nothing)
            self._answer(error)

    def _answer(self, answer: TokenAnswer | Exception) -> None:
        if isinstance(answer, Exception):
            response = self._endpoint.refusal(answer, self._address, self._request_id)
            self._write(_head(response.status_code, response.raw_headers), bytes(response.body))
        else:
            body = granted(answer)
            name = _lines(named(self._request_id)) if self._request_id else b""
            head = b"%b%bcontent-length: %d\r\n" % (_GRANTED, name, len(body))
            self._write(head, body)

    def _write(self, head: bytes, body: bytes) -> None:
        """The answer, and the connection's turn to the next request."""
        self.response_complete = True
        transport = self._connection.transport
        if self.disconnected or transport.is_closing():
            return
        end = b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n"
        transport.write(head + end + body)
        if not self.keep_alive:
            transport.close()
        self._connection.on_response_complete()
