"""A database that a whole ledger is imported into, in one transaction."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, Final

import psycopg

from broker.ledger import LedgerUnavailable, Now
from broker.ledger.commands.custody import Arrive
from broker.ledger.postgres_audit import DatabaseSnapshot
from broker.ledger.postgres_link import Link
from broker.ledger.postgres_schema import create_schema, expected_schema, newest
from broker.ledger.postgres_watch import CLOCK
from broker.ledger.targets import Filling, FillingBase, insert_of
from broker.ledger.transaction import run

_WHOLE_IMPORT_S: Final = 24 * 3_600.0


class PostgresTarget:
    """`Target` in a database without a ledger: one transaction, which shows everything at once or nothing."""

    fault: type[Exception] = psycopg.Error

    def __init__(self, url: str, place: str, *, clock: Now | None = None) -> None:
        self._url, self._place, self._clock = url, place, clock

    @contextmanager
    def filling(self) -> Iterator[Filling]:
        """See `Target`."""
        try:
            with closing(Link.connect(self._url, lock_ms=5_000, idle_ms=0)) as link:
                link.within(_WHOLE_IMPORT_S)
                link.script("BEGIN")
                create_schema(link, self._place)
                with closing(Link.connect(self._url, lock_ms=5_000, idle_ms=0)) as apart:
                    expected = expected_schema(apart, newest())
                yield _PostgresFilling(link, expected, self._clock)
                link.commit()
        except psycopg.Error as error:
            raise LedgerUnavailable(
                f"The ledger could not be imported to {self._place}; nothing of it is there.",
                internal=f"{type(error).__name__}: {error}",
            ) from error


class _PostgresFilling(DatabaseSnapshot, FillingBase):
    def __init__(self, link: Link, expected: set[tuple[str, str, str]], clock: Now | None) -> None:
        super().__init__(link, newest(), expected)
        self._clock = clock

    def insert(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self._link.run_each(insert_of(table, columns), rows)

    def finish(self, kind: str, root: bytes) -> None:
        self.unseal(kind)
        now = self._clock() if self._clock else self._link.execute(CLOCK).fetchone()[0]
        run(self._link, self.seen, now, [Arrive(kind, root)], isolate=False)
