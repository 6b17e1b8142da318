"""A stop under load: what was committed is answered, and nobody is told an error of the server."""

import asyncio
import signal
import socket
from pathlib import Path

import httpx2
import pytest

from broker.processes import _Acceptor, listen_on
from broker.sdk.identity import CallableIdentity
from broker.sdk.verifier import Verifier
from demo.ports import free_port
from tests.invariants.checker import Transcript, read_ledger
from tests.invariants.kit import AGENTS, AUDIENCES, Client, Site, child

pytestmark = pytest.mark.e2e

_CLIENTS, _BEFORE = 12, 60


async def _load(site: Site, transcript: Transcript, answers: list[str], enough: asyncio.Event, n: int) -> None:
    """Tokens one after another over one kept connection, until the broker takes no more. Of refusals, all they say."""
    async with httpx2.AsyncClient(base_url=site.issuer, timeout=20) as http:
        client = Client(site, http, transcript)
        while True:
            try:
                response = await client.token(AGENTS[n % len(AGENTS)])
                answers.append("200" if response.status_code == 200 else f"{response.status_code}: {response.text}")
                if len(answers) >= _BEFORE:
                    enough.set()
            except httpx2.TransportError:
                return


def test_every_token_that_was_committed_was_answered(tmp_path: Path):
    site, transcript, answers = Site(tmp_path), Transcript(), list[str]()

    async def scenario() -> None:
        verifier = Verifier(
            issuer=site.issuer,
            audience=AUDIENCES["invoices"],
            identity=CallableIdentity(lambda _: site.assertion("billing")),
            staleness_bound_s=30,
        )
        async with verifier:
            enough = asyncio.Event()
            clients = [asyncio.create_task(_load(site, transcript, answers, enough, n)) for n in range(_CLIENTS)]
            await asyncio.wait_for(enough.wait(), 30)
            served.process.send_signal(signal.SIGTERM)
            await asyncio.wait_for(asyncio.gather(*clients), 30)

    with child(site, "serve") as served:
        asyncio.run(scenario())
        assert served.wait() == 0
    assert set(answers) == {"200"}
    issued = {event["seq"] for event in read_ledger(site.ledger).events if event["type"] == "issued"}
    assert issued == {token.claims["seq"] for token in transcript.tokens}


def test_a_connection_that_was_just_taken_is_told_of_a_stop_like_all_others():
    """Else its client would be served until the ledger is closed, and then refused."""

    class Made(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            made.append(transport)

    made: list[asyncio.BaseTransport] = []

    async def scenario() -> None:
        with listen_on(f"127.0.0.1:{free_port()}") as listening:
            acceptor = _Acceptor(listening, Made)
            with socket.create_connection(listening.getsockname()):
                acceptor._accept()
                assert not made
                await acceptor.stop()
                assert len(made) == 1
                made[0].close()

    asyncio.run(scenario())
