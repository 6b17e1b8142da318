"""What the ledger costs: commits per second by batch size, and a large ledger's opening, proofs and audit.

    python bench/ledger_bench.py [--events 1000000] [--dir DIR]

Figures depend on the disk: the first line says what one fdatasync costs here.
"""

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker.ledger import Tx
from broker.ledger.checkpoint import VerifierKey
from broker.ledger.proofs import Proofs
from broker.ledger.sqlite import SqliteLedger
from broker.ledger.verify import verify_ledger
from broker.ledger.writer import Writer

ORIGIN = "bench.example/ledger"
WORKLOAD = {"trust": "ci", "issuer": "https://idp.example", "subject": "repo:acme/disputes:ref:refs/heads/main"}


class Issued:
    """About the size of a real `issued` event; with no projection, so that only the kernel is measured."""

    def apply(self, tx: Tx) -> int:
        seq = tx.next_seq()
        body = {"agent": "dispute-agent", "workload": WORKLOAD, "outcome": "automatic", "policies": ["disputes-read"]}
        body |= {"bundle": "cd" * 32, "registry": "ef" * 32, "task": f"tsk_{tx.epoch}_{seq}", "resource": "billing"}
        body |= {"actions": ["invoices:read"], "jti": f"grt_{tx.epoch}_{seq}", "kid": "kQ1", "iat": 1, "exp": 2}
        return tx.append("issued", body)


def now() -> int:
    return time.time_ns() // 1_000_000


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def fdatasync_us(folder: Path) -> float:
    with (folder / "sync").open("wb", buffering=0) as file:

        def once() -> None:
            file.write(bytes(4096))
            os.fdatasync(file.fileno())

        return statistics.median(seconds(once) for _ in range(200)) * 1e6


def fresh(folder: Path, name: str) -> SqliteLedger:
    SqliteLedger.create(folder / name, now=now, origin=ORIGIN)
    return SqliteLedger.open(folder / name, now=now)


def commit_rates(folder: Path) -> dict[str, dict[str, float]]:
    """Commits and events per second at each batch size, median of five rounds."""
    ledger, rates = fresh(folder, "rates.db"), {}
    for size in (1, 16, 64, 256):
        batch, rounds = [Issued()] * size, max(20, 2000 // size)
        times = [seconds(lambda: [ledger.commit(batch) for _ in range(rounds)]) for _ in range(5)]  # noqa: B023
        rate = rounds / statistics.median(times)
        rates[f"batch {size}"] = {"commits_per_s": round(rate), "events_per_s": round(rate * size)}
    ledger.close()
    return rates


def writer_rate(folder: Path, clients: int = 64, each: int = 200) -> float:
    """Events per second through the asynchronous front, so many clients waiting for each answer."""
    ledger = fresh(folder, "writer.db")

    async def client(writer: Writer) -> None:
        for _ in range(each):
            await writer.submit(Issued())

    async def main() -> float:
        writer = Writer(ledger=ledger, loop=asyncio.get_running_loop())
        start = time.perf_counter()
        await asyncio.gather(*(client(writer) for _ in range(clients)))
        rate = clients * each / (time.perf_counter() - start)
        await writer.close()
        return rate

    rate = asyncio.run(main())
    ledger.close()
    return round(rate)


def large(folder: Path, events: int) -> dict[str, float]:
    """A ledger of so many events: seconds to build, open and audit, milliseconds for proofs and a checkpoint."""
    path, key = folder / "large.db", Ed25519PrivateKey.generate()
    ledger = fresh(folder, "large.db")
    built = seconds(lambda: [ledger.commit([Issued()] * 10_000) for _ in range(events // 10_000)])
    ledger.close()
    opened = seconds(lambda: SqliteLedger.open(path, now=now).close())
    ledger = SqliteLedger.open(path, now=now)
    proofs = Proofs(ledger=ledger, origin=ORIGIN, key=lambda: key)
    checkpoint = seconds(proofs.checkpoint)
    note, size = proofs.checkpoint(), ledger.head.size
    places = [size * step // 200 for step in range(200)]
    inclusion = [seconds(lambda: proofs.inclusion(seq, size)) for seq in places]  # noqa: B023
    consistency = [seconds(lambda: proofs.consistency(seq + 1, size)) for seq in places]  # noqa: B023
    ledger.close()
    reports = []
    audit = seconds(lambda: reports.append(verify_ledger(path, keys=[VerifierKey.of(ORIGIN, key)], kept=[note])))
    assert (reports[0].sound, reports[0].kept) == (True, 1)
    return {
        "events": size,
        "file_mb": round(path.stat().st_size / 1e6),
        "build_s": round(built, 1),
        "open_ms": round(opened * 1e3, 1),
        "checkpoint_ms": round(checkpoint * 1e3, 2),
        "inclusion_ms_median": round(statistics.median(inclusion) * 1e3, 2),
        "inclusion_ms_max": round(max(inclusion) * 1e3, 2),
        "consistency_ms_median": round(statistics.median(consistency) * 1e3, 2),
        "consistency_ms_max": round(max(consistency) * 1e3, 2),
        "audit_s": round(audit, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--dir", type=Path, default=None)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.dir) as name:
        folder = Path(name)
        result = {"fdatasync_us": round(fdatasync_us(folder)), **commit_rates(folder)}
        result["writer_events_per_s"] = writer_rate(folder)
        result["large"] = large(folder, arguments.events)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
