"""The ledger in PostgreSQL: the writers of all brokers take turns on the head row, a batch each.

Reads are snapshots that lock nothing. A write that fails before its COMMIT was sent has done nothing. When the answer
to a COMMIT is lost, the outcome is looked up: PostgreSQL remembers what became of every transaction. While that cannot
be found out the callers are told so (`OutcomeUnknown`), and nothing more is written here until it is known.

Everything specific to PostgreSQL is in the `postgres*` modules; time is the database's.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import Any, Final, NoReturn, Self
from urllib.parse import urlsplit

import psycopg

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
    OutcomeUnknown,
)
from broker.ledger.heads import SELECT_HEAD, LastSeen, Seen, SnapshotReader, Stored, head_of, look
from broker.ledger.postgres_doubt import Doubt, Turn, state_of
from broker.ledger.postgres_link import Link, is_damage, is_missing_table, is_store_fault
from broker.ledger.postgres_puts import Key
from broker.ledger.postgres_readers import READ_S, Reach, Readers, patience_s
from broker.ledger.postgres_schema import create_schema, is_ledger, recognise, upgrade_schema
from broker.ledger.postgres_watch import CLOCK, StoreClock, Watch
from broker.ledger.transaction import Again, Poisoned, begin_history, run

TURN_TIMEOUT_S: Final = 1.0
WRITE_S: Final = 1.2
"""All of one batch up to its COMMIT. Short, as on SQLite, so that a kill behind it still hears in time."""
LOOK_UP_S: Final = 1.0
"""How long an unknown outcome is looked up before the callers hear that it is unknown."""
_SILENCE_S: Final = 2.0
_GOOD_FAITH: Final = 3
"""How often a batch may turn out to hold a proof that was spent before. The second time, others were just quicker."""
_CREATE_S: Final = 30.0

_TURN: Final = (
    # Ordinary writers queue behind one another, so that at most one of them is between a kill and the head.
    "BEGIN ISOLATION LEVEL READ COMMITTED; SELECT pg_advisory_xact_lock({lock}, 1);"
    " SELECT pg_advisory_xact_lock_shared({lock}, 2); " + SELECT_HEAD + " FOR UPDATE; " + CLOCK + ","
    " pg_current_xact_id()::text, pg_backend_pid()"
)
_PRIORITY_TURN: Final = (
    # While one waits here, PostgreSQL lets nobody else share the lock.
    "BEGIN ISOLATION LEVEL READ COMMITTED; SELECT pg_advisory_xact_lock({lock}, 2); "
    + SELECT_HEAD
    + " FOR UPDATE; "
    + CLOCK
    + ", pg_current_xact_id()::text, pg_backend_pid()"
)
_SNAPSHOT: Final = (
    "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY; "  # noqa: S608  (the number is ours)
    + SELECT_HEAD
    + "; SELECT seq, leaf FROM events WHERE seq = {size} - 1;"
    " SELECT seq, leaf FROM events WHERE seq = (SELECT size - 1 FROM head)"
)


class _Reader(SnapshotReader):
    """`broker.ledger.Reader` on PostgreSQL: no query takes longer than its caller waits."""

    __slots__ = ("_link",)

    def __init__(self, link: Link, head: Head) -> None:
        super().__init__(link, head)
        self._link = link

    def execute(self, sql: str, params: Sequence[Any] = ()) -> Cursor:
        self._link.within(patience_s())
        return super().execute(sql, params)


class PostgresLedger:
    """`broker.ledger.Ledger` on PostgreSQL. Made by `create` or `open`."""

    def __init__(
        self,
        *,
        connect: Callable[[], Link],
        first: Link,
        clock: Now | None,
        seen: Seen,
        origin: str,
        lock: int,
        now: int,
        write_s: float,
    ) -> None:
        """`first` is a connection at rest, `now` the database's clock a moment ago."""
        self.origin = origin
        self.concerns: Sequence[str] = ()
        self.synced_s = 0.0
        self._connect = connect
        self._clock = clock
        self._write_s = write_s
        self._turns = {True: _PRIORITY_TURN.format(lock=lock), False: _TURN.format(lock=lock)}
        self._notify = f"NOTIFY ledger_{lock & 0xFFFFFFFF}"
        self._seen = LastSeen(seen)
        self._writing = threading.Lock()  # one transaction at a time on the one writing connection
        self._writer: Link | None = None
        self._doubt: Doubt | None = None
        self._due: list[Command] = []  # to be written with the next batch
        self._reach = Reach()
        self._readers = Readers(connect, first=first)
        self._store_clock = StoreClock(now)
        self._watch = Watch(
            connect=connect,
            channel=self._notify.removeprefix("NOTIFY "),
            reach=self._reach,
            clock=self._store_clock,
        )

    @classmethod
    def create(cls, url: str, *, origin: str, clock: Now | None = None) -> None:
        """Make a new ledger whose checkpoints will begin with `origin`. Raises LedgerNotOpened if there is one."""
        with _administering(url) as link:
            create_schema(link, place_of(url))
            begin_history(link, now=clock() if clock else link.execute(CLOCK).fetchone()[0], origin=origin)

    @classmethod
    def upgrade(cls, url: str) -> tuple[int, int]:
        """Bring the schema up to date; its version before and after. Raises LedgerNotOpened when there is none."""
        with _administering(url) as link:
            return upgrade_schema(link, place_of(url))

    @classmethod
    def exists(cls, url: str) -> bool:
        """Whether there is a ledger. Raises LedgerUnavailable."""
        with _administering(url) as link:
            return is_ledger(link)

    @classmethod
    def open(
        cls,
        url: str,
        *,
        clock: Now | None = None,
        turn_timeout_s: float = TURN_TIMEOUT_S,
        write_s: float = WRITE_S,
    ) -> Self:
        """Open an existing ledger. `clock` replaces the database's, for tests.

        Raises LedgerNotOpened when there is none or its schema is not for this program, LedgerCorrupt when head and
        events do not belong together, LedgerUnavailable.
        """
        place = place_of(url)

        def connect() -> Link:
            return Link.connect(url, lock_ms=int(turn_timeout_s * 1000), idle_ms=int(_SILENCE_S * 1000))

        with ExitStack() as stack:
            try:
                link = stack.enter_context(closing(connect()))
                link.within(READ_S)
                link.script("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
                recognise(link, place)
                seen, origin = look(link)
                (lock,) = link.execute("SELECT 'head'::regclass::oid::int").fetchone()
                (now,) = link.execute(CLOCK).fetchone()
                concerns = link.concerns()
                link.commit()
            except psycopg.Error as error:
                raise _unreachable(error, place) from error
            stack.pop_all()  # from here on the ledger's `close` does it
            ledger = cls(
                connect=connect, first=link, clock=clock, seen=seen, origin=origin, lock=lock, now=now, write_s=write_s
            )
            ledger.concerns = concerns
            return ledger

    @property
    def head(self) -> Head:
        """See `broker.ledger.Ledger.head`."""
        return self._seen.now.head

    def commit(self, commands: Sequence[Command], *, priority: bool = False) -> list[Any]:
        """See `broker.ledger.Ledger.commit`."""
        with self._writing:
            self._refuse_for_now()
            try:
                self._settle_earlier()
                due = self._due
                outcomes = self._in_one_go([*due, *commands], priority=priority)
                self._due = []
                return outcomes[len(due) :]
            except LedgerStopped as error:
                raise self._seen.stop(error)  # noqa: B904  (it is the same error)
            except psycopg.Error as error:
                self._fail(error)

    @contextmanager
    def read(self) -> Iterator[_Reader]:
        """See `broker.ledger.Ledger.read`."""
        self._refuse_for_now()
        since = self._seen.now  # before the snapshot is taken, or a commit between the two would look like a roll-back
        link = None
        try:
            link, stored, leaves = self._snapshot(since)
            seen = self._seen.compare(link, since, stored, leaves)
            yield _Reader(link, seen.head)
            link.commit()
        except psycopg.Error as error:
            if not is_store_fault(error):
                raise
            self._fail(error)
        except LedgerCorrupt as error:
            raise self._seen.stop(error)  # noqa: B904  (it is the same error)
        finally:
            if link is not None:
                self._readers.give_back(link)

    def clock(self) -> int:
        """See `broker.ledger.Ledger.clock`."""
        return self._clock() if self._clock else self._store_clock()

    def data_version(self) -> int:
        """See `broker.ledger.Ledger.data_version`."""
        self._seen.refuse_if_stopped()
        return self._watch.version()

    def close(self) -> None:
        """Let go of all connections. Later calls raise."""
        self._watch.close()
        self._readers.close()
        with self._writing:
            if self._writer is not None:
                self._writer.close()
            self._writer = None
            self._seen.close()

    # --- Writing ------------------------------------------------------------------------------------------------------

    def _in_one_go(self, commands: Sequence[Command], *, priority: bool) -> list[Any]:
        """The whole batch with as few exchanges as can be; where that does not work out, one command at a time."""
        taken: set[Key] = set()
        with suppress(Poisoned):
            for _ in range(_GOOD_FAITH):
                with suppress(Again):
                    return self._transact(commands, priority=priority, isolate=False, taken=taken)
        return self._transact(commands, priority=priority, isolate=True, taken=taken)

    def _transact(self, commands: Sequence[Command], *, priority: bool, isolate: bool, taken: set[Key]) -> list[Any]:
        link, turn = self._take_turn(priority=priority)
        link.put_off(taken, eager=isolate)
        try:
            seen = self._seen.compare(link, self._seen.now, turn.stored)
            now = self._clock() if self._clock else turn.now
            outcome = run(link, seen, now, commands, isolate=isolate)
            if outcome.changed:
                self._commit(link, Doubt(turn, outcome, commands))
            else:
                link.script("ROLLBACK")
        except BaseException:
            self._undo(link)
            raise
        self._seen.remember(outcome.seen(seen))
        self._watch.bump()
        return outcome.results

    def _take_turn(self, *, priority: bool) -> tuple[Link, Turn]:
        """The writing connection, holding the head row. One that died while it was idle is replaced."""
        link = self._writer
        if link is None or link.ended():
            if link is not None:
                link.close()
            link = self._writer = self._connect()
        link.within(self._write_s)
        try:
            *_, head, (now, transaction, backend) = link.script(self._turns[priority])
            self._store_clock.set(now)
            self._reach.found()
            return link, Turn(head_of(head), now, transaction, backend)
        except BaseException as error:
            self._undo(link)
            self._stop_if_gone(error)
            raise

    def _commit(self, link: Link, doubt: Doubt) -> None:
        """COMMIT. When its answer is lost, look: what PostgreSQL did decides what is answered."""
        began = time.perf_counter()
        try:
            link.commit(self._notify)
            self.synced_s = time.perf_counter() - began
        except psycopg.Error:
            if link.at_rest:  # it answered, and undid the transaction
                raise
            self._doubt = doubt
            self._undo(link)
            if not self._resolve_doubt():
                raise

    def _resolve_doubt(self) -> bool:
        """Whether the transaction whose answer was lost is committed; False where there is none.

        Raises OutcomeUnknown while that cannot be found out.
        """
        doubt, deadline = self._doubt, time.monotonic() + LOOK_UP_S
        while doubt is not None:
            try:
                with closing(self._connect()) as link:
                    link.within(max(deadline - time.monotonic(), 0.05))
                    state = state_of(link, doubt)
                    if state != "in progress":
                        self._doubt = None
                        return state == "committed"
                pause = 0.01
            except psycopg.Error as error:
                if not is_store_fault(error):
                    raise
                pause = 0.1
            if time.monotonic() + pause > deadline:
                self._reach.lost()
                raise OutcomeUnknown("It is not known yet whether the ledger recorded this.")
            time.sleep(pause)
        return False

    def _settle_earlier(self) -> None:
        """An earlier transaction may still be on its way: what comes after it must not be written before it. If it is
        committed, its callers do not know: what must follow from that is written next.
        """
        doubt = self._doubt
        try:
            if self._resolve_doubt() and doubt is not None:
                self._due = doubt.unheard()
        except OutcomeUnknown as error:
            raise LedgerUnavailable("The outcome of an earlier write is still unknown.") from error

    def _undo(self, link: Link) -> None:
        """Roll back, or drop the connection, which does the same."""
        try:
            if link.in_transaction:
                link.within(READ_S)
                link.script("ROLLBACK")
            if link.at_rest:
                return
        except psycopg.Error:
            pass
        link.close()
        self._writer = None

    # --- Reading ------------------------------------------------------------------------------------------------------

    def _snapshot(self, since: Seen) -> tuple[Link, Stored, dict[int, bytes]]:
        """A connection inside a snapshot, and in it, all in one exchange: the head, and the leaves that show whether it
        continues `since`.
        """
        link = self._readers.take()
        try:
            link.within(patience_s())
            head, *leaves = link.script(_SNAPSHOT.format(size=since.head.size))
            return link, head_of(head), dict(row for row in leaves if row is not None)
        except BaseException as error:
            link.close()
            self._stop_if_gone(error)
            raise

    # --- Failing ------------------------------------------------------------------------------------------------------

    def _refuse_for_now(self) -> None:
        """Fail at once while the store has just been found out of reach: callers must not wait for it in a row."""
        self._seen.refuse_if_stopped()
        if not self._reach.worth_asking:
            raise LedgerUnavailable("The ledger cannot be used now.", internal="it was out of reach a moment ago")

    def _stop_if_gone(self, error: BaseException) -> None:
        if is_missing_table(error):
            raise self._seen.stop(LedgerShrunk("The ledger's tables were removed under us.")) from error

    def _fail(self, error: psycopg.Error) -> NoReturn:
        if is_damage(error):
            raise self._seen.stop(LedgerCorrupt("The ledger's database is damaged.", internal=str(error))) from error
        if error.sqlstate is None:
            self._reach.lost()
        raise LedgerUnavailable(
            "The ledger cannot be used now.", internal=f"{type(error).__name__}: {error}"
        ) from error


def place_of(url: str) -> str:
    """The URL without user, password and options: for people to read."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


@contextmanager
def _administering(url: str) -> Iterator[Link]:
    """A transaction for the few commands that change the schema."""
    try:
        with closing(Link.connect(url, lock_ms=5_000, idle_ms=30_000)) as link:
            link.within(_CREATE_S)
            link.script("BEGIN")
            yield link
            link.commit()
    except psycopg.Error as error:
        raise _unreachable(error, place_of(url)) from error


def _unreachable(error: psycopg.Error, place: str) -> Exception:
    if is_missing_table(error):
        return LedgerNotOpened(f"There is no ledger at {place}.", next="Create one: taskpass ledger create")
    return LedgerUnavailable(
        f"The ledger at {place} cannot be opened now.", internal=f"{type(error).__name__}: {error}"
    )
