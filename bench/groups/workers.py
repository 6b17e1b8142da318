"""Two token workers on one SQLite file, against one; afterwards the whole tree is verified.

Beside: a second broker of ours, in paired bursts. On: everything. The workers, the control process and the load share
all cores here and are not pinned, so on a machine of two cores the load generator takes its share from the second
worker: the ratio is then a lower bound.
"""

from statistics import median

from bench.groups.tokens import summary
from bench.load import Target
from bench.machine import all_cores
from bench.run import Run
from bench.serving import serving
from broker.ledger.verify import verify_ledger


def measure(run: Run) -> None:
    """`issue_workers2_ratio`."""
    cores = all_cores()
    one, two = run.site(workers=1), run.site(workers=2)
    with serving(one, core=cores) as single, serving(two, core=cores) as double:
        targets = [
            Target(name, f"{each.site.issuer}/oauth2/token", each.site.issuer, each.pids, most_per_s=8_000)
            for name, each in (("1 worker", single), ("2 workers", double))
        ]
        run.warm(targets)
        rounds = run.paired(targets, connections=64, rounds=run.times(8, 3), seconds=run.times(3, 2), load_cores=cores)
    ratios = [each["2 workers"].rate / each["1 worker"].rate for each in rounds]
    report = verify_ledger(two.ledger)
    run.book.figure(
        "issue_workers2_ratio",
        median(ratios),
        also=lambda: report.sound,
        note=f"{min(ratios):.2f} to {max(ratios):.2f} on {len(cores)} cores shared with the load; "
        f"tree of {report.size} events {'intact' if report.sound else 'BROKEN'}",
    )
    run.book.detail("workers", {name: summary([each[name] for each in rounds]) for name in rounds[0]})
