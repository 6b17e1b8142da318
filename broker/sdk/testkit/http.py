"""Ways to reach the fake broker: inside this process without a socket, or as an ASGI application on a loopback port."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

import httpx2

from broker.sdk.protocol import Request, Response
from broker.sdk.testkit.feed import FakeFeed

STREAM = "/v1/revocations/stream"


class Answering(Protocol):
    """The part of the fake broker that these carry requests to."""

    feed: FakeFeed

    def answer(self, request: Request) -> Response:
        """Answer anything but the stream."""
        ...


class InProcess(httpx2.AsyncBaseTransport, httpx2.BaseTransport):
    """A transport for httpx2's clients of both kinds, the stream only for the asynchronous one."""

    def __init__(self, broker: Answering) -> None:
        self._broker = broker

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """One exchange."""
        return _plain(self._broker, request, request.read())

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """One exchange, or a connection to the feed."""
        body = await request.aread()
        if request.url.path != STREAM or not self._broker.feed.accepting:
            return _plain(self._broker, request, body)
        stream = self._broker.feed.stream(**_stream_query(request.url.query.decode()))
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=_Stream(stream))


class _Stream(httpx2.AsyncByteStream):
    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._chunks:
            yield chunk

    async def aclose(self) -> None:
        await self._chunks.aclose()  # type: ignore[attr-defined]


def _plain(broker: Answering, request: httpx2.Request, body: bytes) -> httpx2.Response:
    headers = {name.lower(): value for name, value in request.headers.items()}
    answer = broker.answer(Request(request.method, str(request.url), headers, body))
    return httpx2.Response(answer.status, headers=dict(answer.headers), content=answer.body)


def _stream_query(query: str) -> dict[str, Any]:
    values = parse_qs(query)
    return {
        "instance": values["instance"][0],
        "stamp": int(values["stamp"][0]),
        "cursor": values.get("cursor", [None])[0],
    }


def asgi_app(broker: Answering) -> Callable[..., Any]:
    """The fake broker as an ASGI application."""

    async def app(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:  # noqa: ANN401
        if scope["type"] != "http":
            return
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        if scope["path"] == STREAM and broker.feed.accepting:
            await _serve_stream(broker, scope, receive, send)
            return
        headers = {name.decode().lower(): value.decode("latin-1") for name, value in scope["headers"]}
        answer = broker.answer(Request(scope["method"], f"http://{headers.get('host')}{scope['path']}", headers, body))
        await send({"type": "http.response.start", "status": answer.status, "headers": _raw(answer.headers)})
        await send({"type": "http.response.body", "body": answer.body})

    return app


async def _serve_stream(broker: Answering, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:  # noqa: ANN401
    await send({"type": "http.response.start", "status": 200, "headers": _raw({"content-type": "text/event-stream"})})

    async def pump() -> None:
        async with contextlib.aclosing(broker.feed.stream(**_stream_query(scope["query_string"].decode()))) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    pumping = asyncio.create_task(pump())
    gone = asyncio.create_task(receive())  # the request was read: what comes next is the disconnection
    await asyncio.wait({pumping, gone}, return_when=asyncio.FIRST_COMPLETED)
    for task in (pumping, gone):
        task.cancel()
    await asyncio.gather(pumping, gone, return_exceptions=True)


def _raw(headers: Any) -> list[tuple[bytes, bytes]]:  # noqa: ANN401
    return [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]


@contextlib.contextmanager
def on_loopback(broker: Answering) -> Iterator[str]:
    """Serve it on a free loopback port from a thread, while the block runs. Gives the base URL."""
    import socket

    import uvicorn

    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        asgi_app(broker), log_level="critical", lifespan="off", timeout_graceful_shutdown=1, ws="none"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        broker.feed.accepting = False
        broker.feed.drop_connections()
        server.should_exit = True
        thread.join()
        listener.close()
        broker.feed.accepting = True


def base_of(url: str) -> str:
    """Scheme and authority of a URL."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"
