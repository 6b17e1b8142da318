"""A load generator of our own: where wrk is not installed, and where a constant rate is wanted.

    python -m bench.sender --url URL --connections 64 --seconds 10 [--requests FILE | --audience AUD --agents N]
                           [--rate PER_SECOND] [--windows SECONDS]

With `--requests` it sends prepared requests, else it signs a fresh assertion for each one. Without `--rate` it is a
closed loop like wrk. With one it is open: a request is due at its moment whether or not the last was answered, and its
latency counts from that moment, so that a server's pause is not left out.
"""

import argparse
import asyncio
import json
import re
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import uvloop

from bench.assertions import SEPARATOR, endless_requests
from bench.figures import percentile

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


class Tally:
    """Latencies of a window and of all."""

    def __init__(self, window_s: float) -> None:
        self.started = time.monotonic()
        self._window_s = window_s
        self._until = self.started + window_s
        self._window: list[float] = []
        self._all: list[float] = []
        self.refused = self.errors = 0
        self.first_refusal = ""
        self.windows: list[dict[str, float]] = []

    def answered(self, latency_s: float, status: bytes, answer: bytes) -> None:
        now = time.monotonic()
        if status != b"200":
            self.refused += 1
            self.first_refusal = self.first_refusal or answer[-300:].decode("utf-8", "replace")
            return
        self._window.append(latency_s)
        if now >= self._until:
            self.close_window(now)

    def close_window(self, now: float) -> None:
        self._window.sort()
        self._all += self._window
        self.windows.append(
            {
                "at_s": now - self.started,
                "requests": len(self._window),
                "p50_us": at(self._window, 50),
                "p99_us": at(self._window, 99),
            }
        )
        self._window = []
        self._until = now + self._window_s

    def result(self) -> dict[str, object]:
        now = time.monotonic()
        self.close_window(now)
        self._all.sort()
        return {
            "requests": len(self._all),
            "started_s": self.started,
            "duration_us": int((now - self.started) * 1e6),
            **{f"p{p}_us": at(self._all, p) for p in (50, 90, 99)},
            "max_us": at(self._all, 100),
            "refused": self.refused,
            "socket_errors": self.errors,
            "ran_out": 0,
            "first_refusal": self.first_refusal,
            "windows": self.windows,
        }


def at(ordered: list[float], percent: int) -> int:
    """A percentile in microseconds."""
    return int(percentile(ordered, percent) * 1e6) if ordered else 0


class Connection(asyncio.Protocol):
    """One connection: one request at a time."""

    def __init__(self, sender: "Sender") -> None:
        self._sender = sender
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._due = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's looks like one and is none
        self._sender.idle(self)

    def send(self, request: bytes, due: float) -> None:
        assert self._transport is not None
        self._due = due
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head = self._buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        length = _LENGTH.search(self._buffer, 0, head)
        end = head + 4 + (int(length[1]) if length else 0)
        if len(self._buffer) < end:
            return
        answer, self._buffer = self._buffer[:end], self._buffer[end:]
        self._sender.tally.answered(time.monotonic() - self._due, answer[9:12], answer)
        self._sender.idle(self)

    def connection_lost(self, _: Exception | None) -> None:
        if not self._sender.over:
            self._sender.tally.errors += 1

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class Sender:
    """All connections, and the schedule."""

    def __init__(self, requests: Iterator[bytes], *, rate: float, tally: Tally) -> None:
        self.tally = tally
        self.over = False
        self._requests = requests
        self._rate = rate
        self._idle: deque[Connection] = deque()
        self._overdue: deque[float] = deque()

    def idle(self, connection: Connection) -> None:
        if self.over:
            return
        if not self._rate:
            connection.send(next(self._requests), time.monotonic())
        elif self._overdue:
            connection.send(next(self._requests), self._overdue.popleft())
        else:
            self._idle.append(connection)

    async def keep_schedule(self, seconds: float) -> None:
        """At a constant rate: one request is due every 1/rate seconds, sent at once or as soon as anyone is idle."""
        start, sent = time.monotonic(), 0
        while (elapsed := time.monotonic() - start) < seconds:
            while sent < elapsed * self._rate:
                due = start + sent / self._rate
                sent += 1
                if self._idle:
                    self._idle.popleft().send(next(self._requests), due)
                else:
                    self._overdue.append(due)
            await asyncio.sleep(0.001)  # less, and the loop would spin


async def send(arguments: argparse.Namespace) -> dict[str, object]:
    """The whole burst."""
    parts = urlsplit(arguments.url)
    if arguments.requests:
        requests = iter(arguments.requests.read_bytes().split(SEPARATOR)[:-1])
    else:
        requests = endless_requests(arguments.url, arguments.audience, arguments.agents)
    sender = Sender(requests, rate=arguments.rate, tally=Tally(arguments.windows or arguments.seconds * 2))
    loop = asyncio.get_running_loop()
    connections = [
        (await loop.create_connection(lambda: Connection(sender), parts.hostname, parts.port))[1]
        for _ in range(arguments.connections)
    ]
    if arguments.rate:
        await sender.keep_schedule(arguments.seconds)
    else:
        await asyncio.sleep(arguments.seconds)
    sender.over = True
    result = sender.tally.result()
    for connection in connections:
        connection.close()
    return result


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Send token requests.")
    parser.add_argument("--url", required=True)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--requests", type=Path)
    parser.add_argument("--audience", default="")
    parser.add_argument("--agents", type=int, default=50)
    parser.add_argument("--rate", type=float, default=0)
    parser.add_argument("--windows", type=float, default=0)
    print(json.dumps(uvloop.run(send(parser.parse_args()))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
