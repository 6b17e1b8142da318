"""Shared by the ledger's tests: a clock that only a test moves, commands, a store that fails where it is told."""

import secrets
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker.ledger import Ledger, Tx
from broker.ledger.checkpoint import VerifierKey
from broker.ledger.proofs import Proofs
from broker.ledger.report import Report
from broker.ledger.sqlite import SqliteLedger
from broker.ledger.verify import verify_ledger

ORIGIN = "ledger.example/test"


class Clock:
    """Milliseconds, moved by the test."""

    def __init__(self, now: int = 1_700_000_000_000) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now


@dataclass(frozen=True)
class Note:
    """Append one event, with a text of the test's choice; the outcome is its position."""

    why: str = "because"

    def apply(self, tx: Tx) -> int:
        return tx.append("failed", {"jti": f"grt_{tx.epoch}_{tx.next_seq()}", "task": "tsk", "why": self.why})


@dataclass(frozen=True)
class Poison:
    """Write, change the head, share something, and then raise."""

    error: type[Exception] = RuntimeError

    def apply(self, tx: Tx) -> Any:
        Note("poison").apply(tx)
        tx.head.guard_version += 100
        tx.scratch["poison"] = True
        tx.execute("INSERT INTO texts (ref, salt, text) VALUES ('poison', ?, 'poison')", (b"salt",))
        raise self.error("poison")


@dataclass(frozen=True)
class Do:
    """Run a function of the transaction."""

    function: Callable[[Tx], Any]

    def apply(self, tx: Tx) -> Any:
        return self.function(tx)


@dataclass
class Fault:
    """Where a `faulty` connection fails: at the n-th statement from now, before or after it took effect."""

    at: int = 0  # 0: never
    after: bool = False
    code: int = sqlite3.SQLITE_IOERR
    statements: list[str] = field(default_factory=list)

    def hit(self, *, after: bool) -> None:
        if after is self.after and self.at and len(self.statements) == self.at:
            error = sqlite3.OperationalError("injected fault")
            error.sqlite_errorcode = self.code
            raise error


def faulty(fault: Fault) -> type[sqlite3.Connection]:
    """A connection type that fails as `fault` says."""

    class Faulty(sqlite3.Connection):
        def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
            return self._run(super().execute, sql, *args)

        def executemany(self, sql: str, *args: Any) -> sqlite3.Cursor:
            return self._run(super().executemany, sql, *args)

        def _run(self, statement: Callable[..., sqlite3.Cursor], sql: str, *args: Any) -> sqlite3.Cursor:
            fault.statements.append(sql)
            fault.hit(after=False)
            cursor = statement(sql, *args)
            fault.hit(after=True)
            return cursor

    return Faulty


class Made:
    """One ledger of a test, with its clock and checkpoint key."""

    error = sqlite3.Error
    echo_s = 0.0  # nobody tells late

    def __init__(self, path: Path) -> None:
        self.path, self.clock = path, Clock()
        self.key = Ed25519PrivateKey.generate()
        self.verifier_key = VerifierKey.of(ORIGIN, self.key)
        self._opened: list[SqliteLedger] = []
        SqliteLedger.create(path, now=self.clock, origin=ORIGIN)

    def open(self, **options: Any) -> SqliteLedger:
        """Another handle on the same file; all are closed with the test."""
        ledger = SqliteLedger.open(self.path, now=self.clock, **options)
        self._opened.append(ledger)
        return ledger

    def verify(self, **options: Any) -> Report:
        """An audit."""
        return verify_ledger(self.path, **options)

    def behind(self, sql: str, params: tuple[Any, ...] = ()) -> None:
        """Change the store behind the ledger's back."""
        with closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            connection.execute("PRAGMA ignore_check_constraints = ON")
            connection.execute(sql, params)

    def found(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows that a query past the ledger finds."""
        with closing(sqlite3.connect(self.path)) as connection:
            return connection.execute(sql).fetchall()

    def stored(self, sql: str) -> Any:
        """The one value that a query past the ledger finds."""
        with closing(sqlite3.connect(self.path)) as connection:
            return connection.execute(sql).fetchone()[0]

    @staticmethod
    def blob(data: bytes) -> str:
        """A literal."""
        return f"x'{data.hex()}'"

    def proofs(self, ledger: Ledger) -> Proofs:
        """The read side."""
        return Proofs(ledger=ledger, origin=ORIGIN, key=lambda: self.key)

    @contextmanager
    def copied(self) -> Iterator["Made"]:
        """A copy of the store, which nobody has open."""
        made = copy(self)
        made.path, made._opened = self.path.with_name(f"{secrets.token_hex(4)}.db"), []
        shutil.copyfile(self.path, made.path)
        yield made
        made.close()

    def close(self) -> None:
        """Close every handle."""
        while self._opened:
            self._opened.pop().close()


def count(ledger: Ledger, table: str) -> int:
    """Rows of a table."""
    with ledger.read() as reader:
        return int(reader.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
