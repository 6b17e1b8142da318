"""What saturates first when many brokers share one ledger: `python -m bench.scaling`, see `--help`.

A simulation of the one thing that they share: the head row, which their writers take in turns, a batch each. What a
turn costs is measured on this machine with `--measure`, or taken from COSTS, which were. Everything else (verifying,
deciding, signing, HTTP) happens in each broker by itself, and grows with their number.

A broker's batch is what came to it since its last turn, 256 at most. Every broker also writes once a second who of its
verifiers it has heard of. The simulation is of seconds, not of packets: arrivals are even, turns go round.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter

BATCH = 256
TOUCHES_PER_S = 1.0
_SIMULATED_S = 30.0


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds: of a turn whatever it writes (the row's lock, round trips, the durable commit), and of each command."""

    turn: float
    command: float


COSTS = Costs(turn=0.0012, command=0.00003)
"""PostgreSQL 15 on loopback, everything durable, on two cores with nothing else to do: see docs/scaling.md."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a simulated half minute looked like."""

    done_per_s: float
    wait_s: float  # mean, from arrival to commit
    busy: float  # of the head row's time, the part in which somebody has it
    left: int  # requests that were still waiting at the end


def simulate(brokers: int, per_s: float, costs: Costs = COSTS) -> Outcome:
    """So many brokers with `per_s` token requests in all, evenly spread."""
    rate = per_s / brokers
    now = busy = waited = 0.0
    done = 0
    taken = [0] * brokers  # requests of each that were committed
    touched = [0] * brokers
    while now < _SIMULATED_S:
        idle = True
        for each in range(brokers):
            come = int(now * rate + each / brokers)
            batch = min(BATCH, come - taken[each])
            touches = int(now * TOUCHES_PER_S + each / brokers) - touched[each]
            if batch == 0 and touches == 0:
                continue
            idle = False
            spent = costs.turn + costs.command * (batch + (touches > 0))
            now += spent
            busy += spent
            # Request k of a broker came at (k + 1) / rate, less its head start: the mean of the first and the last.
            waited += batch * (now - (taken[each] + (batch + 1) / 2 - each / brokers) / rate) if batch else 0.0
            taken[each] += batch
            touched[each] += touches
            done += batch
        if idle:
            now += costs.turn / 4
    return Outcome(done / now, waited / max(done, 1), busy / now, max(0, int(now * per_s) - done))


def most(brokers: int, *, within_s: float, costs: Costs = COSTS) -> float:
    """The most requests a second for which nobody falls behind, with the mean wait within a bound; 0 if none."""
    low, high = 0.0, 40_000.0
    for _ in range(9):
        middle = (low + high) / 2
        found = simulate(brokers, middle, costs)
        holds = found.wait_s <= within_s and found.done_per_s >= 0.97 * middle
        low, high = (middle, high) if holds else (low, middle)
    return low


def table(counts: Sequence[int], costs: Costs = COSTS) -> str:
    """What each number of brokers on one ledger can carry, in Markdown."""
    rows = [
        "| brokers on one ledger | head row busy, idle | most tokens a second, mean wait within 250 ms | of each |",
        "|---|---|---|---|",
    ]
    for count in counts:
        quiet, carried = simulate(count, 0.001 * count, costs), most(count, within_s=0.25, costs=costs)
        rows.append(f"| {count:,} | {quiet.busy:.0%} | {carried:,.0f} | {carried / count:,.0f} |")
    return "\n".join(rows)


def measure() -> Costs:
    """The two costs on this machine, from real issuances in batches of 1 and of 128."""
    from demo.postgres import Server, binaries
    from tests.ledger.postgres import PostgresMade
    from tests.ledger.test_postgres_faults import issue

    folder = binaries()
    if folder is None:
        raise SystemExit("PostgreSQL is not installed")
    server = Server(folder, {})
    made = PostgresMade(server)
    try:
        ledger, took = made.open(), {}
        for size, times in ((1, 200), (128, 20)):
            batches = [[issue(made, f"{size}.{batch}.{n}") for n in range(size)] for batch in range(times)]
            ledger.commit(batches.pop())
            took[size] = median(_seconds(lambda batch=batch: ledger.commit(batch)) for batch in batches)  # type: ignore[misc]
    finally:
        made.close()
        server.close()
    command = (took[128] - took[1]) / 127
    return Costs(turn=took[1] - command, command=command)


def _seconds(act: Callable[[], object]) -> float:
    begun = perf_counter()
    act()
    return perf_counter() - begun


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="measure the costs here first")
    parser.add_argument("--turn-us", type=float, default=COSTS.turn * 1e6, help="what a turn costs")
    parser.add_argument("--command-us", type=float, default=COSTS.command * 1e6, help="what each command costs")
    given = parser.parse_args()
    costs = measure() if given.measure else Costs(given.turn_us / 1e6, given.command_us / 1e6)
    print(f"a turn {costs.turn * 1e6:.0f} us, a command {costs.command * 1e6:.0f} us")
    print(table([1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000], costs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
