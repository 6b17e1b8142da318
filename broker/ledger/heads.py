"""The head row, and what a process remembers of it: whether the ledger under it still is the one that it knows.

Nothing that a write depends on is kept in memory. What was seen is remembered for one purpose only, to notice that
somebody rolled the store back, replaced or forked it under us; then this process stops.
"""

import threading
from collections.abc import Mapping, Sequence
from copy import copy
from operator import attrgetter
from typing import Any, Final, NamedTuple, Protocol

from broker.ledger import Cursor, Head, LedgerCorrupt, LedgerMoved, LedgerShrunk, LedgerStopped
from broker.ledger.events import parse
from broker.ledger.merkle import Frontier, leaf_hash

MOVED: Final = "moved"
"""`Head.sealed` of a ledger that goes on elsewhere: every process on it stops, and none can start."""
COPY: Final = "copy"
"""`Head.sealed` of what was imported from a copy: it serves only after the procedure for a restored ledger."""

_FIELDS: Final = tuple(Head.__dataclass_fields__)  # the columns have the same names, in the same order
_VALUES: Final = attrgetter(*_FIELDS)
_COLUMNS: Final = ", ".join((*_FIELDS, "frontier"))
_PLACES: Final = ", ".join("?" * (len(_FIELDS) + 1))
SELECT_HEAD: Final = f"SELECT {_COLUMNS} FROM head"  # noqa: S608
UPDATE_HEAD: Final = f"UPDATE head SET ({_COLUMNS}) = ({_PLACES})"  # noqa: S608
INSERT_HEAD: Final = f"INSERT INTO head (one, {_COLUMNS}) VALUES (1, {_PLACES})"  # noqa: S608


class Queries(Protocol):
    """Anything that answers portable queries: a connection, a reader."""

    def execute(self, sql: str, params: Sequence[Any] = ..., /) -> Cursor:
        """Run one query with `?` placeholders."""


class SnapshotReader:
    """`broker.ledger.Reader` on anything that answers queries from one snapshot, of which this is the head."""

    __slots__ = ("_head", "_queries")

    def __init__(self, queries: Queries, head: Head) -> None:
        self._queries, self._head = queries, head

    def head(self) -> Head:
        """See `broker.ledger.Reader`."""
        return copy(self._head)

    def execute(self, sql: str, params: Sequence[Any] = ()) -> Cursor:
        """See `broker.ledger.Reader`."""
        return self._queries.execute(sql, params)


class Stored(NamedTuple):
    """The head row as read in one transaction."""

    head: Head
    frontier: bytes


class Seen(NamedTuple):
    """A committed state of the ledger: enough to tell whether a later one continues it."""

    head: Head
    frontier: bytes
    leaf: bytes  # of the last event


def _age(head: Head) -> tuple[int, ...]:
    """Compares heads of one history: none of these ever goes back, and a commit need not change the first ones."""
    return head.size, head.time, head.guard_version, head.floor, head.archived


class LastSeen:
    """The newest state that this process has seen, and whether it had to stop. Thread-safe."""

    def __init__(self, seen: Seen) -> None:
        self._seen = seen
        self._stopped: LedgerStopped | None = None
        self._lock = threading.Lock()

    @property
    def now(self) -> Seen:
        """The newest state."""
        return self._seen

    def remember(self, seen: Seen) -> None:
        """Take note of a committed state, unless a newer one is known."""
        with self._lock:
            if _age(seen.head) >= _age(self._seen.head):
                self._seen = seen

    def compare(
        self,
        queries: Queries,
        since: Seen,
        stored: Stored | None = None,
        leaves: Mapping[int, bytes] | None = None,
    ) -> Seen:
        """Read the head, unless it has been (`stored`, and with it the `leaves` of the last event of `since` and of the
        last of all), and refuse one that does not continue `since`.

        `since` is `now` as it was before the snapshot was taken: a commit between the two must not look like a
        roll-back. Raises LedgerShrunk, LedgerMoved, and LedgerCorrupt when there is no head.
        """
        head, frontier = stored or read_head(queries)
        old = since.head
        if head.sealed == MOVED:
            raise self.stop(LedgerMoved("This ledger was exported, to go on elsewhere: it is not used here any more."))
        if head.epoch != old.epoch or head.size < old.size or head.time < old.time:
            raise self.stop(
                LedgerShrunk(f"The ledger went from {old.epoch}:{old.size} to {head.epoch}:{head.size} under us.")
            )
        if head.size == old.size:
            same, leaf = frontier == since.frontier, since.leaf
        else:
            before, leaf = (
                leaf_at(queries, size - 1) if leaves is None else leaves.get(size - 1, b"")
                for size in (old.size, head.size)
            )
            same = before == since.leaf
        if not same:
            raise self.stop(LedgerShrunk(f"The ledger's history before position {old.size} was exchanged under us."))
        seen = Seen(head, frontier, leaf)
        self.remember(seen)
        return seen

    @property
    def stopped(self) -> bool:
        """Whether this process must not use its ledger any more."""
        return self._stopped is not None

    def refuse_if_stopped(self) -> None:
        """Raises what stopped this process, if something has."""
        if self._stopped is not None:
            raise self._stopped.with_traceback(None)

    def stop(self, why: LedgerStopped) -> LedgerStopped:
        """From here on nothing is read or written. Returns `why`, to be raised."""
        self._stopped = why
        return why

    def close(self) -> None:
        """Stop, unless that is so already, because the ledger was closed."""
        self._stopped = self._stopped or LedgerStopped("The ledger is closed.")


def row_of(stored: Stored) -> tuple[Any, ...]:
    """The parameters of `INSERT_HEAD` and `UPDATE_HEAD`."""
    return (*_VALUES(stored.head), stored.frontier)


def head_of(row: Sequence[Any] | None) -> Stored:
    """The head from a row of `SELECT_HEAD`. Raises LedgerCorrupt when there is none."""
    if row is None:
        raise LedgerCorrupt("The ledger has no head.")
    return Stored(Head(*row[:-1]), row[-1])


def read_head(queries: Queries) -> Stored:
    """The head row. Raises LedgerCorrupt when there is none."""
    return head_of(queries.execute(SELECT_HEAD).fetchone())


def leaf_at(queries: Queries, seq: int) -> bytes:
    """The stored leaf hash of one event; empty if there is no such event."""
    row = queries.execute("SELECT leaf FROM events WHERE seq = ?", (seq,)).fetchone()
    return bytes(row[0]) if row else b""


def look(queries: Queries) -> tuple[Seen, str]:
    """The state at opening, and the origin. Raises LedgerCorrupt when the head does not fit the events' ends."""
    head, frontier = read_head(queries)
    last, first = (
        queries.execute(f"SELECT seq, bytes, leaf FROM events ORDER BY seq {way} LIMIT 1").fetchone()  # noqa: S608
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
    return Seen(head, frontier, last[2]), origin
