"""Brokers of two versions on one ledger, as real processes, while it is upgraded under the older of them.

The older one is this program as it is; the newer one is what comes next (`next_version`).
"""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack
from pathlib import Path

import pytest

from broker.sdk.verifier import Verifier
from tests.invariants.checker import Transcript
from tests.invariants.cluster import (
    Balanced,
    Clients,
    Cluster,
    Member,
    load,
    receipt_at,
    refuses,
    sound,
    token_of,
    verifier_of,
)
from tests.invariants.kit import Child, Client, child
from tests.invariants.next_version import LATER, NEXT, NOTED, version
from tests.invariants.test_serve import until
from tests.postgres import Server, server_or_skip

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]


@pytest.fixture
def server() -> Iterator[Server]:
    server = server_or_skip(fsync="off")
    yield server
    server.close()


def broker(member: Member, *, of_next_version: bool = False) -> AbstractContextManager[Child]:
    return child(member, "all", member.tokens.removeprefix("http://"), env={NEXT: "1"} if of_next_version else {})


def next_taskpass(cluster: Cluster, *arguments: str) -> str:
    """What the next version's command prints. Fails when it does."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.invariants.next_version", *arguments],
        cwd=ROOT,
        env={**os.environ, "TASKPASS_CONFIG": str(cluster.brokers[1].config_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_this_version_and_the_next_serve_one_ledger_and_kill_for_each_other(tmp_path: Path, server: Server) -> None:
    cluster = Cluster(tmp_path, server, brokers=2)
    older, newer = cluster.brokers

    async def upgrade_and_serve(stack: ExitStack) -> Transcript:
        clients = Clients(cluster, [older.tokens, newer.tokens, older.tokens])
        async with clients as (at_older, at_newer, busy), AsyncExitStack() as verifiers:
            first = stack.enter_context(broker(older))
            with pytest.raises(RuntimeError, match=f"has version {version()}; this program needs {version() + 1}"):
                stack.enter_context(broker(newer, of_next_version=True))
            loads = [asyncio.create_task(load(busy, seed)) for seed in range(1)]
            upgraded = await asyncio.to_thread(next_taskpass, cluster, "db", "upgrade")
            assert f"from version {version()} to {version() + 1}" in upgraded
            await asyncio.to_thread(stack.enter_context, broker(newer, of_next_version=True))
            each = [
                await verifiers.enter_async_context(verifier_of(cluster, Balanced([member.tokens])))
                for member in (older, newer)
            ]
            await at_newer.login()
            at_older.session = at_newer.session
            await kill_for_each_other(at_older, at_newer, each)
            for task in loads:
                task.cancel()
            await asyncio.gather(*loads, return_exceptions=True)
            first.stop()
            await asyncio.to_thread(stack.enter_context, broker(older))  # it starts on what was upgraded, too
            late = await verifiers.enter_async_context(verifier_of(cluster, Balanced([older.tokens])))
            token = await token_of(at_newer, "bot-4")
            for verifier in (late, *each):
                await until(lambda verifier=verifier: not refuses(verifier, token))
            assert (await at_older.token("bot-0")).json()["outcome"] == "held"
        return clients.transcript

    with ExitStack() as stack:
        transcript = asyncio.run(upgrade_and_serve(stack))
    assert len(transcript.tokens) > 10
    sound(cluster, transcript)
    events = cluster.facts().events
    kills = {event["seq"]: event for event in events if event["type"] == "killed"}
    assert [event["about"] for event in events if event["type"] == NOTED] == [
        seq for seq, kill in kills.items() if LATER in kill
    ]
    assert {LATER in event for event in events if event["type"] == "issued"} == {True, False}
    assert len(kills) == 2
    verified = json.loads(next_taskpass(cluster, "ledger", "verify", "-o", "json"))
    assert (verified["sound"], verified["findings"]) == (True, [])


async def kill_for_each_other(at_older: Client, at_newer: Client, verifiers: list[Verifier]) -> None:
    """A token of each, good at both; then a kill at each, in force at both."""
    for agent, victim_of, killer in (("bot-0", at_older, at_newer), ("bot-1", at_newer, at_older)):
        token = await token_of(victim_of, agent)
        for verifier in verifiers:
            assert (await verifier.averify(token)).agent == agent
        killed = await killer.kill("agent", agent)
        assert killed.status_code == 201, killed.text
        await until(lambda token=token: all(refuses(verifier, token) for verifier in verifiers), within_s=2)
        assert (await victim_of.token(agent)).json()["outcome"] == "held"
        for broker in (at_older, at_newer):
            receipt = await receipt_at(broker, killed.json()["id"])
            assert receipt["complete"], receipt
            assert receipt["verifiers"]["applied"] == 2, receipt
