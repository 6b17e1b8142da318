"""The ledger in one SQLite file: WAL, `synchronous=FULL`, the head re-read inside every write transaction.

Nothing that a write depends on is kept in memory, so several processes may share the file and an error of unknown
outcome needs no repair: the next transaction starts from what is stored. What this process has seen is remembered for
one purpose only, to notice that somebody rolled the file back, replaced or forked it under us; then this process stops.

Everything specific to SQLite is in the `sqlite*` modules and the migrations.
"""

import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Self

from broker.ledger import (
    Command,
    Cursor,
    Head,
    LedgerCorrupt,
    LedgerNotOpened,
    LedgerShrunk,
    LedgerStopped,
    LedgerUnavailable,
    Now,
)
from broker.ledger.heads import LastSeen, Seen, SnapshotReader, look, read_head
from broker.ledger.sqlite_file import (
    bring_up_to_date,
    connect,
    create_file,
    identity,
    is_damage,
    is_store_fault,
    migrate,
    set_up,
    sync_directory,
)
from broker.ledger.sqlite_wal import WalKeeper
from broker.ledger.transaction import Outcome, Poisoned, StagedEvent, begin_history, run
from broker.ledger.turns import Turns, TurnTimeout

TURN_TIMEOUT_S: Final = 1.0
"""Short, so that a kill behind a batch that waits in vain still hears within three seconds that it is not durable."""
_IDLE_READERS: Final = 8


