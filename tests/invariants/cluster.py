"""Several brokers on one PostgreSQL: their configurations, and clients that find whichever of them answers."""

import asyncio
import random
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import httpx2

from broker.ledger.postgres_audit import PostgresStore
from broker.ledger.verify import verify_store
from broker.sdk.errors import Refused
from broker.sdk.identity import CallableIdentity
from broker.sdk.verifier import Verifier
from demo.ports import free_port
from tests.invariants.checker import Facts, Transcript, check, read_database
from tests.invariants.kit import AGENTS, AUDIENCES, Client, Site
from tests.postgres import Server


class Cluster(Site):
    """One issuer, one ledger, and as many brokers as are asked for."""

    def __init__(self, directory: Path, server: Server, *, brokers: int) -> None:
        self.url = server.url(server.new_database())
        super().__init__(directory, database=self.url)
        self.brokers = [self._broker(number) for number in range(brokers)]

    def facts(self) -> Facts:
        """Everything the checker needs."""
        return read_database(self.url)

    def _broker(self, number: int) -> "Member":
        """A broker with ports and a directory of its own; the issuer stays the same."""
        port = free_port(in_a_row=2)
        text = self.config_path.read_text().replace("# workers = 2", "workers = 1")
        for line in text.splitlines():
            if line.startswith("listen ="):
                text = text.replace(line, f'listen = "127.0.0.1:{port}"')
            elif line.startswith("control_listen ="):
                text = text.replace(line, f'control_listen = "127.0.0.1:{port + 1}"')
        text = text.replace('state_path = "data"', f'state_path = "data-{number}"')
        path = self.config_path.with_name(f"taskpass-{number}.toml")
        path.write_text(text)
        (path.parent / f"data-{number}").mkdir(mode=0o700)
        return Member(self, path, port, number)


class Member:
    """One broker of a cluster, as `kit.child` starts it. Tokens and control are at different addresses of it, unless it
    runs as one process of all roles: then everything is at `tokens`.
    """

    def __init__(self, cluster: Cluster, config_path: Path, port: int, number: int) -> None:
        self.config_path, self.directory = config_path, cluster.directory / f"broker-{number}"
        self.directory.mkdir()
        self.tokens, self.control = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port + 1}"


class Balanced(httpx2.AsyncBaseTransport):
    """What a load balancer does: whatever is asked of the issuer goes to the first broker that answers.

    `acks` are asked first for acknowledgements, if those are to take another way than the stream.
    """

    def __init__(self, targets: Sequence[str], *, acks: Sequence[str] = ()) -> None:
        self.targets, self.acks = list(targets), list(acks)
        self._transport = httpx2.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        targets = self.acks if self.acks and request.url.path.endswith("/ack") else self.targets
        for target in targets[:-1]:
            try:
                return await self._transport.handle_async_request(_sent_to(request, target))
            except httpx2.ConnectError:
                continue
        return await self._transport.handle_async_request(_sent_to(request, targets[-1]))

    async def aclose(self) -> None:
        await self._transport.aclose()


def _sent_to(request: httpx2.Request, target: str) -> httpx2.Request:
    there = httpx2.URL(target)
    url = request.url.copy_with(host=there.host, port=there.port)
    return httpx2.Request(
        request.method, url, headers=request.headers, stream=request.stream, extensions=request.extensions
    )


def verifier_of(cluster: Cluster, way: Balanced, *, bound_s: float = 30) -> Verifier:
    """A service that takes tokens for invoices, and reaches the brokers that way."""
    return Verifier(
        issuer=cluster.issuer,
        audience=AUDIENCES["invoices"],
        identity=CallableIdentity(lambda _: cluster.assertion("billing")),
        staleness_bound_s=bound_s,
        http=lambda: httpx2.AsyncClient(transport=way, timeout=5),
    )


# --- What clients do and see -----------------------------------------------------------------------------------------


def sound(cluster: Cluster, transcript: Transcript) -> None:
    """All invariants, by the independent checker, and the product's own audit."""
    assert check(cluster.facts(), transcript, audiences=AUDIENCES) == []
    report = verify_store(PostgresStore(cluster.url, "the test's database"))
    assert report.sound, report.findings


def refuses(verifier: Verifier, token: str) -> bool:
    try:
        verifier.verify(token)
    except Refused:
        return True
    return False


class Clients:
    """One client of each broker, all of one transcript."""

    def __init__(self, cluster: Cluster, urls: list[str]) -> None:
        self.transcript = Transcript()
        self._stack = AsyncExitStack()
        self.each = [Client(cluster, httpx2.AsyncClient(base_url=url, timeout=10), self.transcript) for url in urls]

    async def __aenter__(self) -> list[Client]:
        for client in self.each:
            await self._stack.enter_async_context(client.http)
        return self.each

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()


async def token_of(client: Client, agent: str) -> str:
    response = await client.token(agent)
    assert response.status_code == 200, response.text
    return str(response.json()["access_token"])


async def receipt_at(client: Client, kill_id: str) -> dict[str, Any]:
    answer = await client.operate("GET", f"/v1/kills/{kill_id}?wait_ms=5000")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def load(client: Client, seed: int) -> None:
    """Ask for tokens until cancelled; a broker that is gone is not asked again soon."""
    dice = random.Random(seed)
    while True:
        try:
            await client.token(dice.choice(AGENTS[2:]))
        except httpx2.HTTPError:
            await asyncio.sleep(0.1)


async def made_durable(client: Client, kill_id: str) -> bool:
    with suppress(httpx2.HTTPError):
        answer = await client.operate("GET", f"/v1/kills/{kill_id}")
        return answer.status_code == 200 and answer.json()["durable"]
    return False
