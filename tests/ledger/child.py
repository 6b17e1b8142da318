"""Processes that the tests start on one ledger file. What each writes to its standard output was acknowledged."""

import os
import signal
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

from broker.ledger.sqlite import SqliteLedger
from tests.ledger.kit import Note


class Killed(sqlite3.Connection):
    """Dies at the n-th statement from the first commit on: before it, or right after it took effect."""

    at = 0
    after = False
    count = 0

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
        return self._run(super().execute, sql, *args)

    def executemany(self, sql: str, *args: Any) -> sqlite3.Cursor:
        return self._run(super().executemany, sql, *args)

    def _run(self, statement: Any, sql: str, *args: Any) -> sqlite3.Cursor:
        type(self).count += 1
        die = self.count == self.at
        if die and not self.after:
            os.kill(os.getpid(), signal.SIGKILL)
        cursor = statement(sql, *args)
        if die:
            os.kill(os.getpid(), signal.SIGKILL)
        return cursor


def now() -> int:
    return time.time_ns() // 1_000_000


def acknowledge(positions: list[int]) -> None:
    """One write per batch, so that a kill cannot tear a line."""
    os.write(1, b"".join(b"%d\n" % seq for seq in positions))


def write(path: Path, *, batches: int, size: int) -> None:
    """Commit so many batches, or until killed."""
    ledger = SqliteLedger.open(path, now=now)
    for _ in range(batches):
        acknowledge(ledger.commit([Note(str(os.getpid()))] * size))
    ledger.close()


def die(path: Path, *, at: int, after: bool) -> None:
    """Commit twice; the second is killed at its statement `at`."""
    ledger = SqliteLedger.open(path, now=now, connection_type=Killed)
    acknowledge(ledger.commit([Note("first")] * 300))
    Killed.count, Killed.at, Killed.after = 0, at, after
    acknowledge(ledger.commit([Note("second")] * 300))
    os.write(1, b"clean\n")


def hold(path: Path) -> None:
    """Take the turn and keep it until killed."""
    ledger = SqliteLedger.open(path, now=now)
    with ledger._turns.taken(priority=False):
        os.write(1, b"held\n")
        time.sleep(60)


if __name__ == "__main__":
    what, where, *rest = sys.argv[1:]
    if what == "write":
        write(Path(where), batches=int(rest[0]), size=int(rest[1]))
    elif what == "die":
        die(Path(where), at=int(rest[0]), after=rest[1] == "after")
    else:
        hold(Path(where))
