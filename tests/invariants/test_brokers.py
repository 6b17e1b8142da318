"""Several brokers on one PostgreSQL, as real processes: any serves any verifier, and none is missed when it dies.

`TASKPASS_SOAK=<seconds>` makes the race longer.
"""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from secrets import token_hex

import httpx2
import pytest

from broker.ledger.commands.replay import mark_of
from broker.model import Proof
from tests.invariants.checker import Event, Transcript
from tests.invariants.child import CLOCK_IS_OURS_ALONE, CLOCK_OFFSET_MS
from tests.invariants.cluster import (
    Balanced,
    Clients,
    Cluster,
    load,
    made_durable,
    receipt_at,
    refuses,
    sound,
    token_of,
    verifier_of,
)
from tests.invariants.kit import IDP, Child, Client, child, children_of
from tests.invariants.test_race import Run
from tests.invariants.test_serve import until
from tests.postgres import Server, server_or_skip
from tests.proxy import Proxy

pytestmark = pytest.mark.e2e

RACE_S = float(os.environ.get("TASKPASS_SOAK", "10"))
MANY_KILLS = 200
STANDS_STILL_S = 30.0
LOSES_ITS_TURN_WITHIN_S = 5.0  # two seconds, and what is left of waiting for it
FAILS_OVER_WITHIN_S = 2.0
FOUR_MINUTES_MS = 240_000


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = server_or_skip(fsync="off")  # no test here harms the database
    yield server
    server.close()


# --- Any broker serves any verifier -----------------------------------------------------------------------------------


def test_a_kill_at_one_broker_is_acknowledged_through_the_others(tmp_path: Path, server: Server) -> None:
    """Two real brokers; one verifier at each, and one whose stream comes from A and whose acknowledgements go to B."""
    cluster = Cluster(tmp_path, server, brokers=2)
    a, b = cluster.brokers
    ways = [Balanced([a.control]), Balanced([b.control]), Balanced([a.control], acks=[b.control])]

    async def scenario() -> Transcript:
        clients = Clients(cluster, [a.tokens, b.tokens, a.control, b.control])
        async with clients as (at_a, at_b, operator_a, operator_b), AsyncExitStack() as stack:
            verifiers = [await stack.enter_async_context(verifier_of(cluster, way, bound_s=5)) for way in ways]
            tokens = [await token_of(at_a, "bot-0"), await token_of(at_b, "bot-0")]
            for verifier in verifiers:
                for token in tokens:
                    assert (await verifier.averify(token)).agent == "bot-0"
            await operator_a.login()
            operator_b.session = operator_a.session  # a session is good at every broker
            killed = await operator_a.kill("agent", "bot-0")
            assert killed.status_code == 201, killed.text
            await until(lambda: all(refuses(each, token) for each in verifiers for token in tokens), within_s=2)
            receipts = [await receipt_at(each, killed.json()["id"]) for each in (operator_a, operator_b)]
            for receipt in receipts:
                assert receipt["complete"], receipt
                assert (receipt["verifiers"]["expected"], receipt["verifiers"]["applied"]) == (3, 3), receipt
            other = await token_of(at_b, "bot-1")
            await asyncio.sleep(5.5)  # longer than the bound: whoever stops hearing its own stamps refuses now
            for verifier in verifiers:
                assert (await verifier.averify(other)).agent == "bot-1"
        return clients.transcript

    with ExitStack() as stack:
        for member in (a, b):
            stack.enter_context(child(member, "serve"))
        sound(cluster, asyncio.run(scenario()))


# --- A broker that dies, stands still, or is cut off ------------------------------------------------------------------


