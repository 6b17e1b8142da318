"""Two token workers on one SQLite file, against one; afterwards the whole tree is verified.

Beside: a second broker of ours, in paired bursts. On: everything. Each worker is pinned to a core of its own, as the
one worker is. On a machine of two cores the load has no core left: what it used of the two workers' cores is measured
and counted as not there. What the workers lose by waiting for each other's commits counts in full.
"""

from statistics import median

from bench.groups.tokens import summary
from bench.load import Burst, Target
from bench.machine import all_cores, pin
from bench.run import Run
from bench.serving import serving
from broker.ledger.verify import verify_ledger

WORKERS = 2
_EACH = 64  # connections: as many for each worker as the one has


def measure(run: Run) -> None:
    """`issue_workers2_ratio`."""
    every = sorted(all_cores())
    if len(every) < WORKERS:
        run.book.skipped(["issue_workers2_ratio"], "one core: nowhere to put a second worker")
        return
    own, spare = set(every[:WORKERS]), set(every[WORKERS:])
    one, two = run.site(workers=1), run.site(workers=WORKERS)
    with serving(one, core=run.server_core) as single, serving(two, core=own) as double:
        for pid, core in zip(double.workers, own, strict=True):
            pin(pid, {core})
        singly, doubly = (
            Target(name, f"{each.site.issuer}/oauth2/token", each.site.issuer, each.pids)
            for name, each in (("1 worker", single), ("2 workers", double))
        )
        run.warm([singly, doubly])
        rounds = []
        for _ in range(run.times(8, 3)):
            seconds = run.times(3, 2)
            (first,) = run.paired([singly], connections=_EACH, rounds=1, seconds=seconds)
            (second,) = run.paired(
                [doubly], connections=WORKERS * _EACH, rounds=1, seconds=seconds, load_cores=spare or own
            )
            rounds.append(first | second)
    ratios = [_rate(each["2 workers"], shared=not spare) / each["1 worker"].rate for each in rounds]
    plain = median(each["2 workers"].rate / each["1 worker"].rate for each in rounds)
    report = verify_ledger(two.ledger)
    run.book.figure(
        "issue_workers2_ratio",
        median(ratios),
        also=lambda: report.sound,
        note=f"{min(ratios):.2f} to {max(ratios):.2f}; {plain:.2f} with the load on the workers' cores; "
        f"tree of {report.size} events {'intact' if report.sound else 'BROKEN'}",
    )
    run.book.detail("workers", {name: summary([each[name] for each in rounds]) for name in rounds[0]})


def _rate(burst: Burst, *, shared: bool) -> float:
    """Tokens per second of cores that were the workers' alone."""
    return burst.rate * WORKERS / (WORKERS - burst.load_share) if shared else burst.rate
