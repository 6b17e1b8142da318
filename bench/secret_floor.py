"""What the libraries alone cost around a lease: a server that commits an intent, has Vault lease a login, and commits
the outcome. One row each, durable (SQLite as the broker has it), and no more.

It reads requests with httptools on uvloop, and does all the rest in one thread, so that a request changes threads only
twice: there, and back. It asks Vault as the broker does, by a token that stands. It knows no caller, no policy, no task
and no kill: it is no broker, and must never be one. So much a record before and after the lease costs with these
libraries, whatever else a broker does.
"""

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import orjson
import uvloop

from bench.beside import beside
from bench.floor import HEAD, Connection, durable
from bench.machine import all_cores
from bench.secret_backends import PATH, Vault
from bench.secret_calls import Client
from demo.ports import free_port
from issuers.vault.link import Link

_INTENT, _OUTCOME = bytes(700), bytes(400)
"""As long as the broker's events of them."""


class _Floor:
    def __init__(self, store: Path, address: str, token: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._asked: SimpleQueue[asyncio.Transport] = SimpleQueue()
        self._link, self._token = Link(address=address), token
        self._store = durable(store)
        self._store.execute("CREATE TABLE events (seq INTEGER PRIMARY KEY, bytes BLOB)")
        threading.Thread(target=self._answer, daemon=True).start()

    def asked(self, transport: asyncio.Transport, body: bytes) -> None:
        orjson.loads(body)
        self._asked.put(transport)

    def _answer(self) -> None:
        while True:
            transport = self._asked.get()
            self._commit(_INTENT)
            leased = self._link.call("get", PATH, token=self._token)
            self._commit(_OUTCOME)
            answer = orjson.dumps({"values": leased.data, "handle": leased.lease_id})
            self._loop.call_soon_threadsafe(transport.write, HEAD % len(answer) + answer)

    def _commit(self, row: bytes) -> None:
        self._store.execute("BEGIN IMMEDIATE")
        self._store.execute("INSERT INTO events (bytes) VALUES (?)", (row,))
        self._store.execute("COMMIT")


@contextmanager
def secret_floor(scratch: Path, vault: Vault) -> Iterator[Callable[[], dict[str, Any]]]:
    """The server on every core, as the broker is: a request to it."""
    port = free_port()
    command = [sys.executable, "-m", "bench.secret_floor", str(scratch / "secret-floor.db"), str(port), vault.address]
    unready = RuntimeError("the server of bench.secret_floor did not start")
    with beside(command, core=all_cores(), unready=unready, env={**os.environ, "BENCH_VAULT_TOKEN": vault.root}):
        client = Client(f"http://127.0.0.1:{port}")
        yield lambda: client.ask("POST", "/", body={"resource": "records"})


async def _serve(store: Path, port: int, address: str) -> None:
    made = _Floor(store, address, os.environ["BENCH_VAULT_TOKEN"])
    server = await asyncio.get_running_loop().create_server(lambda: Connection(made), "127.0.0.1", port)
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
