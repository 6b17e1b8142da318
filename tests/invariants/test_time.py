"""What is dead stays dead: over restarts, and whatever the host's clock says meanwhile."""

import asyncio
import itertools
from collections.abc import Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx2
import orjson
import pytest

from broker.app import Process, running
from broker.ledger import views
from broker.ledger.sqlite import SqliteLedger
from broker.model import OperatorCaller
from broker.stores import wall_clock
from broker.wire import Cursor, KillMap
from tests.invariants.checker import Transcript, check, check_continues, read_ledger
from tests.invariants.kit import AUDIENCES, Client, Site

HOUR_MS = 3_600_000


@asynccontextmanager
async def serving(site: Site, transcript: Transcript, *, offset_ms: int = 0):
    """The broker in this process, on a clock that is off by so much, as are its clients'."""
    async with (
        running(site.config, now=lambda: wall_clock() + offset_ms) as process,
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app=process.app), base_url=site.issuer) as http,
    ):
        yield process, Client(site, http, transcript)


@contextmanager
def opened(site: Site) -> Iterator[SqliteLedger]:
    ledger = SqliteLedger.open(site.ledger, now=wall_clock)
    try:
        yield ledger
    finally:
        ledger.close()


def kill_map(site: Site) -> KillMap:
    with opened(site) as ledger, ledger.read() as r:
        return views.kill_map(r)


def sound(site: Site, transcript: Transcript) -> None:
    assert check(read_ledger(site.ledger), transcript, audiences=AUDIENCES) == []


async def cast(client: Client) -> dict[str, str]:
    """Tokens of four agents, and kills of three of them, each of another kind; the first is resumed."""
    tokens = {f"bot-{n}": (await client.token(f"bot-{n}")).json()["access_token"] for n in range(4)}
    claims = {token.claims["sub"]: token.claims for token in client.transcript.tokens}
    for target, value in (("agent", "bot-0"), ("grant", claims["bot-1"]["jti"]), ("task", claims["bot-2"]["task"])):
        assert (await client.kill(target, value)).status_code == 201
    assert (await client.operate("POST", "/v1/agents/bot-0/resume", {"reason": "test"})).status_code == 200
    return tokens


async def alive(client: Client, tokens: dict[str, str]) -> list[str]:
    return [agent for agent, token in tokens.items() if await client.introspect(token)]


def test_a_restart_revives_nothing(tmp_path: Path) -> None:
    site, transcript = Site(tmp_path), Transcript()

    async def before() -> tuple[dict[str, str], dict[str, object]]:
        async with serving(site, transcript) as (process, client):
            await client.login()
            tokens = await cast(client)
            assert await alive(client, tokens) == ["bot-3"]
            assert process.feed is not None
            return tokens, process.feed.snapshot()

    async def after(tokens: dict[str, str], snapshot: dict[str, object]) -> None:
        async with serving(site, transcript) as (process, client):
            await client.login()
            assert await alive(client, tokens) == ["bot-3"]
            assert process.feed is not None
            again = process.feed.snapshot()
            assert again["kills"] == snapshot["kills"]
            assert again["epoch"] == snapshot["epoch"]
            # Who had applied everything is told of what came since, and of nothing else.
            cursor = Cursor.parse(str(snapshot["cursor"]))
            listener = process.feed.connect(instance="instance-1", verifier="billing", stamp=0, cursor=cursor, hello={})
            assert [event async for event in _drained(listener)] == ["hello", "heartbeat"]
            assert (await client.kill("agent", "bot-3")).status_code == 201
            await asyncio.sleep(0)
            assert (await client.token("bot-0")).status_code == 200
            assert await alive(client, tokens) == []

    tokens, snapshot = asyncio.run(before())
    facts, kills = read_ledger(site.ledger), kill_map(site)._positions
    asyncio.run(after(tokens, snapshot))
    assert kills.items() <= kill_map(site)._positions.items()
    assert check_continues(facts, read_ledger(site.ledger)) == []
    sound(site, transcript)


async def _drained(listener):
    while not listener.events.empty():
        event = listener.events.get_nowait()
        yield event.split(b"\n", 1)[0].removeprefix(b"event: ").decode()
        assert orjson.loads(event.split(b"data: ", 1)[1]) is not None


@pytest.mark.parametrize("jump_ms", [-HOUR_MS, HOUR_MS])
def test_a_clock_that_jumps_revives_nothing_and_stops_no_kill(tmp_path: Path, jump_ms: int) -> None:
    """An hour back, or an hour ahead and then back again: either way the clock ends up behind the ledger's time."""
    site, transcript = Site(tmp_path), Transcript()
    pictures = [read_ledger(site.ledger)]

    async def story() -> None:
        async with serving(site, transcript) as (process, client):
            await client.login()
            tokens = await cast(client)
            assert await alive(client, tokens) == ["bot-3"]
            session = client.session
        if jump_ms > 0:
            async with serving(site, transcript, offset_ms=jump_ms) as (process, client):
                await process.chores.housekeep()
                assert _good(process, tokens) == []
                assert (
                    await client.token("bot-4", assertion=site.assertion("bot-4", offset_s=3600))
                ).status_code == 200
            transcript.tokens.pop()  # it lives an hour from now
        pictures.append(read_ledger(site.ledger))
        behind_ms = min(jump_ms, 0)
        async with serving(site, transcript, offset_ms=behind_ms) as (process, client):
            assert set(_good(process, tokens)) <= {"bot-3"}
            spent = transcript.tokens[0].assertion
            assert (await client.token("bot-0", assertion=spent)).status_code == 401
            fresh = site.assertion("bot-5", offset_s=behind_ms // 1000)
            assert (await client.token("bot-5", assertion=fresh)).status_code == 401
            assert "behind" in (await client.http.get("/readyz")).json()["reasons"][0]["detail"]
            client.session = session  # its times are the ledger's: good until those fifteen minutes have passed there
            assert (await client.kill("agent", "bot-5")).status_code == (201 if jump_ms < 0 else 401)
            client.session = site.operator_assertion(offset_s=behind_ms // 1000)
            assert (await client.kill("agent", "bot-3")).status_code == 201
            assert (await client.kill("agent", "bot-4")).status_code == 401  # once is once, late or not
            assert _good(process, tokens) == []
            assert process.ledger.head.floor >= pictures[-1].head["floor"]

    asyncio.run(story())
    pictures.append(read_ledger(site.ledger))
    for before, after in itertools.pairwise(pictures):
        assert check_continues(before, after) == []
    sound(site, transcript)


def _good(process: Process, tokens: dict[str, str]) -> list[str]:
    """The agents whose tokens the broker calls good, asked without the credentials that this clock would refuse."""
    operator = OperatorCaller(process.broker.callers._rules.current.registry.operators["operator"])
    return [agent for agent, token in tokens.items() if process.broker.evidence.introspect(operator, token)["active"]]
