"""One write transaction, whatever the store: what commands see of it, what it stores, how a bad command is undone.

Two stores, one logic: a store brings a `Session` (a connection inside a transaction) and nothing else to this.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from secrets import token_hex
from typing import Any, Final, Protocol

from broker.ledger import Command, Cursor, Head, LedgerCorrupt
from broker.ledger.events import encode
from broker.ledger.heads import INSERT_HEAD, UPDATE_HEAD, Queries, Seen, Stored, row_of
from broker.ledger.merkle import TILE_WIDTH, Frontier, complete_root, leaf_hash, split

FORMAT: Final = 1
_PUT_TILE: Final = (
    "INSERT INTO tiles (level, idx, hashes) VALUES (?, ?, ?)"
    " ON CONFLICT (level, idx) DO UPDATE SET hashes = excluded.hashes"
)


StagedEvent = tuple[int, bytes, bytes]
"""Position, bytes and leaf hash of an event that is about to be stored."""


class PutsOff(Protocol):
    """What a session does about writes that may wait."""

    def put(self, sql: str, params: Sequence[Any]) -> None:
        """See `broker.ledger.Tx.put`."""

    def claim(self, sql: str, params: Sequence[Any]) -> bool:
        """See `broker.ledger.Tx.claim`. May raise Again, now or when it is settled."""

    def settle(self) -> None:
        """Do what was put off. Raises what it would have raised then, or Again."""

    def discard(self) -> None:
        """Forget what was put off and not settled."""


class Session(Queries, PutsOff, Protocol):
    """A store's connection, as one transaction uses it."""

    @property
    def total_changes(self) -> int:
        """Grows with every row that a statement changed."""

    def insert_events(self, events: Sequence[StagedEvent]) -> None:
        """Store events, all in one exchange."""

    def check(self) -> None:
        """Raises when the transaction is gone, or a statement of it failed and can only be undone."""

    def is_store_fault(self, error: BaseException) -> bool:
        """Whether the store failed, and not what was asked of it."""


class Poisoned(Exception):
    """A command of the batch raised: undo all, and find out which."""


class Again(Exception):
    """Nothing is wrong: undo all, and run the batch once more. The store has learned something meanwhile."""