class _Session:
    """`broker.ledger.transaction.Session` on SQLite."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @property
    def total_changes(self) -> int:
        return self._connection.total_changes

    def execute(self, sql: str, params: Sequence[Any] = ()) -> Cursor:
        return self._connection.execute(sql, params)

    def put(self, sql: str, params: Sequence[Any]) -> None:
        self._connection.execute(sql, params)

    def claim(self, sql: str, params: Sequence[Any]) -> bool:
        return self._connection.execute(sql, params).rowcount == 1

    def settle(self) -> None:
        """Nothing is ever put off: a statement costs microseconds here."""

    def discard(self) -> None:
        """Nothing to forget."""

    def insert_events(self, events: Sequence[StagedEvent]) -> None:
        self._connection.executemany("INSERT INTO events (seq, bytes, leaf) VALUES (?, ?, ?)", events)

    def check(self) -> None:
        if not self._connection.in_transaction:
            raise LedgerUnavailable("The ledger cannot be used now.", internal="the transaction is gone")

    def is_store_fault(self, error: BaseException) -> bool:
        return is_store_fault(error)


class SqliteLedger:
    """`broker.ledger.Ledger` on SQLite. Made by `create` or `open`."""

    def __init__(
        self,
        *,
        path: Path,
        now: Now,
        connection: sqlite3.Connection,
        turns: Turns,
        seen: Seen,
        origin: str,
        keeper: WalKeeper | None,
    ) -> None:
        self.path = path
        self.origin = origin
        self.concerns: Sequence[str] = ()  # what matters is set here, with every connection
        self.synced_s = 0.0
        self._now = now
        self._connection = connection
        self._turns = turns
        self._keeper = keeper
        self._file = identity(path)
        self._writing = threading.Lock()  # one transaction at a time on the one writing connection
        self._seen = LastSeen(seen)
        self._sharing = threading.Lock()  # guards what follows, for moments only
        self._idle: list[sqlite3.Connection] = []
        self._watcher = connect(path)

    @classmethod
    def create(cls, path: Path, *, now: Now, origin: str) -> None:
        """Make a new ledger whose checkpoints will begin with `origin`. Raises LedgerNotOpened if the path is taken."""
        create_file(path)
        try:
            with closing(connect(path, writing=True)) as connection:
                set_up(connection)
                connection.execute("BEGIN IMMEDIATE")
                migrate(connection)
                begin_history(_Session(connection), now=now(), origin=origin)
                connection.execute("COMMIT")
            sync_directory(path.parent)
        except BaseException as error:
            path.unlink()
            if isinstance(error, sqlite3.Error):
                raise _opening_failed(error, path) from error
            raise

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        now: Now,
        keeps: bool = False,
        turn_timeout_s: float = TURN_TIMEOUT_S,
        connection_type: type[sqlite3.Connection] = sqlite3.Connection,
    ) -> Self:
        """Open an existing ledger, bringing its schema up to date. Recomputes nothing: that is `verify`'s job. With
        `keeps`, this process looks after the write-ahead log of all.

        Raises LedgerNotOpened when there is none, when it is something else or of a newer version, and LedgerCorrupt
        when head and events do not belong together.
        """
        if not path.is_file():
            raise LedgerNotOpened(f"There is no ledger at {path}.", next="Create one with `taskpass init`.")
        with ExitStack() as stack:
            try:
                turns = stack.enter_context(closing(Turns(path, timeout_s=turn_timeout_s)))
                connection = stack.enter_context(closing(connect(path, writing=True, connection_type=connection_type)))
                with turns.taken(priority=False):
                    bring_up_to_date(connection, path)
                connection.execute("BEGIN")
                seen, origin = look(connection)
                connection.execute("COMMIT")
                keeper = WalKeeper(path) if keeps else None
                ledger = cls(
                    path=path, now=now, connection=connection, turns=turns, seen=seen, origin=origin, keeper=keeper
                )
            except (sqlite3.Error, OSError, TurnTimeout) as error:
                raise _opening_failed(error, path) from error
            stack.pop_all()  # from here on the ledger's `close` does it
            return ledger

    @property
    def head(self) -> Head:
        """See `broker.ledger.Ledger.head`."""
        return self._seen.now.head

    def commit(self, commands: Sequence[Command], *, priority: bool = False) -> list[Any]:
        """See `broker.ledger.Ledger.commit`."""
        with self._writing:
            self._seen.refuse_if_stopped()
            try:
                with self._turns.taken(priority=priority):
                    self._refuse_if_replaced()
                    try:
                        return self._transact(commands, isolate=False)
                    except Poisoned:
                        return self._transact(commands, isolate=True)
            except TurnTimeout as error:
                raise LedgerUnavailable("Another process keeps the ledger busy.") from error
            except LedgerStopped as error:
                raise self._seen.stop(error)  # noqa: B904  (it is the same error)
            except (sqlite3.Error, OSError) as error:
                raise self._fault(error) from error

    @contextmanager
    def read(self) -> Iterator[SnapshotReader]:
        """See `broker.ledger.Ledger.read`."""
        self._seen.refuse_if_stopped()
        self._refuse_if_replaced()
        since = self._seen.now  # before the snapshot is taken, or a commit between the two would look like a roll-back
        connection = None
        try:
            with self._sharing:
                connection = self._idle.pop() if self._idle else None
            connection = connection or connect(self.path)
            connection.execute("BEGIN")
            seen = self._seen.compare(connection, since)
            yield SnapshotReader(connection, seen.head)
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            if not is_store_fault(error):
                raise
            raise self._fault(error) from error
        finally:
            self._give_back(connection)

    def clock(self) -> int:
        """See `broker.ledger.Ledger.clock`."""
        return self._now()

    def data_version(self) -> int:
        """See `broker.ledger.Ledger.data_version`."""
        self._seen.refuse_if_stopped()
        try:
            with self._sharing:
                (version,) = self._watcher.execute("PRAGMA data_version").fetchone()
        except sqlite3.Error as error:
            raise self._fault(error) from error
        return int(version)

    def close(self) -> None:
        """Let go of the file. Later calls raise."""
        if self._keeper is not None:
            self._keeper.close()
        with self._writing, self._sharing:
            for connection in (*self._idle, self._watcher, self._connection):  # the last one tidies up, if it may write
                connection.close()
            self._idle.clear()
            self._seen.close()
            self._turns.close()

    def _transact(self, commands: Sequence[Command], *, isolate: bool) -> list[Any]:
        connection = self._connection
        if connection.in_transaction:  # what a failed roll-back left
            connection.execute("ROLLBACK")
        connection.execute("BEGIN IMMEDIATE")
        try:
            seen = self._seen.compare(connection, self._seen.now)
            outcome = run(_Session(connection), seen, self._now(), commands, isolate=isolate)
            self._finish(outcome)
        except BaseException:
            with suppress(sqlite3.Error):
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            raise
        self._seen.remember(outcome.seen(seen))
        return outcome.results

    def _finish(self, outcome: Outcome) -> None:
        """COMMIT. When it fails, look: what is stored decides what is answered."""
        began = time.perf_counter()
        try:
            self._connection.execute("COMMIT")
            self.synced_s = time.perf_counter() - began
        except sqlite3.Error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            if not outcome.changed or read_head(self._connection) != outcome.after:
                raise

    def _give_back(self, connection: sqlite3.Connection | None) -> None:
        if connection is None:
            return
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            connection.close()
            return
        with self._sharing:
            if len(self._idle) < _IDLE_READERS and not self._seen.stopped:
                self._idle.append(connection)
                return
        connection.close()

    def _refuse_if_replaced(self) -> None:
        """A file moved over ours leaves us with one that nobody else can see."""
        try:
            same = identity(self.path) == self._file
        except OSError as error:
            raise self._fault(error) from error
        if not same:
            raise self._seen.stop(LedgerShrunk("The ledger's file was replaced or removed under us."))

    def _fault(self, error: sqlite3.Error | OSError) -> LedgerUnavailable:
        if is_damage(error):
            return self._seen.stop(LedgerCorrupt("The ledger's file is damaged.", internal=str(error)))
        return LedgerUnavailable("The ledger cannot be used now.", internal=f"{type(error).__name__}: {error}")


def _opening_failed(error: Exception, path: Path) -> Exception:
    if is_damage(error):
        return LedgerNotOpened(f"{path} is not a ledger, or is damaged.", internal=str(error))
    return LedgerUnavailable(f"The ledger at {path} cannot be opened now.", internal=f"{type(error).__name__}: {error}")
