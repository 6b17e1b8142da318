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

_SCHEMA_OF: Final = r"""
    WITH here AS (SELECT relnamespace AS space FROM pg_class WHERE oid = CAST(CAST(? AS text) AS regclass)),
         ours AS (SELECT c.* FROM pg_class c JOIN here ON c.relnamespace = here.space WHERE c.relkind NOT IN ('i', 't'))
    SELECT 'column', c.relname || '.' || a.attname,
           concat_ws(' ', c.relkind, format_type(a.atttypid, a.atttypmod), a.attnotnull, l.collname,
                     pg_get_expr(d.adbin, d.adrelid), a.attgenerated, a.attidentity)
      FROM ours c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
      LEFT JOIN pg_collation l ON l.oid = a.attcollation
      LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
    UNION ALL
    SELECT 'index', x.relname, regexp_replace(pg_get_indexdef(x.oid), ' ON \S+ ', ' ON ')
      FROM ours c JOIN pg_index i ON i.indrelid = c.oid JOIN pg_class x ON x.oid = i.indexrelid
    UNION ALL
    SELECT 'constraint', c.relname || '.' || n.conname, pg_get_constraintdef(n.oid)
      FROM ours c JOIN pg_constraint n ON n.conrelid = c.oid
    UNION ALL
    SELECT 'trigger', c.relname || '.' || t.tgname, concat(pg_get_triggerdef(t.oid), t.tgenabled)
      FROM ours c JOIN pg_trigger t ON t.tgrelid = c.oid WHERE NOT t.tgisinternal
    UNION ALL
    SELECT 'rule', c.relname || '.' || r.rulename, pg_get_ruledef(r.oid)
      FROM ours c JOIN pg_rewrite r ON r.ev_class = c.oid
    UNION ALL
    SELECT 'policy', c.relname || '.' || p.polname, p.polcmd::text FROM ours c JOIN pg_policy p ON p.polrelid = c.oid
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


def schema_of(link: Link, table: str) -> set[tuple[str, str, str]]:
    """(kind, name, definition) of everything in the schema in which `table` is found first: columns, indexes,
    constraints, triggers, rules and row policies, written without that schema's name.
    """
    rows = link.execute(_SCHEMA_OF, (table,)).fetchall()
    return {(kind, name, definition) for kind, name, definition in rows}


def expected_schema(link: Link, version: int) -> set[tuple[str, str, str]]:
    """What `schema_of` gives for an untouched ledger of this version. Makes temporary tables, which leave with it."""
    link.within(30)
    link.script("BEGIN; SET LOCAL search_path = pg_temp")
    link.execute(_BOOK)
    migrate(link, version=0, up_to=version)
    found = schema_of(link, "head")
    link.script("ROLLBACK")
    return found


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
