"""A worker that stands still in the middle of a write: kills are answered all the same, and when it goes on, nothing it
held leaves that a kill has covered meanwhile.
"""

import asyncio
import signal
import time
from pathlib import Path

import httpx2
import pytest

from tests.invariants.checker import Transcript, check, read_ledger
from tests.invariants.failpoints import FILE, Failpoint
from tests.invariants.kit import AUDIENCES, Child, Client, Site, child

pytestmark = pytest.mark.e2e

ANSWERED_WITHIN_S = 5.0  # DESIGN says three seconds; a test machine may be slow


@pytest.mark.parametrize("step", ["after:BEGIN", "after:INSERT", "after:COMMIT", "before:first_byte"])
def test_a_worker_that_stands_still_neither_stops_kills_nor_outruns_them(tmp_path: Path, step: str) -> None:
    site, transcript = Site(tmp_path), Transcript()
    failpoint = Failpoint(tmp_path / "failpoint")
    has_the_turn = step != "before:first_byte"  # then nobody else can write

    async def scenario(worker: Child) -> None:
        async with (
            httpx2.AsyncClient(base_url=site.issuer, timeout=60) as agents_http,
            httpx2.AsyncClient(base_url=site.control, timeout=60) as control_http,
        ):
            agent, operator = (Client(site, http, transcript) for http in (agents_http, control_http))
            await operator.login()
            before = (await agent.token("bot-0")).json()["access_token"]
            failpoint.arm(step, "stop")
            asking = asyncio.create_task(agent.token("bot-0"))
            await asyncio.to_thread(worker.wait_until_it_stands_still)

            began = time.monotonic()
            killed = await operator.kill("agent", "bot-0")
            assert time.monotonic() - began < ANSWERED_WITHIN_S
            assert killed.status_code == (202 if has_the_turn else 201), killed.text
            assert await operator.introspect(before) is False

            worker.process.send_signal(signal.SIGCONT)
            answer = await asking
            if has_the_turn:
                assert answer.status_code != 200, "a credential left after a kill that covers it was acknowledged"
            elif answer.status_code == 200:
                assert await operator.introspect(answer.json()["access_token"]) is False
            receipt = killed.json()
            while not receipt["durable"]:
                await asyncio.sleep(0.05)
                receipt = (await operator.operate("GET", f"/v1/kills/{killed.json()['id']}")).json()
            assert (await agent.token("bot-0")).json()["outcome"] == "held"
            assert (await agent.token("bot-1")).status_code == 200
        assert check(read_ledger(site.ledger), transcript, audiences=AUDIENCES) == []

    with child(site, "control"), child(site, "tokens", env={FILE: str(failpoint._file)}) as worker:
        asyncio.run(scenario(worker))
