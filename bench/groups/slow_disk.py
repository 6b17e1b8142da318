"""What a slow disk costs: 4 ms added to every fsync and fdatasync, against this machine's disk as it is.

Beside: a second broker of ours on the same core, in paired bursts. On: everything. The delay comes from a small library
that is loaded before the C library's functions; SQLite's own calls go through it.
"""

import shutil
import subprocess
from pathlib import Path
from statistics import median

from bench.groups.tokens import summary
from bench.load import Target
from bench.run import Run
from bench.serving import serving

DELAY_US = 4_000
_SOURCE = Path(__file__).parents[1] / "slow_fsync.c"


def measure(run: Run) -> None:
    """`issue_slow_disk_ratio`."""
    library = compiled(run.scratch)
    if library is None:
        run.book.skipped(["issue_slow_disk_ratio"], "no C compiler (cc) to build the delay with")
        return
    slow = {"LD_PRELOAD": str(library), "TASKPASS_BENCH_FSYNC_US": str(DELAY_US)}
    plain, delayed = run.site(), run.site()
    with serving(plain, core=run.server_core) as one, serving(delayed, core=run.server_core, environment=slow) as other:
        targets = [
            Target(name, f"{each.site.issuer}/oauth2/token", each.site.issuer, each.pids)
            for name, each in (("this disk", one), ("slow disk", other))
        ]
        run.warm(targets)
        rounds = run.paired(targets, connections=64, rounds=run.times(8, 3), seconds=run.times(3, 2))
        idle = run.paired(targets, connections=1, rounds=1, seconds=2)
    ratios = [each["slow disk"].rate / each["this disk"].rate for each in rounds]
    alone = idle[0]["slow disk"].p50
    if alone < DELAY_US / 1000:
        raise AssertionError(f"the delay is not in force: a token took {alone:.1f} ms")
    run.book.figure("issue_slow_disk_ratio", median(ratios), note=f"{min(ratios):.2f} to {max(ratios):.2f}")
    run.book.detail("slow disk", {name: summary([each[name] for each in rounds]) for name in rounds[0]})


def compiled(directory: Path) -> Path | None:
    """The library, or None without a compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    library = directory / "slow_fsync.so"
    try:
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(_SOURCE), "-ldl"],
            check=True,
            capture_output=True,
        )
    except subprocess.CalledProcessError:
        return None
    return library
