"""Redis for tests: the real server of this machine, and one that lies."""

import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import cycle
from pathlib import Path

import pytest

from demo.ports import free_port


class RedisServer:
    """A real server, on a port of its own, keeping nothing on disk."""

    def __init__(self, place: Path, *options: str) -> None:
        self.port = free_port()
        self._place, self._options = place, options
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start, or start again, empty."""
        assert self._process is None
        self._process = subprocess.Popen(
            ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", *self._options],
            cwd=self._place,
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 10
        while True:
            try:
                return self.ask("PING")
            except OSError:
                assert time.monotonic() < deadline, "redis-server does not start"
                time.sleep(0.01)

    def ask(self, *words: str) -> None:
        """One command, as a person at a terminal would send it."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as link:
            link.sendall((" ".join(words) + "\r\n").encode())
            answer = link.recv(4096)
        assert answer[:1] in b"+:", answer

    def stop(self, how: int = signal.SIGTERM) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(10)
            self._process = None

    def freeze(self) -> None:
        """It is there, and says nothing: connections are taken, and never answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.stop(signal.SIGKILL)


def redis_or_skip(place: Path, *options: str) -> RedisServer:
    """A running server. Skips the test where there is none to run, but never in CI."""
    if shutil.which("redis-server") is None:
        reason = "redis-server is not installed"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return RedisServer(place, *options)


LIES: dict[str, bytes | None] = {
    "garbage": b"\x00\xff{[(*$\r\n:not a number\r\n",
    "error": b"-ERR unknown command\r\n",
    "no memory": b"-OOM command not allowed when used memory > 'maxmemory'.\r\n",
    "stale replica": b"-READONLY You can't write against a read only replica.\r\n",
    "loading": b"-LOADING Redis is loading the dataset in memory\r\n",
    "huge": b":9007199254740991\r\n",
    "negative": b":-9223372036854775808\r\n",
    "endless": b"$1000000000\r\n" + b"x" * 4096,
    "nested": b"*3\r\n" * 500,
    "nothing": b"",
    "hang up": None,
    "flood": b"*3\r\n$7\r\nmessage\r\n$1\r\nx\r\n$20\r\n18446744073709551615\r\n" * 400,
}
"""What a lying server answers to whatever it is sent."""


class Liar:
    """Answers every read with the same lie, to everybody. Subscribing is confirmed where that makes the lie worse."""

    def __init__(self, *lies: str) -> None:
        """With several lies every connection is told another."""
        self._lies = cycle(lies)
        self.asked = 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listening.getsockname()[1]}/0"
        self._links: set[socket.socket] = set()
        self._closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._closed = True
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for link in list(self._links):
            with suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while not self._closed:
            with suppress(OSError):
                link, _ = self._listening.accept()
                self._links.add(link)
                threading.Thread(target=self._answer, args=(link,), daemon=True).start()

    def _answer(self, link: socket.socket) -> None:
        lie = next(self._lies)
        with link, suppress(OSError):
            while (sent := link.recv(65_536)) and not self._closed:
                self.asked += 1
                answer = LIES[lie]
                if answer is None:
                    break
                if b"SUBSCRIBE" in sent and lie in ("flood", "huge", "nothing"):
                    link.sendall(b"*3\r\n$9\r\nsubscribe\r\n$1\r\nx\r\n:1\r\n")
                if lie == "flood" and b"SUBSCRIBE" in sent:
                    while not self._closed:
                        link.sendall(answer)
                link.sendall(answer * max(1, sent.count(b"*")))
        self._links.discard(link)


@contextmanager
def liar(*lies: str) -> Iterator[Liar]:
    """A lying server."""
    server = Liar(*lies)
    try:
        yield server
    finally:
        server.close()
