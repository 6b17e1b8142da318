"""A ledger on a throwaway PostgreSQL server."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

import psycopg
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker.ledger import Ledger
from broker.ledger.checkpoint import VerifierKey
from broker.ledger.postgres import PostgresLedger
from broker.ledger.postgres_audit import PostgresStore
from broker.ledger.proofs import Proofs
from broker.ledger.report import Report
from broker.ledger.verify import verify_store
from tests.ledger.kit import ORIGIN, Clock
from tests.postgres import Server


class PostgresMade:
    """One ledger of a test in a database of its own, with its clock and checkpoint key."""

    error = psycopg.Error
    echo_s = 0.5  # one look of its own

    def __init__(self, server: Server) -> None:
        self.clock = Clock()
        self.server, self.database = server, server.new_database()
        self.url = server.url(self.database)
        self.key = Ed25519PrivateKey.generate()
        self.verifier_key = VerifierKey.of(ORIGIN, self.key)
        self._opened: list[PostgresLedger] = []
        PostgresLedger.create(self.url, clock=self.clock, origin=ORIGIN)

    def open(self, **options: Any) -> PostgresLedger:
        """Another handle on the same ledger; all are closed with the test."""
        ledger = PostgresLedger.open(**{"url": self.url, "clock": self.clock} | options)
        self._opened.append(ledger)
        return ledger

    def verify(self, **options: Any) -> Report:
        """An audit."""
        return verify_store(PostgresStore(self.url, "the test's database"), **options)

    def behind(self, sql: str) -> None:
        """Change the store behind the ledger's back."""
        self.server.run(sql, self.database)

    def stored(self, sql: str) -> Any:
        """The one value that a query past the ledger finds."""
        return self.server.run(sql, self.database)[0][0]

    def found(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows that a query past the ledger finds."""
        return self.server.run(sql, self.database)

    @staticmethod
    def blob(data: bytes) -> str:
        """A literal."""
        return f"'\\x{data.hex()}'"

    def proofs(self, ledger: Ledger) -> Proofs:
        """The read side."""
        return Proofs(ledger=ledger, origin=ORIGIN, key=lambda: self.key)

    @contextmanager
    def copied(self) -> Iterator["PostgresMade"]:
        """A copy of the store, which nobody has open."""
        made = copy(self)
        made.database = self.server.new_database(like=self.database)
        made.url, made._opened = self.server.url(made.database), []
        try:
            yield made
        finally:
            made.close()
            self.server.run(f"DROP DATABASE {made.database}")

    def close(self) -> None:
        """Close every handle."""
        while self._opened:
            self._opened.pop().close()
