"""What the libraries alone cost: a server that does what no durable broker of signed tokens can leave out, no more.

It reads the request with httptools on uvloop, verifies the client's ES256 signature, marks the assertion as used and
stores one row, both in one durable SQLite commit for all that came together (as in the broker: its batches, WAL,
synchronous FULL, a thread for the disk), and signs one JWT. It knows no claims, no policy, no tasks, no guards, no
tree, no kills and no errors: it is no broker, and must never be one. What the broker costs beyond it is the broker's
own; what it costs itself, no work on the broker can save.
"""

import asyncio
import sqlite3
import sys
import threading
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Protocol, cast

import httptools
import orjson
import uvloop
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from bench.beside import beside
from bench.site import AUDIENCE, agent_name, signer_of
from broker.service.batching import Batcher

_ES256 = ec.ECDSA(hashes.SHA256())
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"

_Verified = tuple[bytes, bytes]
"""Who asks, and the mark of the assertion."""


class Asked(Protocol):
    """A server of the bench."""

    def asked(self, transport: asyncio.Transport, body: bytes) -> None:
        """One request: its body, and where its answer is written."""
        ...


class Connection(asyncio.Protocol):
    """One client's connection to a server that is told of each request, whatever its path."""

    def __init__(self, floor: Asked) -> None:
        self._floor = floor
        self._parser = httptools.HttpRequestParser(self)
        self._body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own class, which is like it

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        body, self._body = self._body, b""
        self._floor.asked(self._transport, body)


class _Floor:
    def __init__(self, store: Path, agents: int) -> None:
        self._keys = {
            name.encode(): signer_of(name)._key.public_key()  # noqa: SLF001  (the bench's own keys)
            for name in map(agent_name, range(agents))
        }
        self._signer = ec.generate_private_key(ec.SECP256R1())
        self._loop = asyncio.get_running_loop()
        self._batcher: Batcher[bytes, bytes] = Batcher(self._tokens)
        self._batches: SimpleQueue[tuple[list[_Verified], asyncio.Future[None]]] = SimpleQueue()
        self._store = durable(store)
        self._store.execute("CREATE TABLE proofs (mark BLOB PRIMARY KEY) WITHOUT ROWID")
        self._store.execute("CREATE TABLE events (seq INTEGER PRIMARY KEY, bytes BLOB)")
        threading.Thread(target=self._write, daemon=True).start()

    def asked(self, transport: asyncio.Transport, body: bytes) -> None:
        self._batcher.submit(body, partial(_answer, transport))

    async def _tokens(self, bodies: Sequence[bytes]) -> Sequence[bytes]:
        verified, stored = [self._verified(body) for body in bodies], self._loop.create_future()
        self._batches.put((verified, stored))
        await stored
        return [self._token(*each) for each in verified]

    def _verified(self, body: bytes) -> _Verified:
        signed, _, signature = body[body.index(b"client_assertion=") + 17 :].rpartition(b".")
        raw = urlsafe_b64decode(signature + b"==")
        claims = orjson.loads(urlsafe_b64decode(signed.partition(b".")[2] + b"=="))
        name = claims["sub"].encode()
        der = encode_dss_signature(int.from_bytes(raw[:32]), int.from_bytes(raw[32:]))
        self._keys[name].verify(der, signed, _ES256)
        return name, claims["jti"].encode()

    def _write(self) -> None:
        while True:
            batch, stored = self._batches.get()
            self._store.execute("BEGIN IMMEDIATE")
            self._store.executemany("INSERT INTO proofs VALUES (?)", [(mark,) for _, mark in batch])
            self._store.executemany("INSERT INTO events (bytes) VALUES (?)", [(bytes(400),) for _ in batch])
            self._store.execute("COMMIT")
            self._loop.call_soon_threadsafe(stored.set_result, None)

    def _token(self, name: bytes, mark: bytes) -> bytes:
        claims = {"sub": name.decode(), "aud": AUDIENCE, "jti": mark.decode(), "iat": 0, "exp": 0}
        signed = b"e30." + urlsafe_b64encode(orjson.dumps(claims))
        r, s = decode_dss_signature(self._signer.sign(signed, _ES256))
        return b"%b.%b" % (signed, urlsafe_b64encode(r.to_bytes(32) + s.to_bytes(32)))


def _answer(transport: asyncio.Transport, token: bytes | Exception) -> None:
    if isinstance(token, Exception):
        raise token
    if not transport.is_closing():
        answer = b'{"access_token":"%b","token_type":"Bearer","expires_in":300}' % token
        transport.write(HEAD % len(answer) + answer)


def durable(store: Path) -> sqlite3.Connection:
    """A new SQLite file whose commits are as durable as the broker's."""
    connection = sqlite3.connect(store, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    return connection


@contextmanager
def floor(scratch: Path, *, port: int, agents: int, core: int) -> Iterator[int]:
    """The server on `port`, all of its threads on `core`; its process id."""
    command = [sys.executable, "-m", "bench.floor", str(scratch / "floor.db"), str(port), str(agents)]
    with beside(command, core=core, unready=RuntimeError("the server of bench.floor did not start")) as pid:
        yield pid


async def _serve(store: Path, port: int, agents: int) -> None:
    made = _Floor(store, agents)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(made), "127.0.0.1", port)
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
