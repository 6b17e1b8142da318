"""What a connection may cost, over real sockets: heads, slow clients, how many; and that nobody else pays for it."""

import json
import select
import socket
import time
from collections.abc import Iterator

import pytest

from tests.invariants.kit import Site, child

pytestmark = pytest.mark.e2e

_SLOW_S = 2
_CONNECTIONS = 50
_LIMITS = {
    "TASKPASS_LIMITS__SLOW_CLIENT_S": str(_SLOW_S),
    "TASKPASS_LIMITS__CONNECTIONS": str(_CONNECTIONS),
    "TASKPASS_LIMITS__REQUEST_HEAD_BYTES": "8192",
}


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    site = Site(tmp_path_factory.mktemp("bounds"))
    number = int(site.issuer.rsplit(":", 1)[1])
    with child(site, "all", f"127.0.0.1:{number}", env=_LIMITS):
        yield number


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def read(connection: socket.socket) -> bytes:
    """What comes until the other side closes, or nothing when it cuts."""
    parts = []
    try:
        while part := connection.recv(65_536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def alive(port: int) -> bytes:
    with connect(port) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        return read(connection)


def test_a_head_without_an_end_is_refused(port: int):
    with connect(port) as connection:
        try:
            for n in range(2_000):
                connection.sendall(b"GET /livez HTTP/1.1\r\n" if n == 0 else b"x-%d: %s\r\n" % (n, b"a" * 1_000))
                if select.select([connection], [], [], 0.001)[0]:
                    break
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert n < 1_000
    assert b"alive" in alive(port)


@pytest.mark.parametrize(
    "beginning",
    [
        b"",
        b"GET /livez HTT",
        b"GET /livez HTTP/1.1\r\nhost: x\r\n",
        b"POST /oauth2/token HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nhalf",
    ],
    ids=["nothing", "half a line", "half a head", "half a body"],
)
def test_who_keeps_the_broker_waiting_is_cut(port: int, beginning: bytes):
    began = time.monotonic()
    with connect(port) as connection:
        connection.sendall(beginning)
        assert read(connection) == b""
    assert _SLOW_S <= time.monotonic() - began < _SLOW_S + 5


def test_a_trickle_is_slow_too(port: int):
    began = time.monotonic()
    with connect(port) as connection:
        connection.sendall(b"POST /oauth2/token HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n")
        while not select.select([connection], [], [], 0.2)[0]:
            connection.sendall(b"a")
            assert time.monotonic() - began < _SLOW_S + 5
        assert read(connection) == b""


def test_a_connection_at_rest_between_requests_is_not_slow(port: int):
    with connect(port) as connection:
        for _ in range(2):
            connection.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
            answer = b""
            while not answer.endswith(b'{"status":"alive"}'):
                answer += connection.recv(65_536)
            assert not select.select([connection], [], [], _SLOW_S + 1.5)[0]


def test_above_the_number_of_connections_the_answer_is_503_and_room_comes_back(port: int):
    held = [connect(port) for _ in range(_CONNECTIONS)]
    try:
        answer = alive(port)
        assert answer == b"" or b" 503 " in answer
    finally:
        for connection in held:
            connection.close()
    deadline = time.monotonic() + 5
    while b"alive" not in alive(port):
        assert time.monotonic() < deadline


def test_bodies_are_bounded(port: int):
    with connect(port) as connection:
        connection.sendall(
            b"POST /oauth2/token HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
            b"content-type: application/x-www-form-urlencoded\r\ncontent-length: 70000\r\n\r\n" + b"a" * 70_000
        )
        answer = read(connection)
    assert b" 400 " in answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"] == "invalid_request"
