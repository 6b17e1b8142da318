"""One process told to stop: it finishes what it began, and writes down what it still had in memory."""

import asyncio
import time
from pathlib import Path

import httpx2
import pytest

from tests.invariants.checker import Transcript, read_ledger
from tests.invariants.kit import Client, Site, child, children_of, is_running

pytestmark = pytest.mark.e2e


def test_refusals_that_were_only_counted_are_written_before_the_end(tmp_path: Path) -> None:
    site = Site(tmp_path)

    async def junk() -> None:
        async with httpx2.AsyncClient(base_url=site.issuer) as http:
            assert (await http.get("/v1/whoami")).status_code == 401

    with child(site, "all") as process:
        asyncio.run(junk())
        assert process.stop() == 0
    (counted,) = (event for event in read_ledger(site.ledger).events if event["type"] == "refusals")
    assert counted["counts"] == {"no_credential": 1}


def test_a_broker_whose_ledger_was_replaced_ends_as_a_whole(tmp_path: Path) -> None:
    """Nothing may be answered from another ledger than the one that was opened; starting again would do just that."""
    site = Site(tmp_path)

    async def ask() -> int:
        async with httpx2.AsyncClient(base_url=site.issuer) as http:
            return (await Client(site, http, Transcript()).token("bot-0")).status_code

    with child(site, "serve") as served:
        assert asyncio.run(ask()) == 200
        processes = children_of(served.process.pid)
        site.ledger.rename(site.ledger.with_suffix(".gone"))
        assert asyncio.run(ask()) == 503
        assert served.wait() == 1
        deadline = time.monotonic() + 10  # what Python itself began for them ends when it finds them gone
        while any(map(is_running, processes)) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not [pid for pid in processes if is_running(pid)]
