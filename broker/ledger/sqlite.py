"""The ledger in one SQLite file: WAL, `synchronous=FULL`, the head re-read inside every write transaction.

Nothing that a write depends on is kept in memory, so several processes may share the file and an error of unknown
outcome needs no repair: the next transaction starts from what is stored. What this process has seen is remembered for
one purpose only, to notice that somebody rolled the file back, replaced or forked it under us; then this process stops.

Everything specific to SQLite is in the `sqlite*` modules and the migrations.
"""

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
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
from broker.ledger.events import parse
from broker.ledger.merkle import Frontier, leaf_hash
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
from broker.ledger.sqlite_tx import Poisoned, SqliteTx, Stored, apply_all, insert_head, leaf_at, read_head, store
from broker.ledger.turns import Turns, TurnTimeout

FORMAT: Final = 1
TURN_TIMEOUT_S: Final = 1.0
"""Short, so that a kill behind a batch that waits in vain still hears within three seconds that it is not durable."""
_IDLE_READERS: Final = 8


@dataclass(frozen=True, slots=True)
class _Seen:
    """The newest state that this process knows was committed."""

    head: Head
    frontier: bytes
    leaf: bytes  # of the last event


class _Reader:
    """`broker.ledger.Reader` on SQLite."""

    __slots__ = ("_connection", "_head")

    def __init__(self, connection: sqlite3.Connection, head: Head) -> None:
        self._connection, self._head = connection, head

    def head(self) -> Head:
        return copy(self._head)

    def execute(self, sql: str, params: Sequence[Any] = ()) -> Cursor:
        return self._connection.execute(sql, params)


