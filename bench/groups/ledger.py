"""A ledger of a million events: verifying it, proving one event, and starting a broker on it.

Beside nothing. On: everything; the events are `issued` events put in through the ledger's own commands, each with its
replay mark and its grant, so the audit also covers those tables and their indexes.
"""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

from bench.run import Run
from bench.seeding import load_rules, seed
from bench.site import Site, agent_name
from broker.app import Role, running
from broker.ledger.verify import verify_ledger

EVENTS = 1_000_000
_PLACES = 200


def measure(run: Run) -> None:
    """`ledger_verify_1m_s`, `ledger_proof_ms` and `ledger_open_1m_s`."""
    site, events = run.site(), run.times(EVENTS, EVENTS // 10)
    load_rules(site)
    built = seconds(lambda: seed(site, [agent_name(n) for n in range(site.agents)], grants=events))
    scale = EVENTS / events
    opened = [asyncio.run(_opened(site)) for _ in range(3)]
    proofs = asyncio.run(_proofs(site))
    reports = []
    audit = seconds(lambda: reports.append(verify_ledger(site.ledger)))
    if not reports[0].sound or reports[0].size < events:
        raise AssertionError(f"the ledger does not verify: {reports[0]}")
    scaled = "" if scale == 1 else f"; extrapolated from {events} events"
    run.book.figure(
        "ledger_verify_1m_s", audit * scale, note=f"{reports[0].size / audit:.0f} events per second{scaled}"
    )
    run.book.figure("ledger_proof_ms", median(proofs), note=f"worst of {_PLACES}: {max(proofs):.1f} ms{scaled}")
    run.book.figure("ledger_open_1m_s", median(opened), note=f"from an opened file to ready to serve{scaled}")
    run.book.detail(
        "ledger",
        {
            "events": reports[0].size,
            "file_mb": site.ledger.stat().st_size / 1e6,
            "build_s": built,
            "open_s": opened,
            "proof_ms": sorted(proofs),
            "audit_s": audit,
            "fdatasync_us": fdatasync_us(run.scratch),
        },
    )


async def _opened(site: Site) -> float:
    """Seconds until a whole broker (opening, rules, keys, feed, its first event) is ready on this ledger."""
    start = perf_counter()
    async with running(site.config, role=Role.ALL):
        return perf_counter() - start


async def _proofs(site: Site) -> list[float]:
    """Milliseconds for inclusion proofs all over the ledger."""
    async with running(site.config, role=Role.CONTROL) as process:
        size = process.ledger.head.size
        places = [size * n // _PLACES for n in range(_PLACES)]
        return [seconds(lambda seq=seq: process.proofs.inclusion(seq, size)) * 1000 for seq in places]  # type: ignore[misc]


def fdatasync_us(directory: Path) -> float:
    """What one page, durably written, costs on this disk."""
    with (directory / "sync").open("wb", buffering=0) as file:

        def once() -> None:
            file.write(bytes(4096))
            os.fdatasync(file.fileno())

        return median(seconds(once) for _ in range(200)) * 1e6


def seconds(work: Callable[[], object]) -> float:
    """How long `work` takes."""
    start = perf_counter()
    work()
    return perf_counter() - start
