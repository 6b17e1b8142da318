"""The schema's migrations, shared by all stores: numbered SQL files in SQLite's dialect, each applied once, in order.

A migration only adds (tables, indexes, columns with a default), so that the program before it still runs on the result.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from importlib import resources


def migrations() -> list[tuple[int, str]]:
    """(number, script) of each `NNNN_name.sql`, in order."""
    folder = resources.files("broker.ledger") / "migrations"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".sql")), key=lambda file: file.name)
    return [(int(file.name.split("_")[0]), file.read_text(encoding="utf-8")) for file in files]


def statements(script: str) -> Iterator[str]:
    """The script's statements one by one: what runs a whole script commits the transaction around it."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def tables() -> dict[str, list[str]]:
    """Every table that the migrations make, and its columns in order."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        for _, script in migrations():
            connection.executescript(script)
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: [row[1] for row in connection.execute(f"PRAGMA table_info({name})")] for name in sorted(names)}
