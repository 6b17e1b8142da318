"""A store that fails at any statement of a write, before it took effect or after: nothing leaves unrecorded, nothing is
issued twice, and a kill is in force all the same.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from broker import stores
from broker.app import Process, running
from broker.ledger.commands.kills import Kill
from broker.ledger.spool import Spool
from broker.ledger.sqlite import SqliteLedger
from broker.ledger.writer import Writer
from broker.model import Selector, Target
from broker.stops import Stops
from broker.web.feed import Feed
from broker.web.provisional import ProvisionalKills
from broker.wire import Match
from tests.invariants.checker import Transcript, check, read_ledger
from tests.invariants.failpoints import Failpoint, connection_type
from tests.invariants.kit import AUDIENCES, Client, Site

CODES = ("SQLITE_IOERR", "SQLITE_FULL", "SQLITE_BUSY")
STEPS = tuple(f"{when}:{what}" for what in ("BEGIN", "INSERT", "COMMIT") for when in ("before", "after"))


class Store:
    """A store whose writing can be made to fail: once at a step, or altogether until it is mended."""

    def __init__(self, directory: Path) -> None:
        self.failpoint = Failpoint(directory / "failpoint")
        self.broken: str | None = None
        store = self

        class Connection(connection_type(self.failpoint)):  # type: ignore[misc]
            def execute(self, sql: str, *args: object) -> sqlite3.Cursor:
                if sql == "BEGIN IMMEDIATE" and store.broken:
                    error = sqlite3.OperationalError("broken by the test")
                    error.sqlite_errorcode = getattr(sqlite3, store.broken)
                    raise error
                return super().execute(sql, *args)

        self.connection_type = Connection


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    store = Store(tmp_path)
    opened = SqliteLedger.open

    class Ledger:
        create = SqliteLedger.create

        @staticmethod
        def open(path: Path, **options: object) -> SqliteLedger:
            return opened(path, **options, connection_type=store.connection_type)  # type: ignore[arg-type]

    monkeypatch.setattr(stores, "SqliteLedger", Ledger)
    return store


@asynccontextmanager
async def serving(
    site: Site, transcript: Transcript, *, session: str | None = None
) -> AsyncIterator[tuple[Process, Client]]:
    async with (
        running(site.config) as process,
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app=process.app), base_url=site.issuer) as http,
    ):
        client = Client(site, http, transcript)
        if session is None:
            await client.login()
        client.session = session or client.session
        yield process, client


def sound(site: Site, transcript: Transcript) -> None:
    assert check(read_ledger(site.ledger), transcript, audiences=AUDIENCES) == []


def count(site: Site, type_: str) -> int:
    return sum(event["type"] == type_ for event in read_ledger(site.ledger).events)


@pytest.mark.parametrize("code", CODES)
def test_a_write_that_fails_is_answered_503_and_one_that_happened_is_a_success(
    tmp_path: Path, store: Store, code: str
) -> None:
    site, transcript = Site(tmp_path), Transcript()

    async def scenario() -> None:
        async with serving(site, transcript) as (_, client):
            for step in STEPS:
                happened = step == "after:COMMIT"
                issued, assertion = count(site, "issued"), site.assertion("bot-0")
                store.failpoint.arm(step, code)
                response = await client.token("bot-0", assertion=assertion)
                assert not store.failpoint.armed, f"{step} was never reached"
                assert response.status_code == (200 if happened else 503), (step, response.text)
                assert count(site, "issued") - issued == happened
                if not happened:
                    assert int(response.headers["retry-after"]) > 0
                    assert response.json()["error"] == "temporarily_unavailable"
                again = await client.token("bot-0", assertion=assertion)
                assert again.status_code == (401 if happened else 200), step
                sound(site, transcript)

    asyncio.run(scenario())


@pytest.mark.parametrize("step", STEPS)
def test_a_kill_whose_write_fails_is_in_force_at_once_and_durable_soon(tmp_path: Path, store: Store, step: str) -> None:
    site, transcript = Site(tmp_path), Transcript()

    async def scenario() -> None:
        async with serving(site, transcript) as (process, client):
            token = (await client.token("bot-0")).json()["access_token"]
            store.failpoint.arm(step, "SQLITE_FULL")
            response = await client.kill("agent", "bot-0")
            if step == "after:COMMIT":
                assert response.status_code == 201
            else:
                assert response.status_code == 202
                assert response.json()["durable"] is False
                assert response.json()["position"] is None
                assert (await client.token("bot-0")).json()["outcome"] == "held"
                await process.provisional.retry()
                receipt = await client.operate("GET", f"/v1/kills/{response.json()['id']}")
                assert receipt.status_code == 200
                assert receipt.json()["durable"] is True
            assert await client.introspect(token) is False
            assert (await client.token("bot-0")).json()["outcome"] == "held"
            assert (await client.token("bot-1")).status_code == 200
        assert count(site, "killed") == 1
        sound(site, transcript)

    asyncio.run(scenario())


def test_while_nothing_can_be_written_kills_are_in_force_and_outlive_the_process(tmp_path: Path, store: Store) -> None:
    """The disk is full, the operator has no session, and the broker is restarted meanwhile."""
    site, transcript = Site(tmp_path), Transcript()

    async def scenario() -> None:
        async with serving(site, transcript) as (_, client):
            tokens = {agent: (await client.token(agent)).json()["access_token"] for agent in ("bot-0", "bot-1")}
            session, client.session = client.session, site.operator_assertion()
            store.broken = "SQLITE_FULL"
            killed = await client.kill("agent", "bot-0")
            assert (killed.status_code, killed.json()["spooled"]) == (202, True), killed.text
            assert (await client.kill("agent", "bot-1")).status_code == 401  # that proof is spent, recorded or not
            client.session = session
            assert (await client.kill("agent", "bot-0")).json()["id"] == killed.json()["id"]
            assert (await client.token("bot-0")).json()["outcome"] == "held"
            assert (await client.token("bot-1")).status_code == 503
            assert [await client.introspect(tokens[agent]) for agent in tokens] == [False, True]
        async with serving(site, transcript, session=session) as (process, client):
            assert [await client.introspect(tokens[agent]) for agent in tokens] == [False, True]
            assert (await client.token("bot-0")).json()["outcome"] == "held"
            assert (await client.kill("agent", "bot-1")).status_code == 202
            store.broken = None
            await process.provisional.retry()
            assert count(site, "killed") == 2
            assert [await client.introspect(tokens[agent]) for agent in tokens] == [False, False]
            holds = (await client.operate("GET", "/v1/holds")).json()
            assert {hold["value"] for hold in holds} == {"bot-0", "bot-1"}
            assert (await client.token("bot-2")).status_code == 200
        sound(site, transcript)
        async with serving(site, transcript) as (_, client):  # nothing is left in the spool, nor in the stops
            for agent in ("bot-0", "bot-1"):
                assert (await client.operate("POST", f"/v1/agents/{agent}/resume", {"reason": "x"})).status_code == 200
                assert (await client.token(agent)).status_code == 200
        assert count(site, "killed") == 2
        sound(site, transcript)

    asyncio.run(scenario())


def test_a_kill_that_names_many_agents_fits_its_reserved_space(tmp_path: Path) -> None:
    agents = tuple(f"agent-of-a-big-owner-{n:03}" for n in range(200))
    command = Kill(
        selector=Selector(Target.OWNER, "big"),
        reason="x" * 500,
        actor="operator",
        hold=True,
        registry_hash="f" * 64,
        agents=agents,
    )
    ledger = tmp_path / "ledger.db"
    SqliteLedger.create(ledger, now=stores.wall_clock, origin="test")

    async def scenario() -> None:
        opened = SqliteLedger.open(ledger, now=stores.wall_clock)
        writer = Writer(ledger=opened, loop=asyncio.get_running_loop())
        feed = Feed(ledger=opened, writer=writer, now=stores.wall_clock)
        stops = Stops.open(tmp_path / "stops")

        def kills() -> ProvisionalKills:
            spool = Spool.open(tmp_path / "spool")
            return ProvisionalKills(writer=writer, feed=feed, spool=spool, stops=stops, now=stores.wall_clock)

        before = kills()
        put = before.put(command, tuple((Match.AGENT, agent) for agent in agents))
        assert put["spooled"] is True
        after = kills()
        after.restore()
        assert after.answer(put["id"]) == put
        assert stops.covering({"sub": agents[-1]}) == put["id"]
        await writer.close()
        opened.close()

    asyncio.run(scenario())
