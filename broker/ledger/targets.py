"""Empty stores that a whole ledger is imported into. Until the import is finished, nobody can open what is there."""

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

from broker.ledger import Cursor, LedgerNotOpened, Now
from broker.ledger.commands.custody import Arrive
from broker.ledger.heads import COPY, INSERT_HEAD, Seen, Stored, row_of
from broker.ledger.sqlite import SqliteLedger
from broker.ledger.sqlite_audit import FileSnapshot
from broker.ledger.sqlite_file import connect, create_file, migrate, set_up, sync_directory
from broker.ledger.verify import Snapshot


class Filling(Snapshot, Protocol):
    """A store while it is filled; what has been inserted can be asked for."""

    def insert(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Several rows at once. Raises the target's fault for rows that the schema does not take."""

    def write_head(self, stored: Stored, last_leaf: bytes) -> None:
        """The head row, after everything else."""

    def finish(self, kind: str, root: bytes) -> None:
        """Record the arrival: from then on it only remains to make it visible."""


class Target(Protocol):
    """Where a ledger is to go."""

    fault: type[Exception]
    """What inserting may raise."""

    def filling(self) -> AbstractContextManager[Filling]:
        """An empty store. It becomes one that can be opened when the context ends without an exception.

        Raises LedgerNotOpened when a ledger or something else is there, LedgerUnavailable.
        """


class FillingBase:
    """What both stores share."""

    seen: Seen

    def execute(self, sql: str, params: Sequence[Any] = ()) -> Cursor:
        """See `Filling`."""
        raise NotImplementedError

    def write_head(self, stored: Stored, last_leaf: bytes) -> None:
        """See `Filling`."""
        self.seen = Seen(stored.head, stored.frontier, last_leaf)
        self.execute(INSERT_HEAD, row_of(stored))

    def unseal(self, kind: str) -> None:
        """A moved ledger is in use again here; a copy is not yet."""
        self.execute("UPDATE head SET sealed = ?", (COPY if kind == "copy" else "",))
        self.seen.head.sealed = COPY if kind == "copy" else ""


class SqliteTarget:
    """`Target` at a path where no file is. It is filled beside it, under the name `<path>.importing`."""

    fault: type[Exception] = sqlite3.Error

    def __init__(self, path: Path, *, now: Now) -> None:
        self._path, self._now = path, now

    @contextmanager
    def filling(self) -> Iterator[Filling]:
        """See `Target`."""
        if self._path.exists():
            raise LedgerNotOpened(f"{self._path} exists already; a ledger is never imported over something else.")
        part = self._path.with_name(self._path.name + ".importing")
        for suffix in ("", "-journal", "-wal", "-shm"):  # what an interrupted import left
            part.with_name(part.name + suffix).unlink(missing_ok=True)
        create_file(part)
        with closing(connect(part, writing=True)) as connection:
            connection.execute("PRAGMA foreign_keys = OFF")
            connection.execute("BEGIN IMMEDIATE")
            migrate(connection)
            filling = _SqliteFilling(connection)
            yield filling
            connection.execute("COMMIT")
            set_up(connection)
        if filling.arrival is not None:
            with closing(SqliteLedger.open(part, now=self._now)) as ledger:
                (arrived,) = ledger.commit([filling.arrival])
            if isinstance(arrived, Exception):
                raise arrived
        self._show(part)

    def _show(self, part: Path) -> None:
        descriptor = os.open(part, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        try:
            os.link(part, self._path)  # unlike a rename, it never replaces anything
        except FileExistsError as error:
            raise LedgerNotOpened(f"{self._path} exists already.") from error
        for leftover in self._path.parent.glob(part.name + "*"):
            leftover.unlink()
        sync_directory(self._path.parent)


class _SqliteFilling(FileSnapshot, FillingBase):
    def __init__(self, connection: sqlite3.Connection) -> None:
        super().__init__(connection)
        self.arrival: Arrive | None = None

    def insert(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self._connection.executemany(insert_of(table, columns), rows)

    def finish(self, kind: str, root: bytes) -> None:
        self.unseal(kind)
        self.arrival = Arrive(kind, root)


def insert_of(table: str, columns: Sequence[str]) -> str:
    """The portable statement that inserts a row."""
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"  # noqa: S608
