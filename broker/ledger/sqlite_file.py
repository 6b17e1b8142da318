"""One SQLite file as a container: connecting, recognising, creating and migrating it, and reading its errors."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from broker.ledger import LedgerNotOpened, LedgerUnavailable
from broker.ledger.schema import migrations, statements

APPLICATION_ID: Final = 0x5461736B  # tells our files from other SQLite databases
_LONGEST_LOG: Final = 20_000
"""Pages of write-ahead log at which a commit moves them itself: `sqlite_wal` does it long before."""
_BUSY_S: Final = 0.4  # only strangers hold SQLite's own lock: we take turns before it

# Primary result codes that say nothing about the statement, only about the store.
_STORE_FAULTS: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
    }
)


def connect(
    path: Path,
    *,
    writing: bool = False,
    immutable: bool = False,
    connection_type: type[sqlite3.Connection] = sqlite3.Connection,
) -> sqlite3.Connection:
    """A connection to an existing file, in autocommit mode. `immutable`: nobody writes it. Raises sqlite3.Error."""
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={'rw' if writing else 'ro'}{'&immutable=1' if immutable else ''}",
        uri=True,
        timeout=_BUSY_S,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
        factory=connection_type,
    )
    try:
        for pragma in ("trusted_schema = OFF", "cell_size_check = ON", "temp_store = MEMORY"):
            connection.execute(f"PRAGMA {pragma}")
        if writing:
            # Written out although FULL is SQLite's default: NORMAL would lose answered commits with the power.
            for pragma in ("synchronous = FULL", "fullfsync = ON", "checkpoint_fullfsync = ON", "foreign_keys = ON"):
                connection.execute(f"PRAGMA {pragma}")
            connection.execute(f"PRAGMA wal_autocheckpoint = {_LONGEST_LOG}")
    except BaseException:
        connection.close()
        raise
    return connection


def create_file(path: Path) -> None:
    """An empty file that only we can read. Raises LedgerNotOpened if the path is taken."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except FileExistsError as error:
        raise LedgerNotOpened(f"{path} exists already; a ledger is never created over something else.") from error
    except OSError as error:
        raise LedgerNotOpened(f"A ledger cannot be created at {path}: {error.strerror}.") from error


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def identity(path: Path) -> tuple[int, int] | None:
    """Which file stands at the path now; None if there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def set_up(connection: sqlite3.Connection) -> None:
    """Mark a new, empty file as ours and give it its write-ahead log."""
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute("PRAGMA journal_mode = WAL")


def recognise(connection: sqlite3.Connection, path: Path) -> int:
    """The schema version of a ledger file. Raises LedgerNotOpened for anything else, and for a newer version."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID or version < 1:
        raise LedgerNotOpened(f"{path} is not a ledger, or its creation did not finish.")
    newest = migrations()[-1][0]
    if version > newest:
        raise LedgerNotOpened(f"{path} has version {version}; this program knows versions up to {newest}.")
    return int(version)


def bring_up_to_date(connection: sqlite3.Connection, path: Path) -> None:
    """Apply the migrations that a recognised ledger lacks, all or none."""
    newest = migrations()[-1][0]
    if recognise(connection, path) < newest:
        connection.execute("BEGIN IMMEDIATE")
        migrate(connection)
        connection.execute("COMMIT")
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise LedgerNotOpened(f"{path} lies where SQLite cannot keep a write-ahead log.")


def upgrade_file(path: Path) -> tuple[int, int]:
    """The schema version of a ledger file, before and after it was brought up to date. Raises LedgerNotOpened."""
    with closing(connect(path, writing=True)) as connection:
        before = recognise(connection, path)
        bring_up_to_date(connection, path)
        return before, recognise(connection, path)


def migrate(connection: sqlite3.Connection, *, up_to: int | None = None) -> None:
    """Bring the schema to the newest version, or to `up_to`, inside the caller's transaction."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    for number, script in migrations():
        if number > version and (up_to is None or number <= up_to):
            for statement in statements(script):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {number}")


def schema_of(connection: sqlite3.Connection) -> set[tuple[str, str, str]]:
    """(type, name, definition) of every table, index, trigger and view."""
    rows = connection.execute("SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\'")
    return {(str(kind), str(name), str(sql)) for kind, name, sql in rows}


def expected_schema(version: int) -> set[tuple[str, str, str]]:
    """What `schema_of` gives for an untouched ledger of this schema version."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        migrate(connection, up_to=version)
        return schema_of(connection)


def result_code(error: BaseException) -> int | None:
    """SQLite's primary result code, if the error has one."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else int(code) & 0xFF


def is_store_fault(error: BaseException) -> bool:
    """Whether the store failed, and not what was asked of it."""
    return isinstance(error, LedgerUnavailable) or result_code(error) in _STORE_FAULTS


def is_damage(error: BaseException) -> bool:
    """Whether what SQLite read was not a sound database."""
    return result_code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
