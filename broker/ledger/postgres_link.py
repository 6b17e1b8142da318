"""One connection to PostgreSQL: portable statements in, its errors sorted, and no wait without an end."""

import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from ipaddress import ip_address
from typing import Any, Final, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.pq import TransactionStatus

from broker.ledger import Cursor, LedgerUnavailable
from broker.ledger.postgres_puts import Key, Puts
from broker.ledger.transaction import StagedEvent

_CONNECT_S: Final = 2  # libpq takes less for two seconds anyway

# Classes of SQLSTATE (and single states) that say nothing about the statement, only about the store.
_STORE_FAULTS: Final = ("08", "28", "3D", "40", "53", "55", "57", "58", "F0", "XX", "25006", "25P03")
_DAMAGE: Final = frozenset({"XX001", "XX002"})
_TABLE_MISSING: Final = "42P01"

# `on` unless the server is set to more than that: an answered commit must survive the loss of power.
_SET_UP: Final = """
    SET client_encoding = 'UTF8';
    SELECT set_config('synchronous_commit', 'on', false)
      WHERE current_setting('synchronous_commit') IN ('off', 'local');
    SET lock_timeout = {lock_ms};
    SET idle_in_transaction_session_timeout = {idle_ms}
"""
_INSERT_EVENTS: Final = (
    "INSERT INTO events (seq, bytes, leaf) SELECT * FROM unnest(%b::bigint[], %b::bytea[], %b::bytea[])"
)
_T = TypeVar("_T")


class _Patient(psycopg.Connection[tuple[Any, ...]]):
    """A connection on which every wait for the server ends at `deadline` (monotonic seconds)."""

    deadline: float = float("inf")

    def wait(self, gen: PQGen[_T], interval: float = 0.1, timeout: float | None = None) -> _T:
        left = max(self.deadline - time.monotonic(), 0.001)
        return super().wait(gen, interval, left if timeout is None else min(timeout, left))