class Transaction:
    """`broker.ledger.Tx` on any store."""

    __slots__ = ("_before", "_session", "epoch", "head", "now", "scratch", "staged")

    def __init__(self, session: Session, head: Head, now: int) -> None:
        self._session, self._before = session, head
        self.epoch, self.now = head.epoch, max(head.time, now)
        self.head = copy(head)
        self.scratch: dict[str, Any] = {}
        self.staged: list[StagedEvent] = []

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
        # A store may end a transaction by itself; a command that swallowed the fault must not go on without one.
        self._session.check()
        return self._session.execute(sql, params)

    def put(self, sql: str, params: Sequence[Any] = ()) -> None:
        """See `broker.ledger.Tx`."""
        self._session.put(sql, params)

    def claim(self, sql: str, params: Sequence[Any]) -> bool:
        """See `broker.ledger.Tx`."""
        self._session.check()
        return self._session.claim(sql, params)

    def begin_epoch(self) -> str:
        """From the next event on positions belong to a new epoch, which is returned. For restored ledgers only."""
        self.epoch = self.head.epoch = token_hex(4)
        self._before = replace(self._before, epoch=self.epoch)
        return self.epoch

    def apply_all(self, commands: Sequence[Command]) -> list[Any]:
        """All commands, without savepoints: almost always none raises. If one does, raises Poisoned."""
        try:
            results = [command.apply(self) for command in commands]
            self._check()
        except Again:
            raise
        except Exception as error:
            if self._session.is_store_fault(error):
                raise
            raise Poisoned from error
        return results

    def apply_alone(self, command: Command) -> Any:  # noqa: ANN401
        """Apply one command; if it raises, undo it and return what it raised."""
        head, staged, before = copy(self.head), len(self.staged), self._before
        self._session.execute("SAVEPOINT command")
        try:
            outcome = command.apply(self)
            self._check()
        except Exception as error:  # whatever it is, it belongs to this command's caller
            if self._session.is_store_fault(error):
                raise
            self._session.discard()
            self._session.execute("ROLLBACK TO SAVEPOINT command")
            self.head, self._before, self.epoch = head, before, before.epoch
            del self.staged[staged:]
            self.scratch.clear()
            outcome = error
        self._session.execute("RELEASE SAVEPOINT command")
        return outcome

    def store(self, before: Stored) -> Stored:
        """Store what was staged: events, the tiles they fill, and the head."""
        frontier = Frontier.decode(before.head.size, before.frontier)
        for _, _, leaf in self.staged:
            frontier.append(leaf)
        if self.staged:
            self._session.insert_events(self.staged)
        for index in range(before.head.size // TILE_WIDTH, frontier.size // TILE_WIDTH):
            _store_full_tile(self._session, index)
        self.head.time = self.now
        after = Stored(self.head, frontier.encode())
        self._session.execute(UPDATE_HEAD, row_of(after))
        return after

    def _check(self) -> None:
        """Refuse what no command may leave behind: a head of its own making, no transaction, rows that do not fit."""
        self._session.check()
        self._session.settle()
        head, before = self.head, self._before
        if (head.epoch, head.time, head.size) != (before.epoch, before.time, before.size + len(self.staged)):
            raise ValueError("a command changed the head's epoch, time or size")
        if head.guard_version < before.guard_version or head.floor < before.floor:
            raise ValueError("a command lowered the head's guard_version or floor")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a transaction did, before its COMMIT."""

    results: list[Any]
    before: Stored
    after: Stored  # equal to `before` where nothing has to be stored
    staged: list[StagedEvent]
    changed: bool

    def seen(self, earlier: Seen) -> Seen:
        """The state that is known once this is committed."""
        leaf = self.staged[-1][2] if self.staged else earlier.leaf
        return Seen(self.after.head, self.after.frontier, leaf)


def run(session: Session, seen: Seen, now: int, commands: Sequence[Command], *, isolate: bool) -> Outcome:
    """Apply the commands in the transaction that is open, and store what they did. Raises Poisoned unless `isolate`."""
    changes = session.total_changes
    tx = Transaction(session, seen.head, now)
    results = [tx.apply_alone(command) for command in commands] if isolate else tx.apply_all(commands)
    before = Stored(seen.head, seen.frontier)
    changed = bool(tx.staged) or tx.head != seen.head or session.total_changes != changes
    return Outcome(results, before, tx.store(before) if changed else before, tx.staged, changed)


def begin_history(session: Session, *, now: int, origin: str) -> None:
    """Write the head and the genesis event of a new, empty ledger."""
    empty = Stored(Head(epoch=token_hex(4), size=0, time=0), b"")
    session.execute(INSERT_HEAD, row_of(empty))
    tx = Transaction(session, empty.head, now)
    tx.append("ledger.created", {"epoch": tx.epoch, "format": FORMAT, "origin": origin})
    tx.store(empty)


def _store_full_tile(session: Session, index: int) -> None:
    """The tile of 256 leaves that just became full, and its root as one more hash of the level above."""
    rows = session.execute(
        "SELECT leaf FROM events WHERE seq >= ? AND seq < ? ORDER BY seq",
        (index * TILE_WIDTH, (index + 1) * TILE_WIDTH),
    )
    hashes, level = b"".join(leaf for (leaf,) in rows), 0
    while True:
        session.execute(_PUT_TILE, (level, index, hashes))
        leaves = split(hashes)
        if len(leaves) < TILE_WIDTH:
            return
        level, (index, place) = level + 1, divmod(index, TILE_WIDTH)
        row = session.execute("SELECT hashes FROM tiles WHERE level = ? AND idx = ?", (level, index)).fetchone()
        hashes = (row[0] if row else b"") + complete_root(leaves)
        if len(split(hashes)) != place + 1:
            raise LedgerCorrupt(f"Tile {level}/{index} does not hold {place} hashes.")
