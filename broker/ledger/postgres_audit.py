"""A PostgreSQL ledger as an audit reads it: one snapshot, its tables compared with those that the migrations make."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, Final

import psycopg

from broker.ledger import Cursor
from broker.ledger.postgres_link import Link
from broker.ledger.postgres_schema import expected_schema, newest, recognise, schema_of

_WHOLE_AUDIT_S: Final = 24 * 3_600.0
_CONNECT: Final = {"lock_ms": 5_000, "idle_ms": 0}
_ADDED: Final = frozenset(
    {"column", "index", "constraint"}
)  # by a newer program's migration; it adds nothing that acts


class PostgresStore:
    """`broker.ledger.verify.Store` on a database. `place` is what people call it."""

    fault: type[Exception] = psycopg.Error

    def __init__(self, url: str, place: str) -> None:
        self._url, self._place = url, place

    def warnings(self) -> Iterator[tuple[str, str, str]]:
        """None: the server keeps its log to itself."""
        return iter(())

    @contextmanager
    def opened(self) -> Iterator["DatabaseSnapshot"]:
        """A snapshot that locks nothing."""
        with closing(Link.connect(self._url, **_CONNECT)) as link:
            link.within(_WHOLE_AUDIT_S)
            link.script("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            version = recognise(link, self._place)
            with closing(Link.connect(self._url, **_CONNECT)) as apart:
                expected = expected_schema(apart, version)
            yield DatabaseSnapshot(link, version, expected)


class DatabaseSnapshot:
    """`broker.ledger.verify.Snapshot` on PostgreSQL."""

    def __init__(self, link: Link, version: int, expected: set[tuple[str, str, str]]) -> None:
        self._link, self._version, self._expected = link, version, expected

    def structure(self) -> Iterator[tuple[str, str, str]]:
        """See `broker.ledger.verify.Snapshot`."""
        found, added = schema_of(self._link, "head"), set()
        if self._version > newest():
            added = {each for each in found - self._expected if each[0] in _ADDED}
            yield "schema_newer", "schema", f"version {self._version}; this program knows {newest()}"
        for name in sorted((found ^ self._expected) - added):
            yield "schema_changed", "schema", " ".join(name[:2])

    def execute(self, sql: str, params: Sequence[Any] = ()) -> Cursor:
        """See `broker.ledger.verify.Snapshot`."""
        return self._link.execute(sql, params)

    def rows(self, sql: str) -> Iterator[Any]:
        """See `broker.ledger.verify.Snapshot`."""
        return self._link.rows(sql)