def test_verifiers_of_a_killed_broker_are_with_another_within_two_seconds(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = Cluster(tmp_path, server, brokers=2)
    a, b = cluster.brokers

    async def scenario(dying: Child) -> tuple[Transcript, float]:
        clients = Clients(cluster, [a.tokens, b.tokens, b.control])
        async with clients as (at_a, at_b, operator), AsyncExitStack() as stack:
            verifiers = [
                await stack.enter_async_context(verifier_of(cluster, Balanced([a.control, b.control])))
                for _ in range(4)
            ]
            await operator.login()
            early, late = await token_of(at_a, "bot-0"), await token_of(at_a, "bot-1")
            assert (await operator.kill("agent", "bot-0")).status_code == 201
            await until(lambda: all(refuses(each, early) for each in verifiers))
            loads = [asyncio.create_task(load(each, n)) for n in range(8) for each in (at_a, at_b)]
            await asyncio.sleep(1)
            killed_at = time.monotonic()
            for pid in (dying.process.pid, *children_of(dying.process.pid)):
                os.kill(pid, signal.SIGKILL)
            await until(lambda: all(each.status.reconnects and each.status.connected for each in verifiers))
            took = time.monotonic() - killed_at
            for verifier in verifiers:
                assert refuses(verifier, early)
                assert (await verifier.averify(late)).agent == "bot-1"
            assert (await operator.kill("agent", "bot-1")).status_code == 201
            await until(lambda: all(refuses(each, late) for each in verifiers), within_s=2)
            for each in loads:
                each.cancel()
            await asyncio.gather(*loads, return_exceptions=True)
        return clients.transcript, took

    with ExitStack() as stack:
        dying, _ = (stack.enter_context(child(member, "serve")) for member in (a, b))
        transcript, took = asyncio.run(scenario(dying))
    with capsys.disabled():
        print(f"\n  {took:.2f} s until all verifiers were with another broker")
    assert took < FAILS_OVER_WITHIN_S
    assert len(transcript.tokens) > 50
    sound(cluster, transcript)


def test_a_broker_that_stood_still_lets_nothing_through_that_died_meanwhile(tmp_path: Path, server: Server) -> None:
    """Stopped in the middle of its work for half a minute. Whoever asked it gives up and does not know; then it goes on
    with what it was asked, and the ledger says what became of that.
    """
    cluster = Cluster(tmp_path, server, brokers=2)
    still, other = cluster.brokers

    async def scenario(process: Child) -> tuple[Transcript, list[str]]:
        clients = Clients(cluster, [still.tokens, other.tokens, still.tokens])
        async with clients as (at_still, at_other, patient):
            patient.http.timeout = 2 * STANDS_STILL_S
            await at_other.login()
            async with verifier_of(cluster, Balanced([still.tokens]), bound_s=1.5) as verifier:
                dead, alive = await token_of(at_still, "bot-0"), await token_of(at_still, "bot-1")
                assert (await verifier.averify(dead)).agent == "bot-0"
                asking = [asyncio.create_task(given_up(at_still, "bot-0")) for _ in range(5)]
                await asyncio.sleep(0.5)
                process.process.send_signal(signal.SIGSTOP)
                stopped = time.monotonic()
                waiting = [asyncio.create_task(patient.token("bot-0")) for _ in range(5)]
                killed = await at_other.kill("agent", "bot-0")
                assert killed.status_code in (201, 202), killed.text  # it may have to wait for the turn of the other
                await until(lambda: made_durable(at_other, killed.json()["id"]), within_s=LOSES_ITS_TURN_WITHIN_S)
                await until(lambda: refuses(verifier, alive), within_s=3)
                assert refuses(verifier, dead), "staler than its bound, it refuses by itself"
                assert await token_of(at_other, "bot-2")
                unknown = await asyncio.gather(*asking)
                await asyncio.sleep(STANDS_STILL_S - (time.monotonic() - stopped))
                process.process.send_signal(signal.SIGCONT)
                await until(lambda: not refuses(verifier, alive))
                assert refuses(verifier, dead)
                assert {answer.json().get("outcome") for answer in await asyncio.gather(*waiting)} <= {"held", None}
                assert (await at_still.token("bot-0")).json()["outcome"] == "held"
        return clients.transcript, unknown

    with ExitStack() as stack:
        process, _ = (
            stack.enter_context(child(member, "all", member.tokens.removeprefix("http://")))
            for member in (still, other)
        )
        transcript, unknown = asyncio.run(scenario(process))
    sound(cluster, transcript)
    events = cluster.facts().events
    (kill,) = (event for event in events if event["type"] == "killed")
    assert len(unknown) == 5
    for jti in unknown:
        for event in found_by(jti, events):
            assert event["type"] == ("issued" if event["seq"] < kill["seq"] else "refused"), event


async def given_up(client: Client, agent: str) -> str:
    """Ask for tokens until one answer does not come; the jti of the assertion whose outcome is unknown then."""
    while True:
        jti = token_hex(12)
        try:
            answer = await client.token(agent, assertion=client.site.assertion(agent, jti=jti))
        except httpx2.ReadTimeout:
            return jti
        assert answer.status_code in (200, 400, 503), answer.text


def found_by(jti: str, events: list[Event]) -> list[Event]:
    """What the ledger knows of a request, by the proof that it spent: nothing, or one event."""
    mark = mark_of(Proof(IDP, jti, 0)).hex()
    found = [event for event in events if event.get("proof") == mark]
    assert len(found) <= 1, found
    return found


def test_a_broker_that_cannot_reach_the_store_still_answers_and_kills(tmp_path: Path, server: Server) -> None:
    """Everything between it and PostgreSQL turns into a black hole: no answer, no refusal."""
    cluster = Cluster(tmp_path, server, brokers=2)
    cut_off, other = cluster.brokers
    proxy = Proxy(server.port)
    text = cut_off.config_path.read_text()
    cut_off.config_path.write_text(text.replace(f":{server.port}/", f":{proxy.port}/"))

    async def scenario() -> Transcript:
        clients = Clients(cluster, [cut_off.tokens, other.tokens])
        async with clients as (at_cut_off, at_other):
            await at_cut_off.login()
            at_other.session = at_cut_off.session
            async with verifier_of(cluster, Balanced([cut_off.tokens])) as verifier:
                dead, alive = await token_of(at_cut_off, "bot-0"), await token_of(at_other, "bot-1")
                assert (await verifier.averify(dead)).agent == "bot-0"
                proxy.silent = True
                looking = asyncio.create_task(slowest(cut_off.tokens, for_s=5))
                refused = await asyncio.gather(*(at_cut_off.token("bot-0") for _ in range(5)))
                assert {each.status_code for each in refused} == {503}
                asked = time.monotonic()
                killed = await at_cut_off.kill("agent", "bot-0")
                assert time.monotonic() - asked < 4
                assert (killed.status_code, killed.json().get("durable")) == (202, False), killed.text
                await until(lambda: refuses(verifier, dead), within_s=1)
                assert (await verifier.averify(alive)).agent == "bot-1"
                assert await token_of(at_other, "bot-0"), "where the kill is not known yet"
                assert await looking < 1, "nothing may wait for the store on the event loop"
                proxy.silent = False
                proxy.cut()
                await until(lambda: made_durable(at_cut_off, killed.json()["id"]))
                assert (await at_other.token("bot-0")).json()["outcome"] == "held"
        return clients.transcript

    with ExitStack() as stack:
        stack.callback(proxy.close)
        for member in (cut_off, other):
            stack.enter_context(child(member, "all", member.tokens.removeprefix("http://")))
        sound(cluster, asyncio.run(scenario()))


async def slowest(url: str, *, for_s: float) -> float:
    """The slowest of many answers to whether it is alive, in seconds."""
    worst, until_then = 0.0, time.monotonic() + for_s
    async with httpx2.AsyncClient(base_url=url, timeout=10) as http:
        while time.monotonic() < until_then:
            asked = time.monotonic()
            assert (await http.get("/livez")).status_code == 200
            worst = max(worst, time.monotonic() - asked)
            await asyncio.sleep(0.02)
    return worst


# --- Three at once ----------------------------------------------------------------------------------------------------


def test_three_brokers_race_with_clocks_minutes_apart_and_one_that_stands_still(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hundreds of kills against continuous issuance: every answer fits one order of events, that of the ledger."""
    cluster = Cluster(tmp_path, server, brokers=3)
    urls = [member.tokens for member in cluster.brokers]
    run = Run(cluster, urls, controls=urls, seconds=RACE_S, issuers=3, kills=MANY_KILLS)

    async def stand_still(process: Child) -> None:
        await asyncio.sleep(RACE_S / 3)
        process.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(RACE_S / 3)
        process.process.send_signal(signal.SIGCONT)

    async def scenario(processes: list[Child]) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(run.play())
            group.create_task(stand_still(processes[2]))

    with ExitStack() as stack:
        processes = [
            stack.enter_context(child(member, "all", url.removeprefix("http://"), env=clock(ahead_ms)))
            for member, url, ahead_ms in zip(cluster.brokers, urls, (0, FOUR_MINUTES_MS, -FOUR_MINUTES_MS), strict=True)
        ]
        run.until = time.monotonic() + RACE_S
        asyncio.run(scenario(processes))
    with capsys.disabled():
        print(f"\n  {len(run.transcript.kills)} kills, {dict(run.answers)}")
    sound(cluster, run.transcript)
    assert len(run.transcript.kills) >= MANY_KILLS
    assert run.answers["issued"] >= 100
    assert run.answers["held"] >= 20


def clock(ahead_ms: int) -> dict[str, str]:
    """The host's clock of one broker; the ledger's time is the database's all the same."""
    return {CLOCK_OFFSET_MS: str(ahead_ms), CLOCK_IS_OURS_ALONE: "1"}