class Link:
    """`broker.ledger.transaction.Session` on PostgreSQL, in autocommit mode outside of `begin` and `commit`.

    Raises psycopg.Error. After a wait that was given up nothing is known of the connection: close it.
    """

    def __init__(self, connection: _Patient) -> None:
        self._connection = connection
        self._puts = Puts(self, taken=set(), eager=True)
        self.total_changes = 0

    @classmethod
    def connect(cls, url: str, *, lock_ms: int, idle_ms: int, seconds: float = _CONNECT_S) -> "Link":
        """A new connection. `idle_ms` is how long the server bears with a silent transaction of ours before it undoes
        it: a broker that stands still must not keep the others waiting.
        """
        try:
            connection = _Patient.connect(url, autocommit=True, connect_timeout=_CONNECT_S, prepare_threshold=2)
        except psycopg.ProgrammingError as error:  # its text may repeat the URL, and with it the password
            raise psycopg.OperationalError("the URL of the ledger is not one of PostgreSQL") from error.with_traceback(
                None
            )
        link = cls(connection)
        try:
            link.within(seconds)
            link.script(_SET_UP.format(lock_ms=lock_ms, idle_ms=idle_ms))
        except BaseException:
            link.close()
            raise
        return link

    def concerns(self) -> list[str]:
        """What endangers a ledger at the other end of this connection, in sentences for people."""
        found = []
        settings = "SELECT name FROM pg_settings WHERE name IN ('fsync', 'full_page_writes') AND setting = 'off'"
        for (name,) in self.run(settings).fetchall():
            found.append(
                f"PostgreSQL runs with {name}=off: after a power failure the ledger may be damaged or shorter."
            )
        address = self._connection.info.hostaddr
        if address and not ip_address(address).is_loopback and not self._connection.pgconn.ssl_in_use:
            found.append(
                "The connection to PostgreSQL crosses a network without TLS: set sslmode=verify-full in its URL."
            )
        return found

    def within(self, seconds: float) -> None:
        """From now on everything together has this long; then psycopg.OperationalError is raised."""
        self._connection.deadline = time.monotonic() + seconds

    @property
    def in_transaction(self) -> bool:
        """Whether one is open, be it a failed one."""
        return self._connection.info.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR)

    def ended(self) -> bool:
        """Whether the server has let go of an idle connection. Asks nobody, so it costs next to nothing."""
        try:
            for _ in range(2):  # what the server said last comes before the end itself
                self._connection.pgconn.consume_input()
        except psycopg.OperationalError:
            return True
        return not self.at_rest

    @property
    def at_rest(self) -> bool:
        """Whether the server has answered everything, and no transaction is open."""
        return self._connection.info.transaction_status is TransactionStatus.IDLE

    def put_off(self, taken: set[Key], *, eager: bool) -> None:
        """A transaction begins. `taken` are the claims that are known to be another's; it may grow. See `Puts`."""
        self._puts = Puts(self, taken=taken, eager=eager)

    def execute(self, sql: str, params: Sequence[Any] = ()) -> Cursor:
        """Run one statement, after those that were put off and concern it."""
        self._puts.before(sql)
        return self.run(sql, params)

    def run(self, sql: str, params: Sequence[Any] = ()) -> Cursor:
        """Run one statement."""
        try:
            cursor = self._connection.execute(_translated(sql), params)
        except psycopg.DataError:
            if not sql.startswith("SELECT") or (found := _findable(params)) == list(params):
                raise
            cursor = self._connection.execute(_translated(sql), found)
        if cursor.rowcount > 0 and not sql.startswith("SELECT"):
            self.total_changes += cursor.rowcount
        return cursor

    def run_each(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        """Run one statement for each of `rows`, in one exchange."""
        cursor = self._connection.cursor()
        cursor.executemany(_translated(sql), rows)
        self.total_changes += max(cursor.rowcount, 0)

    def put(self, sql: str, params: Sequence[Any]) -> None:
        """See `broker.ledger.Tx`."""
        self._puts.put(sql, params)

    def claim(self, sql: str, params: Sequence[Any]) -> bool:
        """See `broker.ledger.Tx`."""
        return self._puts.claim(sql, params)

    def settle(self) -> None:
        """Do what was put off. Raises Again when a claim turns out to be another's."""
        self._puts.settle()

    def discard(self) -> None:
        """Forget what was put off."""
        self._puts.discard()

    def insert_events(self, events: Sequence[StagedEvent]) -> None:
        """Store events, all in one statement."""
        seqs, data, leaves = map(list, zip(*events, strict=True))
        self._connection.execute(_INSERT_EVENTS, (seqs, data, leaves))
        self.total_changes += len(seqs)

    def script(self, sql: str) -> list[Any]:
        """Run several statements in one exchange; the first row, or None, of each that answers with rows."""
        cursor = self._connection.execute(sql.encode())
        rows = []
        while True:
            if cursor.description is not None:
                rows.append(cursor.fetchone())
            if not cursor.nextset():
                return rows

    def commit(self, last: str = "SELECT") -> None:
        """COMMIT, after the statement `last`. Raises when the server rolled back instead, as it does after an error."""
        cursor = self._connection.execute(f"{last}; COMMIT".encode())
        while cursor.nextset():
            pass
        if cursor.statusmessage != "COMMIT":
            raise psycopg.InternalError("the server undid the transaction")

    def rows(self, sql: str, *, at_once: int = 2_000) -> Iterator[tuple[Any, ...]]:
        """The rows of a large answer, in pieces. Inside a transaction only."""
        with self._connection.cursor(name="rows") as cursor:
            cursor.itersize = at_once
            yield from cursor.execute(_translated(sql))

    def notified(self, seconds: float) -> bool:
        """Whether a notification came within this time."""
        self.within(seconds + 1)
        return len(list(self._connection.notifies(timeout=seconds, stop_after=1))) > 0

    def check(self) -> None:
        """Raises when the transaction is gone, or a statement of it failed: the server undoes everything since."""
        status = self._connection.info.transaction_status
        if status is TransactionStatus.INERROR:
            raise psycopg.errors.InFailedSqlTransaction("a statement failed, and the command went on")
        if status is not TransactionStatus.INTRANS:
            raise LedgerUnavailable("The ledger cannot be used now.", internal="the transaction is gone")

    def is_store_fault(self, error: BaseException) -> bool:
        """See `is_store_fault`."""
        return is_store_fault(error)

    def interrupt(self) -> None:
        """End whatever another thread waits for on it; there it raises."""
        with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(self._connection.fileno())) as same:
            same.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let go of it, whatever state it is in."""
        self._connection.close()


def is_store_fault(error: BaseException) -> bool:
    """Whether the store failed, or the way to it, and not what was asked of it."""
    if isinstance(error, psycopg.Error):
        state = error.sqlstate
        return isinstance(error, psycopg.OperationalError) if state is None else state.startswith(_STORE_FAULTS)
    return isinstance(error, LedgerUnavailable)


def is_damage(error: BaseException) -> bool:
    """Whether what PostgreSQL read was not sound."""
    return isinstance(error, psycopg.Error) and error.sqlstate in _DAMAGE


def is_missing_table(error: BaseException) -> bool:
    """Whether a table is not there."""
    return isinstance(error, psycopg.Error) and error.sqlstate == _TABLE_MISSING


def _findable(params: Sequence[Any]) -> list[Any]:
    """The parameters of a query, with every U+0000 as U+FFFF: no text of ours holds either, so neither is found."""
    return [param.replace("\0", "\uffff") if isinstance(param, str) else param for param in params]


@lru_cache(1_024)
def _translated(sql: str) -> bytes:
    """The statement with psycopg's placeholders. No portable statement has a `?` or `%s` of its own."""
    return sql.replace("%", "%%").replace("?", "%s").encode()