class SqliteLedger:
    """`broker.ledger.Ledger` on SQLite. Made by `create` or `open`."""

    def __init__(
        self, *, path: Path, now: Now, connection: sqlite3.Connection, turns: Turns, seen: _Seen, origin: str
    ) -> None:
        self.path = path
        self.origin = origin
        self._now = now
        self._connection = connection
        self._turns = turns
        self._file = identity(path)
        self._writing = threading.Lock()  # one transaction at a time on the one writing connection
        self._sharing = threading.Lock()  # guards what follows, for moments only
        self._seen = seen
        self._stopped: LedgerStopped | None = None
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
                empty = Stored(Head(epoch=token_hex(4), size=0, time=0), b"")
                insert_head(connection, empty)
                tx = SqliteTx(connection, empty.head, now())
                tx.append("ledger.created", {"epoch": tx.epoch, "format": FORMAT, "origin": origin})
                store(connection, empty, tx)
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
        turn_timeout_s: float = TURN_TIMEOUT_S,
        connection_type: type[sqlite3.Connection] = sqlite3.Connection,
    ) -> Self:
        """Open an existing ledger, bringing its schema up to date. Recomputes nothing: that is `verify`'s job.

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
                seen, origin = _look(connection)
                connection.execute("COMMIT")
                ledger = cls(path=path, now=now, connection=connection, turns=turns, seen=seen, origin=origin)
            except (sqlite3.Error, OSError, TurnTimeout) as error:
                raise _opening_failed(error, path) from error
            stack.pop_all()  # from here on the ledger's `close` does it
            return ledger

    @property
    def head(self) -> Head:
        """The newest head that this process has seen."""
        return copy(self._seen.head)

    def commit(self, commands: Sequence[Command], *, priority: bool = False) -> list[Any]:
        """See `broker.ledger.Ledger.commit`."""
        with self._writing:
            self._refuse_if_stopped()
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
                raise self._stop(error)  # noqa: B904  (it is the same error)
            except (sqlite3.Error, OSError) as error:
                raise self._fault(error) from error

    @contextmanager
    def read(self) -> Iterator[_Reader]:
        """See `broker.ledger.Ledger.read`."""
        self._refuse_if_stopped()
        self._refuse_if_replaced()
        since = self._seen  # before the snapshot is taken, or a commit between the two would look like a roll-back
        connection = None
        try:
            with self._sharing:
                connection = self._idle.pop() if self._idle else None
            connection = connection or connect(self.path)
            connection.execute("BEGIN")
            seen = self._compare(connection, since)
            yield _Reader(connection, seen.head)
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            if not is_store_fault(error):
                raise
            raise self._fault(error) from error
        finally:
            self._give_back(connection)

    def data_version(self) -> int:
        """See `broker.ledger.Ledger.data_version`."""
        self._refuse_if_stopped()
        try:
            with self._sharing:
                (version,) = self._watcher.execute("PRAGMA data_version").fetchone()
        except sqlite3.Error as error:
            raise self._fault(error) from error
        return int(version)

    def close(self) -> None:
        """Let go of the file. Later calls raise."""
        with self._writing, self._sharing:
            for connection in (*self._idle, self._watcher, self._connection):  # the last one tidies up, if it may write
                connection.close()
            self._idle.clear()
            self._stopped = self._stopped or LedgerStopped("The ledger is closed.")
            self._turns.close()

    def _transact(self, commands: Sequence[Command], *, isolate: bool) -> list[Any]:
        connection = self._connection
        if connection.in_transaction:  # what a failed roll-back left
            connection.execute("ROLLBACK")
        connection.execute("BEGIN IMMEDIATE")
        try:
            seen = self._compare(connection, self._seen)
            changes = connection.total_changes
            tx = SqliteTx(connection, seen.head, self._now())
            results = [tx.apply_alone(command) for command in commands] if isolate else apply_all(tx, commands)
            before = Stored(seen.head, seen.frontier)
            if tx.staged or tx.head != seen.head or connection.total_changes != changes:
                after = store(connection, before, tx)
            else:
                after = before
            self._finish(before, after)
        except BaseException:
            with suppress(sqlite3.Error):
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            raise
        self._remember(_Seen(after.head, after.frontier, tx.staged[-1][2] if tx.staged else seen.leaf))
        return results

    def _finish(self, before: Stored, after: Stored) -> None:
        """COMMIT. When it fails, look: what is stored decides what is answered."""
        try:
            self._connection.execute("COMMIT")
        except sqlite3.Error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            if after == before or read_head(self._connection) != after:
                raise

    def _compare(self, connection: sqlite3.Connection, since: _Seen) -> _Seen:
        """Read the head and refuse one that does not continue what this process has seen. Raises LedgerShrunk."""
        head, frontier = read_head(connection)
        old = since.head
        if head.epoch != old.epoch or head.size < old.size or head.time < old.time:
            raise self._stop(
                LedgerShrunk(f"The ledger went from {old.epoch}:{old.size} to {head.epoch}:{head.size} under us.")
            )
        if head.size == old.size:
            same, leaf = frontier == since.frontier, since.leaf
        else:
            same, leaf = leaf_at(connection, old.size - 1) == since.leaf, leaf_at(connection, head.size - 1)
        if not same:
            raise self._stop(LedgerShrunk(f"The ledger's history before position {old.size} was exchanged under us."))
        seen = _Seen(head, frontier, leaf)
        self._remember(seen)
        return seen

    def _remember(self, seen: _Seen) -> None:
        with self._sharing:
            if (seen.head.size, seen.head.time) >= (self._seen.head.size, self._seen.head.time):
                self._seen = seen

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
            if len(self._idle) < _IDLE_READERS and self._stopped is None:
                self._idle.append(connection)
                return
        connection.close()

    def _refuse_if_stopped(self) -> None:
        if self._stopped is not None:
            raise self._stopped.with_traceback(None)

    def _refuse_if_replaced(self) -> None:
        """A file moved over ours leaves us with one that nobody else can see."""
        try:
            same = identity(self.path) == self._file
        except OSError as error:
            raise self._fault(error) from error
        if not same:
            raise self._stop(LedgerShrunk("The ledger's file was replaced or removed under us."))

    def _stop(self, why: LedgerStopped) -> LedgerStopped:
        self._stopped = why
        return why

    def _fault(self, error: sqlite3.Error | OSError) -> LedgerUnavailable:
        if is_damage(error):
            return self._stop(LedgerCorrupt("The ledger's file is damaged.", internal=str(error)))
        return LedgerUnavailable("The ledger cannot be used now.", internal=f"{type(error).__name__}: {error}")


def _look(connection: sqlite3.Connection) -> tuple[_Seen, str]:
    """The state at opening, and the origin. Raises LedgerCorrupt when the head does not fit the events' ends."""
    head, frontier = read_head(connection)
    last, first = (
        connection.execute(f"SELECT seq, bytes, leaf FROM events ORDER BY seq {way} LIMIT 1").fetchone()  # noqa: S608
        for way in ("DESC", "ASC")
    )
    try:
        Frontier.decode(head.size, frontier)
        genesis = parse(first[1])
        origin = genesis.body["origin"]
        whole = last[0] == head.size - 1 and last[2] == leaf_hash(last[1]) and genesis.type == "ledger.created"
    except (ValueError, TypeError, LookupError) as error:
        raise LedgerCorrupt("The ledger's head does not fit its events.", internal=str(error)) from error
    if not whole or not isinstance(origin, str):
        raise LedgerCorrupt(f"The ledger's head says {head.size} events, and the last one is not that.")
    return _Seen(head, frontier, last[2]), origin


def _opening_failed(error: Exception, path: Path) -> Exception:
    if is_damage(error):
        return LedgerNotOpened(f"{path} is not a ledger, or is damaged.", internal=str(error))
    return LedgerUnavailable(f"The ledger at {path} cannot be opened now.", internal=f"{type(error).__name__}: {error}")
