"""A SQLite ledger as an audit reads it: read-only, the evidence left as it is."""

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from broker.ledger import Cursor, LedgerNotOpened
from broker.ledger.sqlite_file import connect, expected_schema, recognise, schema_of
from broker.ledger.wal import unreadable_frames


class SqliteStore:
    """`broker.ledger.verify.Store` on a file."""

    fault: type[Exception] = sqlite3.Error

    def __init__(self, path: Path) -> None:
        self._path = path

    def warnings(self) -> Iterator[tuple[str, str, str]]:
        """A write-ahead log with frames that cannot be read."""
        wal = self._path.with_name(self._path.name + "-wal")
        if unreadable_frames(wal) and (frames := unreadable_frames(wal)):  # twice: not just caught while being written
            yield "wal_unreadable", "write-ahead log", f"{frames} frames"

    @contextmanager
    def opened(self) -> Iterator["FileSnapshot"]:
        """A read-only snapshot: a log without its index is read from a copy."""
        path = self._path
        if not path.is_file():
            raise LedgerNotOpened(f"There is no ledger at {path}.")
        wal, index = (path.with_name(path.name + suffix) for suffix in ("-wal", "-shm"))
        with ExitStack() as stack:
            if index.exists() or not wal.exists() or wal.stat().st_size == 0:
                connection = connect(path, immutable=not index.exists())
            else:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="taskpass-verify-")))
                for source in (path, wal):
                    shutil.copyfile(source, folder / source.name)
                connection = connect(folder / path.name)
            stack.enter_context(closing(connection))
            recognise(connection, path)
            connection.execute("BEGIN")
            yield FileSnapshot(connection)


class FileSnapshot:
    """`broker.ledger.verify.Snapshot` on SQLite."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def structure(self) -> Iterator[tuple[str, str, str]]:
        """See `broker.ledger.verify.Snapshot`."""
        for (problem,) in self._connection.execute("PRAGMA integrity_check(20)"):
            if problem != "ok":
                yield "file_damaged", "file", str(problem)
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        for name in sorted(schema_of(self._connection) ^ expected_schema(version)):
            yield "schema_changed", "schema", " ".join(name[:2])

    def execute(self, sql: str, params: Sequence[Any] = ()) -> Cursor:
        """See `broker.ledger.verify.Snapshot`."""
        return self._connection.execute(sql, params)

    def rows(self, sql: str) -> Iterator[Any]:
        """See `broker.ledger.verify.Snapshot`."""
        return iter(self._connection.execute(sql))
