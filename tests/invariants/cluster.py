"""Several brokers on one PostgreSQL: their configurations, and clients that find whichever of them answers."""

from collections.abc import Sequence
from pathlib import Path

import httpx2

from broker.sdk.identity import CallableIdentity
from broker.sdk.verifier import Verifier
from demo.ports import free_port
from tests.invariants.checker import Facts, read_database
from tests.invariants.kit import AUDIENCES, Site
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
