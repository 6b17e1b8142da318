"""`python -m bench [group ...] [--quick]`: measure, print the table, write bench/out/latest.json.

Groups: see `--help`. Two names are not groups: `report` fills docs/performance.md from what was measured last, and
`soak` runs the half-hour one.
"""

import argparse
import importlib
import sys
import tempfile
import time
from pathlib import Path

from bench import machine
from bench.assertions import assertions
from bench.figures import FIGURES, Book, line
from bench.load import wrk
from bench.run import Run

OUT = Path(__file__).parent / "out"
GROUPS = {
    "tokens": "tokens per second and latency beside a peer",
    "policies": "1,000 policies against 10",
    "workers": "two workers on one file against one",
    "slow_disk": "4 ms added to every fsync",
    "memory": "a worker's memory after 100,000 tokens",
    "kills": "from a kill to the last verifier that refuses",
    "kill_scale": "killing 100,000 live tokens against 10",
    "verification": "the SDK's verification, first and again",
    "ledger": "a ledger of a million events",
    "cli": "a token from a cold command",
    "secret_postgres": "a PostgreSQL login against the bare statements",
    "secret_vault": "a lease of a database login against Vault's own",
    "secret_kill": "killing an agent with 1,200 live secrets",
    "steps": "the cost of each step of the pipeline",
    "postgres": "PostgreSQL against SQLite, and several brokers on one",
    "redis": "from a kill to the last verifier at another broker, with Redis gone",
    "curves": "how cost grows",
}
BY_DEFAULT = [name for name in GROUPS if name != "curves"]


def main() -> int:
    """The command."""
    known = "\n".join(f"  {name:14} {text}" for name, text in GROUPS.items())
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure Taskpass.",
        epilog=f"groups (all but curves by default):\n{known}\n  soak           half an hour at 70 % of capacity, "
        "a kill every second\n  report         fill docs/performance.md from the last measurements",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("group", nargs="*", choices=[*GROUPS, "soak", "report", []], metavar="group")
    parser.add_argument("--quick", action="store_true", help="short bursts, few rounds: to try the suite out")
    parser.add_argument("--minutes", type=float, default=30, help="length of the soak")
    arguments = parser.parse_args()
    groups = arguments.group or BY_DEFAULT
    if groups == ["report"]:
        from bench.report import write

        write(Book(OUT))
        return 0
    started = time.monotonic()
    book = Book(OUT / "quick" if arguments.quick else OUT)  # what is quick never passes for a measurement
    book.detail("machine", about := machine.described())
    book.detail("when", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()))
    print("\n".join(f"{name}: {value}" for name, value in about.items()))
    print(f"load generator: {'wrk' if wrk() else 'our own (skipped: wrk is not installed)'}\n")
    with tempfile.TemporaryDirectory(prefix="taskpass-bench-") as directory, assertions() as signers:
        for group in groups:
            print(f"{group}: {GROUPS.get(group, 'half an hour under load')}", flush=True)
            run = Run(Path(directory), OUT, book, signers, arguments.quick, arguments.minutes)
            importlib.import_module(f"bench.groups.{group}").measure(run)
    print(f"\nAll figures, as of the last time each was measured ({time.monotonic() - started:.0f} s for this run):")
    for name in FIGURES:
        if name in book.figures:
            print(line(name, book.figures[name]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
