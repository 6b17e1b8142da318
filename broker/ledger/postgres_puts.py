"""Writes that a transaction on PostgreSQL puts off: one statement for all rows of a table, not one exchange for each.

A proof is claimed in good faith: it counts as unspent until its row is written with the others. When the database
then says that some were spent before, the batch is run again from the beginning, knowing which. Honest callers never
cause that, and whoever does makes a batch cost twice as much, once.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, Protocol

import orjson

from broker.ledger import Cursor
from broker.ledger.transaction import Again

_WORD: Final = re.compile(r"\w+")
_TARGET: Final = re.compile(r"(?:INSERT INTO|UPDATE|DELETE FROM) (\w+)")
_PLAIN_INSERT: Final = re.compile(r"INSERT INTO (\w+) \(([\w, ]+)\) VALUES \([?, ]+\)( ON CONFLICT DO NOTHING)?")

Key = tuple[str, Any]
"""A claim: its statement, and the first column of its row."""


class Runs(Protocol):
    """The connection, as this module uses it."""

    def run(self, sql: str, params: Sequence[Any]) -> Cursor:
        """Run one statement, now."""

    def run_each(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        """Run one statement for each of `rows`, in one exchange."""


class Puts:
    """What one transaction has put off. With `eager` nothing is: for telling apart who in a batch failed."""

    def __init__(self, link: Runs, *, taken: set[Key], eager: bool) -> None:
        self._link, self._taken, self._eager = link, taken, eager
        self._waiting: dict[str, list[Sequence[Any]]] = {}  # statement -> parameters, in the order of the statements
        self._claimed: dict[str, dict[Any, None]] = {}  # of the statements that wait
        self._won: set[Key] = set()

    def put(self, sql: str, params: Sequence[Any]) -> None:
        """Put a write off, behind those that wait."""
        if self._eager:
            self._link.run(sql, params)
            return
        rows = self._waiting.get(sql)
        if rows is None:
            self.before(sql)
            rows = self._waiting[sql] = []
        rows.append(params)

    def claim(self, sql: str, params: Sequence[Any]) -> bool:
        """Put an insertion off that may find its row there, and say that it will not."""
        if self._eager:
            return self._link.run(sql, params).rowcount == 1
        key = (sql, params[0])
        if key in self._won or key in self._taken:
            return False
        self._won.add(key)
        self.put(sql, params)
        self._claimed.setdefault(sql, {})[params[0]] = None
        return True

    def before(self, sql: str) -> None:
        """Settle what waits, if `sql` looks at one of its tables or changes what it looks at."""
        if self._waiting and _concerns(sql, tuple(self._waiting)):
            self.settle()

    def settle(self) -> None:
        """Write everything that waits. Raises Again when a claim turns out to be another's."""
        while self._waiting:
            sql, rows = next(iter(self._waiting.items()))
            del self._waiting[sql]
            claimed = self._claimed.pop(sql, None)
            bulk = _in_bulk(sql)
            if bulk is None:
                self._link.run_each(sql, rows)
                continue
            statement, columns = bulk
            content = orjson.dumps([dict(zip(columns, row, strict=True)) for row in rows], default=_hex).decode()
            if claimed is None:
                self._link.run(statement, (content,))
                continue
            found = {row[0] for row in self._link.run(f"{statement} RETURNING {columns[0]}", (content,)).fetchall()}
            if len(found) < len(claimed):
                self._taken.update((sql, key) for key in claimed if key not in found)
                raise Again

    def discard(self) -> None:
        """Forget what waits: its command is being undone."""
        self._waiting.clear()
        self._claimed.clear()


def _hex(value: object) -> str:
    """Bytes, as PostgreSQL reads them from a text."""
    if isinstance(value, bytes):
        return f"\\x{value.hex()}"
    raise TypeError(f"{type(value).__name__} is no value of a column")


@lru_cache(256)
def _words(sql: str) -> frozenset[str]:
    return frozenset(_WORD.findall(sql))


@lru_cache(256)
def _target(sql: str) -> str:
    found = _TARGET.match(sql)
    if found is None:
        raise ValueError(f"not a write that can be put off: {sql}")
    return found[1]


@lru_cache(1_024)
def _concerns(sql: str, waiting: tuple[str, ...]) -> bool:
    """Whether `sql` names a table that a waiting statement changes, or changes one that a waiting statement names."""
    target = _TARGET.match(sql)
    return any(
        each != sql and (_target(each) in _words(sql) or (target is not None and target[1] in _words(each)))
        for each in waiting
    )


@lru_cache(256)
def _in_bulk(sql: str) -> tuple[str, tuple[str, ...]] | None:
    """A plain INSERT as one for any number of rows, in a JSON text, and the names of its columns."""
    found = _PLAIN_INSERT.fullmatch(sql)
    if found is None:
        return None
    table, columns, unless = found[1], found[2], found[3] or ""
    rows = f"json_populate_recordset(CAST(NULL AS {table}), CAST(? AS json))"
    bulk = f"INSERT INTO {table} ({columns}) SELECT {columns} FROM {rows}{unless}"  # noqa: S608  (of our constants)
    return bulk, tuple(columns.split(", "))
