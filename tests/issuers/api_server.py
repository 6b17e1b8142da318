"""A loopback HTTP server for playing a backend's API: real sockets, and every fault in both flavours."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self


@dataclass(frozen=True)
class Reply:
    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Fault:
    """What goes wrong with the next request. `happened`: the request has had its effect nonetheless."""

    kind: str  # status, cut, truncated, drip, silent, garbage, huge
    happened: bool = False
    reply: Reply = Reply(500)


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class ApiServer:
    """Subclasses answer in `act`. `url` is where it listens; `asked` all that it was sent."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.faults: list[Fault] = []
        self._over = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def act(self, asked: Asked) -> Reply:
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        length = int(handler.headers.get("Content-Length", 0))
        asked = Asked(
            handler.command,
            handler.path,
            {name.lower(): value for name, value in handler.headers.items()},
            handler.rfile.read(length),
        )
        self.asked.append(asked)
        fault = self.faults.pop(0) if self.faults else None
        reply = self.act(asked) if fault is None or fault.happened else fault.reply
        self._send(handler, fault, reply)

    def _send(self, handler: BaseHTTPRequestHandler, fault: Fault | None, reply: Reply) -> None:
        kind = fault.kind if fault else "fine"
        if kind == "cut":
            handler.close_connection = True
            return
        if kind == "silent":
            self._over.wait(30)
            return
        if fault and kind == "status":
            reply = fault.reply
        body = {"garbage": b"\x00{<", "huge": b"x" * 1_000_000}.get(kind, reply.body)
        handler.send_response(reply.status)
        for name, value in reply.headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.send_header("Connection", "close")
        handler.end_headers()
        if kind == "drip":
            for byte in body:
                handler.wfile.write(bytes([byte]))
                handler.wfile.flush()
                if self._over.wait(0.05):
                    return
        else:
            handler.wfile.write(body[: len(body) // 2] if kind == "truncated" else body)


def _handler(server: ApiServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _any(self) -> None:
            try:
                server.answer(self)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        do_GET = do_POST = do_DELETE = _any  # noqa: N815  (the library's names)

        def log_message(self, *_: object) -> None: ...

    return Handler


Now = Callable[[], int]
