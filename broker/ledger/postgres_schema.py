"""The ledger's schema on PostgreSQL: the shared migrations translated, and which programs may run on which version.

A schema that is upgraded first serves the brokers of the version before too, because migrations only add. So opening
never migrates: `taskpass db upgrade` does, once, and then the brokers are replaced one by one.
"""

import re
from typing import Final

import psycopg

from broker.ledger import LedgerNotOpened
from broker.ledger.postgres_link import Link
from broker.ledger.schema import migrations, statements

_UPGRADE: Final = "Run `taskpass db upgrade` with the newer program, then replace the brokers."
_BOOK: Final = """
    CREATE TABLE ledger_schema (
      one         BIGINT PRIMARY KEY CHECK (one = 1),
      version     BIGINT NOT NULL,
      serves_from BIGINT NOT NULL -- the oldest program, by its newest migration, that may run on this version
    )
"""

# The whole difference between the dialects, as far as the migrations go.
_DIALECT: Final = (
    (re.compile(r"\)\s*STRICT(, WITHOUT ROWID)?\s*;"), ");"),
    (re.compile(r"\bINTEGER\b"), "BIGINT"),
    (re.compile(r"\bBLOB\b"), "BYTEA"),
    (re.compile(r"\bTEXT\b"), 'TEXT COLLATE "C"'),  # ordered by bytes, as SQLite does, wherever the database stands
)


def newest() -> int:
    """The schema version that this program makes."""
    return migrations()[-1][0]


def translated(statement: str) -> str:
    """One statement of a migration in PostgreSQL's dialect."""
    for pattern, replacement in _DIALECT:
        statement = pattern.sub(replacement, statement)
    return statement


def migrate(link: Link, *, version: int, up_to: int) -> None:
    """Apply the migrations above `version`, inside the caller's transaction, and keep no book of it."""
    for number, script in migrations():
        if version < number <= up_to:
            for statement in statements(script):
                link.execute(translated(statement))


def create_schema(link: Link, place: str) -> None:
    """All tables, inside the caller's transaction. Raises LedgerNotOpened if there are tables of these names."""
    for name in ("ledger_schema", "head", "events"):
        if link.execute("SELECT to_regclass(?)", (name,)).fetchone() != (None,):
            raise LedgerNotOpened(f"{place} has a ledger or another table {name!r} already; a ledger needs its own.")
    link.execute(_BOOK)
    migrate(link, version=0, up_to=newest())
    link.execute("INSERT INTO ledger_schema (one, version, serves_from) VALUES (1, ?, ?)", _row(newest()))


def is_ledger(link: Link) -> bool:
    """Whether there is one."""
    return bool(link.execute("SELECT to_regclass('ledger_schema')").fetchone() != (None,))


def recognise(link: Link, place: str) -> int:
    """The version of a schema that this program may run on. Raises LedgerNotOpened for any other."""
    version, serves_from = _book(link, place)
    if version < newest():
        raise LedgerNotOpened(f"{place} has version {version}; this program needs {newest()}.", next=_UPGRADE)
    if serves_from > newest():
        raise LedgerNotOpened(
            f"{place} has version {version}; this program knows versions up to {newest()}.",
            next="Run a program of that version, or of the one before it.",
        )
    return version


def upgrade_schema(link: Link, place: str) -> tuple[int, int]:
    """Apply what is missing, inside the caller's transaction; the version before and after. Raises LedgerNotOpened."""
    before, _ = _book(link, place)
    if before < newest():
        link.execute("SELECT one FROM head FOR UPDATE")  # our turn: nobody writes meanwhile
        migrate(link, version=before, up_to=newest())
        link.execute("UPDATE ledger_schema SET (version, serves_from) = (?, ?)", _row(newest()))
    return before, max(before, newest())


def _row(version: int) -> tuple[int, int]:
    return version, version - 1


def _book(link: Link, place: str) -> tuple[int, int]:
    try:
        row = link.execute("SELECT version, serves_from FROM ledger_schema").fetchone()
    except psycopg.errors.UndefinedTable as error:
        raise LedgerNotOpened(f"There is no ledger at {place}.", next="Create one: taskpass ledger create") from error
    if row is None:
        raise LedgerNotOpened(f"{place} is not a ledger, or is damaged.")
    return int(row[0]), int(row[1])
