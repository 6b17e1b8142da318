"""Every fault of PostgreSQL and of Redis under two brokers that serve: what stops, what goes on, that it comes back.

After each fault all invariants are checked, over everything that happened in this module until then.
"""

import asyncio
import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

import pytest
import redis

from broker.sdk.verifier import Verifier
from tests.invariants.checker import Transcript
from tests.invariants.cluster import (
    Balanced,
    Clients,
    Cluster,
    made_durable,
    refuses,
    sound,
    token_of,
    verifier_of,
)
from tests.invariants.kit import AGENTS, Client, child
from tests.invariants.test_serve import until
from tests.postgres import Server, server_or_skip
from tests.proxy import Proxy
from tests.signals.servers import RedisServer, redis_or_skip

pytestmark = pytest.mark.e2e

HEARS_WITHIN_S = 2.0
BOUND_S = 10.0  # a verifier that lost its stream for the silence on it does not hear of a provisional kill
BACK_WITHIN_S = 30.0
ROLE = "broker"  # may read and write the ledger's tables, and nothing else
_NO_COMMIT = b"\0nothing says this\0"


class World:
    """Two brokers, PostgreSQL and Redis, and proxies before both."""

    def __init__(self, folder: Path, server: Server, signals: RedisServer) -> None:
        self.folder, self.server, self.redis = folder, server, signals
        self.replica = signals  # until there is one
        self.small = server.place / "small"
        self.cluster = Cluster(folder, server, brokers=2)
        self.database = self.cluster.url.rpartition("/")[2]
        self.to_postgres, self.to_redis = Proxy(server.port), Proxy(signals.port, commit=_NO_COMMIT)
        self.behind(f"CREATE ROLE {ROLE} LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public TO {ROLE}")
        for member in self.cluster.brokers:
            text = member.config_path.read_text()
            here, there = f"taskpass@127.0.0.1:{server.port}/", f"{ROLE}@127.0.0.1:{self.to_postgres.port}/"
            assert here in text
            member.config_path.write_text(text.replace(here, there))

    def behind(self, sql: str) -> None:
        """Change the database behind the brokers' backs."""
        self.server.run(sql, self.database)

    def hang_up(self) -> None:
        """The server ends every connection of the brokers."""
        self.behind(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{ROLE}'")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with ExitStack() as stack:
        folder = tmp_path_factory.mktemp("faults")
        for name in ("redis", "replica"):
            (folder / name).mkdir()
        server = server_or_skip()
        stack.callback(server.close)
        signals = redis_or_skip(folder / "redis")
        stack.callback(signals.close)
        world = World(folder, server, signals)
        stack.callback(world.to_postgres.close)
        stack.callback(world.to_redis.close)
        env = {"TASKPASS_SIGNALS__URL": f"redis://127.0.0.1:{world.to_redis.port}/0"}
        for member in world.cluster.brokers:
            stack.enter_context(child(member, "all", member.tokens.removeprefix("http://"), env=env))
        yield world


Fault = tuple[Callable[[World], object], Callable[[World], object]]
"""How it begins and how it ends."""


@contextmanager
def lasting(fault: Fault, world: World) -> Iterator[None]:
    begin, end = fault
    begin(world)
    try:
        yield
    finally:
        end(world)


# --- PostgreSQL -------------------------------------------------------------------------------------------------------


def _silence_after_a_commit(world: World) -> None:
    """One COMMIT arrives, and from then on nothing, either way."""
    world.to_postgres.on_commit, world.to_postgres.then_silent = "lose_answer", True


def _be_slow(world: World) -> None:
    world.to_postgres.delay_s = 5


def _be_well(world: World) -> None:
    proxy = world.to_postgres
    proxy.silent = proxy.then_silent = False
    proxy.delay_s = 0
    proxy.cut()


def _limit_connections(number: int) -> Callable[[World], None]:
    def change(world: World) -> None:
        world.behind(f"ALTER ROLE {ROLE} CONNECTION LIMIT {number}")
        world.hang_up()

    return change


def _read_only(setting: str) -> Callable[[World], None]:
    def change(world: World) -> None:
        world.behind(f"ALTER ROLE {ROLE} SET default_transaction_read_only = {setting}")
        world.hang_up()

    return change


def _fill_the_disk(world: World) -> None:
    """The events move to a small disk, which fills; nothing goes into the pages that are there."""
    world.small.mkdir()
    if os.system(f"mount -t tmpfs -o size=12m tmpfs {world.small} 2>/dev/null") != 0:
        pytest.skip("mounting a small disk is not permitted here")
    owner = (world.server.place / "data").stat()
    os.chown(world.small, owner.st_uid, owner.st_gid)
    world.server.run(f"CREATE TABLESPACE small LOCATION '{world.small}'")
    world.behind("ALTER TABLE events SET (fillfactor = 10)")
    world.behind("ALTER TABLE events SET TABLESPACE small")
    with (world.small / "ballast").open("wb", buffering=0) as ballast, suppress(OSError):
        while True:
            ballast.write(bytes(4096))


def _make_room(world: World) -> None:
    (world.small / "ballast").unlink()
    world.behind("ALTER TABLE events SET TABLESPACE pg_default")
    world.behind("ALTER TABLE events RESET (fillfactor)")
    world.server.run("DROP TABLESPACE small")
    os.system(f"umount -l {world.small}")  # lazily: the server may still have it open


_UNREADABLE, _UNWRITABLE = "ledger_unreadable", "ledger_unwritable"
STORE_FAULTS: dict[str, tuple[Fault, str]] = {
    "restart": ((lambda world: world.server.stop(signal.SIGINT), lambda world: world.server.start()), _UNREADABLE),
    "SIGKILL": ((lambda world: world.server.stop(signal.SIGKILL), lambda world: world.server.start()), _UNREADABLE),
    "black hole after COMMIT": ((_silence_after_a_commit, _be_well), _UNREADABLE),
    "slow by 5 s": ((_be_slow, _be_well), _UNREADABLE),
    "no connections left": ((_limit_connections(0), _limit_connections(-1)), _UNREADABLE),
    "read-only": ((_read_only("on"), _read_only("off")), _UNWRITABLE),
    "disk full": ((_fill_the_disk, _make_room), _UNWRITABLE),
}


@pytest.mark.parametrize("name", STORE_FAULTS)
def test_while_postgres_fails_nothing_is_issued_and_kills_are_in_force(world: World, name: str) -> None:
    fault, reason = STORE_FAULTS[name]

    async def scenario() -> Transcript:
        async with Serving(world) as (at_a, at_b, verifiers):
            dead, alive = await token_of(at_a, "bot-0"), await token_of(at_b, "bot-1")
            await until(lambda: not any(refuses(each, token) for each in verifiers for token in (dead, alive)))
            with lasting(fault, world):
                for each in (at_a, at_b):
                    await until(lambda each=each: refused_for_now(each))
                killed = await at_a.kill("agent", "bot-0")
                assert (killed.status_code, killed.json()["durable"]) == (202, False), killed.text
                await until(lambda: refuses(verifiers[0], dead), within_s=BOUND_S + 1)
                assert (await at_a.http.get("/livez")).status_code == 200
                assert reason in await reasons_not_ready(at_a)
                if reason == _UNWRITABLE:
                    assert await at_b.introspect(alive)
                    assert (await at_a.operate("GET", "/v1/kills")).status_code == 200
            for each in (at_a, at_b):
                await until(lambda each=each: issues(each), within_s=BACK_WITHIN_S)
            await until(lambda: made_durable(at_a, killed.json()["id"]), within_s=BACK_WITHIN_S)
            await until(lambda: all(refuses(each, dead) for each in verifiers), within_s=HEARS_WITHIN_S)
            for each in (at_a, at_b):
                assert (await each.token("bot-0")).json()["outcome"] == "held"
            await until(lambda: not any(refuses(each, alive) for each in verifiers))
        return at_a.transcript

    before = len(world.cluster.facts().rows)
    transcript = asyncio.run(scenario())
    sound(world.cluster, transcript)
    events = world.cluster.facts().events[before:]
    delivered = {token.claims["jti"] for token in transcript.tokens}
    failed = {event["jti"] for event in events if event["type"] == "failed"}
    assert {event["jti"] for event in events if event["type"] == "issued"} == delivered | failed


# --- Redis ------------------------------------------------------------------------------------------------------------


def _promote_a_stale_replica(world: World) -> None:
    """One that stopped following a while ago takes over."""
    world.replica = redis_or_skip(world.folder / "replica", "--replicaof", "127.0.0.1", str(world.redis.port))
    world.replica.ask("REPLICAOF", "NO", "ONE")
    world.to_redis.target = world.replica.port
    world.to_redis.cut()


def _demote_it(world: World) -> None:
    world.to_redis.target = world.redis.port
    world.replica.close()


SIGNAL_FAULTS: dict[str, Fault] = {
    "restart": (lambda world: world.redis.stop(signal.SIGTERM), lambda world: world.redis.start()),
    "SIGKILL": (lambda world: world.redis.stop(signal.SIGKILL), lambda world: world.redis.start()),
    "FLUSHALL": (lambda world: world.redis.ask("FLUSHALL"), lambda _: None),
    "black hole": (lambda world: world.redis.freeze(), lambda world: world.redis.thaw()),
    "out of memory": (
        lambda world: world.redis.ask("CONFIG", "SET", "maxmemory", "1"),
        lambda world: world.redis.ask("CONFIG", "SET", "maxmemory", "0"),
    ),
    "stale replica promoted": (_promote_a_stale_replica, _demote_it),
}


def listening(server: RedisServer) -> int:
    """How many brokers would hear of a kill through it."""
    with redis.Redis(port=server.port) as client:
        return sum(number for _, number in client.pubsub_numsub(*client.pubsub_channels()))


@pytest.mark.parametrize("name", SIGNAL_FAULTS)
def test_while_redis_fails_every_answer_is_the_same(world: World, name: str) -> None:
    async def scenario() -> Transcript:
        async with Serving(world) as (at_a, at_b, verifiers):
            await until(lambda: listening(world.redis) == 2, within_s=BACK_WITHIN_S)
            for agent, killer, victim_of in (("bot-0", at_a, at_b), ("bot-1", at_b, at_a)):
                # The second one is after it.
                with lasting(SIGNAL_FAULTS[name], world) if agent == "bot-0" else nullcontext():
                    token = await token_of(victim_of, agent)
                    await until(lambda token=token: not any(refuses(each, token) for each in verifiers))
                    killed = await killer.kill("agent", agent)
                    assert killed.status_code == 201, killed.text
                    await until(
                        lambda token=token: all(refuses(each, token) for each in verifiers), within_s=HEARS_WITHIN_S
                    )
                    assert (await victim_of.token(agent)).json()["outcome"] == "held"
        return at_a.transcript

    sound(world.cluster, asyncio.run(scenario()))


# --- Clients ----------------------------------------------------------------------------------------------------------


class Serving:
    """A client of each broker with an operator's session, a verifier of each, and others who ask all the time."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._stack = AsyncExitStack()
        self._over = asyncio.Event()

    async def __aenter__(self) -> tuple[Client, Client, list[Verifier]]:
        cluster = self._world.cluster
        urls = [member.tokens for member in cluster.brokers]
        at_a, at_b, *others = await self._stack.enter_async_context(Clients(cluster, [*urls, *urls]))
        await at_a.login()
        at_b.session = at_a.session
        for hold in (await at_a.operate("GET", "/v1/holds")).json():
            await at_a.operate("POST", f"/v1/holds/{hold['id']}/lift", {"reason": "another test begins"})
        verifiers = [
            await self._stack.enter_async_context(verifier_of(cluster, Balanced([url]), bound_s=BOUND_S))
            for url in urls
        ]
        self._asking = [asyncio.create_task(self._ask(client)) for client in others]
        return at_a, at_b, verifiers

    async def __aexit__(self, *_: object) -> None:
        self._over.set()
        try:
            await asyncio.gather(*self._asking)
        finally:
            await self._stack.aclose()

    async def _ask(self, client: Client) -> None:
        client.http.timeout = 60
        while not self._over.is_set():
            answer = await client.token(random.choice(AGENTS[2:]))
            assert answer.status_code in (200, 503), answer.text
            await asyncio.sleep(0.05)


async def issues(client: Client) -> bool:
    return (await client.token("bot-2")).status_code == 200


async def refused_for_now(client: Client) -> bool:
    return (await client.token("bot-2")).status_code == 503


async def reasons_not_ready(client: Client) -> list[str]:
    answer = await client.http.get("/readyz")
    return [reason["code"] for reason in answer.json()["reasons"]]
