"""One write transaction on SQLite: what commands see of it, and how it is stored."""

import sqlite3
from collections.abc import Sequence
from copy import copy
from operator import attrgetter
from typing import Any, Final, NamedTuple

from broker.ledger import Command, Cursor, Head, LedgerCorrupt, LedgerUnavailable
from broker.ledger.events import encode
from broker.ledger.merkle import TILE_WIDTH, Frontier, complete_root, leaf_hash, split
from broker.ledger.sqlite_file import is_store_fault

_HEAD_FIELDS: Final = tuple(Head.__dataclass_fields__)  # the columns have the same names, in the same order
_HEAD_VALUES: Final = attrgetter(*_HEAD_FIELDS)
_COLUMNS: Final = ", ".join((*_HEAD_FIELDS, "frontier"))
_PLACES: Final = ", ".join("?" * (len(_HEAD_FIELDS) + 1))
_SELECT_HEAD: Final = f"SELECT {_COLUMNS} FROM head"  # noqa: S608
_UPDATE_HEAD: Final = f"UPDATE head SET ({_COLUMNS}) = ({_PLACES})"  # noqa: S608
_INSERT_HEAD: Final = f"INSERT INTO head (one, {_COLUMNS}) VALUES (1, {_PLACES})"  # noqa: S608


class Stored(NamedTuple):
    """The head row as read in one transaction."""

    head: Head
    frontier: bytes


class Poisoned(Exception):
    """A command of the batch raised: undo all, and find out which."""


class SqliteTx:
    """`broker.ledger.Tx` on SQLite."""

    __slots__ = ("_before", "_connection", "epoch", "head", "now", "scratch", "staged")

    def __init__(self, connection: sqlite3.Connection, head: Head, now: int) -> None:
        self._connection, self._before = connection, head
        self.epoch, self.now = head.epoch, max(head.time, now)
        self.head = copy(head)
        self.scratch: dict[str, Any] = {}
        self.staged: list[tuple[int, bytes, bytes]] = []

    def next_seq(self) -> int:
        """See `broker.ledger.Tx`."""
        return self.head.size

    def append(self, type: str, body: dict[str, Any]) -> int:  # noqa: A002
        """See `broker.ledger.Tx`."""
        seq = self.head.size
        data = encode(seq, self.now, type, body)
        self.staged.append((seq, data, leaf_hash(data)))
        self.head.size = seq + 1
        return seq

    def execute(self, sql: str, params: Sequence[Any] = ()) -> Cursor:
        """See `broker.ledger.Tx`."""
        self._refuse_if_gone()
        return self._connection.execute(sql, params)

    def check(self) -> None:
        """Refuse what no command may leave behind: a head of its own making, or no transaction."""
        self._refuse_if_gone()
        head, before = self.head, self._before
        if (head.epoch, head.time, head.size) != (before.epoch, before.time, before.size + len(self.staged)):
            raise ValueError("a command changed the head's epoch, time or size")
        if head.guard_version < before.guard_version or head.floor < before.floor:
            raise ValueError("a command lowered the head's guard_version or floor")

    def _refuse_if_gone(self) -> None:
        """SQLite ends a transaction by itself on some faults; a command that swallowed one must not go on without."""
        if not self._connection.in_transaction:
            raise LedgerUnavailable("The ledger cannot be used now.", internal="the transaction is gone")

    def apply_alone(self, command: Command) -> Any:  # noqa: ANN401
        """Apply one command; if it raises, undo it and return what it raised."""
        head, staged = copy(self.head), len(self.staged)
        self._connection.execute("SAVEPOINT command")
        try:
            outcome = command.apply(self)
            self.check()
        except Exception as error:  # whatever it is, it belongs to this command's caller
            if is_store_fault(error):
                raise
            self._connection.execute("ROLLBACK TO command")
            self.head = head
            del self.staged[staged:]
            self.scratch.clear()
            outcome = error
        self._connection.execute("RELEASE command")
        return outcome


def apply_all(tx: SqliteTx, commands: Sequence[Command]) -> list[Any]:
    """All commands, without savepoints: almost always none raises."""
    try:
        results = [command.apply(tx) for command in commands]
        tx.check()
    except Exception as error:
        if is_store_fault(error):
            raise
        raise Poisoned from error
    return results


def store(connection: sqlite3.Connection, before: Stored, tx: SqliteTx) -> Stored:
    """Store what the transaction staged: events, the tiles they fill, and the head."""
    frontier = Frontier.decode(before.head.size, before.frontier)
    for _, _, leaf in tx.staged:
        frontier.append(leaf)
    connection.executemany("INSERT INTO events (seq, bytes, leaf) VALUES (?, ?, ?)", tx.staged)
    for index in range(before.head.size // TILE_WIDTH, frontier.size // TILE_WIDTH):
        _store_full_tile(connection, index)
    tx.head.time = tx.now
    after = Stored(tx.head, frontier.encode())
    connection.execute(_UPDATE_HEAD, (*_HEAD_VALUES(after.head), after.frontier))
    return after


def insert_head(connection: sqlite3.Connection, head: Stored) -> None:
    """The head row of a new ledger."""
    connection.execute(_INSERT_HEAD, (*_HEAD_VALUES(head.head), head.frontier))


def _store_full_tile(connection: sqlite3.Connection, index: int) -> None:
    """The tile of 256 leaves that just became full, and its root as one more hash of the level above."""
    rows = connection.execute(
        "SELECT leaf FROM events WHERE seq >= ? AND seq < ? ORDER BY seq",
        (index * TILE_WIDTH, (index + 1) * TILE_WIDTH),
    )
    hashes, level = b"".join(leaf for (leaf,) in rows), 0
    while True:
        connection.execute("INSERT OR REPLACE INTO tiles (level, idx, hashes) VALUES (?, ?, ?)", (level, index, hashes))
        leaves = split(hashes)
        if len(leaves) < TILE_WIDTH:
            return
        level, (index, place) = level + 1, divmod(index, TILE_WIDTH)
        row = connection.execute("SELECT hashes FROM tiles WHERE level = ? AND idx = ?", (level, index)).fetchone()
        hashes = (row[0] if row else b"") + complete_root(leaves)
        if len(split(hashes)) != place + 1:
            raise LedgerCorrupt(f"Tile {level}/{index} does not hold {place} hashes.")


def read_head(connection: sqlite3.Connection) -> Stored:
    """The head row. Raises LedgerCorrupt when there is none."""
    row = connection.execute(_SELECT_HEAD).fetchone()
    if row is None:
        raise LedgerCorrupt("The ledger has no head.")
    return Stored(Head(*row[:-1]), row[-1])


def leaf_at(connection: sqlite3.Connection, seq: int) -> bytes:
    """The stored leaf hash of one event; empty if there is no such event."""
    row = connection.execute("SELECT leaf FROM events WHERE seq = ?", (seq,)).fetchone()
    return bytes(row[0]) if row else b""
