"""What one connection may cost: the length of a request's head, the time it takes to come, how many there are.

Bodies are bounded where they are read. A slow client is found by a look at all connections once a second, so that a
quick one pays nothing for it.
"""

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import structlog
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

log = structlog.get_logger(__name__)

_CONNECTION = "taskpass.connection"
_TOO_LONG = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\ncache-control: no-store\r\n"
    b"connection: close\r\n\r\n"
)


class BoundedProtocol(HttpToolsProtocol):
    """Uvicorn's protocol, which takes a head of any length, with a bound on it, and on how many connections are open.

    A head that comes in one read is within the size of that read; `head_limit` is for what comes after.
    """

    def __init__(self, *, head_limit: int, connections: int, **uvicorns: Any) -> None:  # noqa: ANN401  (passed on)
        super().__init__(**uvicorns)
        self._head_limit, self._most = head_limit, connections
        self._head = 0  # bytes of a head that is not complete yet
        self._in_head = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, unless there are too many even for a 503."""
        super().connection_made(transport)
        if len(self.connections) > self._most + self._most // 10:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        """Pass on what came. A head that does not end is refused."""
        super().data_received(data)
        if self._in_head:
            self._head += len(data)
            if self._head > self._head_limit and not self.transport.is_closing():
                self.transport.write(_TOO_LONG)
                self.transport.close()

    def on_message_begin(self) -> None:
        """A request begins."""
        self._in_head, self._head = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Its head is whole."""
        self.head_ended()
        self.scope["state"][_CONNECTION] = self
        super().on_headers_complete()

    def head_ended(self) -> None:
        """What comes now is no head."""
        self._in_head = False

    def crowded(self) -> bool:
        """Whether Uvicorn refuses the next request, because as many clients are here as it may serve."""
        limit = self.limit_concurrency
        return limit is not None and (len(self.connections) >= limit or len(self.tasks) >= limit)


def pushing(scope: Scope) -> Callable[[bytes], bool] | None:
    """What writes a part of the answer to this request past ASGI, once that has begun; None on another server.

    It says whether it did: not to a client that has left or does not keep up. What ASGI was given before comes before.
    """
    state = scope.get("state", {})
    connection = state.get(_CONNECTION)
    if connection is None or connection.cycle.scope["state"] is not state:  # another request has come behind this one
        return None
    return partial(_push, connection.cycle)


def _push(cycle: RequestResponseCycle, part: bytes) -> bool:
    ended = cycle.disconnected or cycle.response_complete or cycle.transport.is_closing()
    if ended or not cycle.chunked_encoding or cycle.flow.write_paused:
        return False
    cycle.transport.write(b"%x\r\n%b\r\n" % (len(part), part))
    return True


class SlowClients:
    """Cuts the connections of clients that keep the broker waiting. `now` is in seconds and never steps back."""

    def __init__(self, *, limit_s: float) -> None:
        self._limit_s = limit_s
        self._waiting: dict[HttpToolsProtocol, tuple[object, float]] = {}  # for what, since when

    def look(self, connections: Iterable[Any], now: float) -> None:
        """Look at every connection. One that has been waiting for the same thing for too long is ended."""
        waiting: dict[HttpToolsProtocol, tuple[object, float]] = {}
        for connection in connections:
            why = _owes(connection)
            if why is None:
                continue
            before, since = self._waiting.get(connection, (None, now))
            since = since if before == why else now
            waiting[connection] = (why, since)
            if now - since > self._limit_s:
                log.info("slow_client_cut", waiting_for=why[1])
                connection.transport.abort()
        self._waiting = waiting


def _owes(connection: HttpToolsProtocol) -> tuple[int, str] | None:
    """What this connection's client has to do next: which request it is of, and what. None while it is our turn, or
    while the connection rests between two requests, for which there is the keep-alive timeout.
    """
    cycle: RequestResponseCycle | None = connection.cycle
    if cycle is None or cycle.response_complete:
        return None if connection.timeout_keep_alive_task is not None else (id(cycle), "head")
    if connection.flow.write_paused:
        return id(cycle), "taking the answer"
    return (id(cycle), "body") if cycle.more_body else None
