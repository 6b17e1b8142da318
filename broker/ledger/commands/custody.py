"""What happens to a ledger as a whole: it moves, arrives, is restored, and gives its old events to an archive.

These are commands of an operator at the machine, not of a caller over HTTP, apart from archiving, which is a chore too.
"""

from base64 import b64encode
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from broker.ledger import LedgerMoved, Tx, make_id
from broker.ledger.commands.admin import NewKey, activate, publish
from broker.ledger.commands.guards import forget_holds
from broker.ledger.commands.kills import Kill, Killed
from broker.ledger.heads import COPY, MOVED
from broker.ledger.merkle import TILE_WIDTH
from broker.ledger.transaction import Transaction
from broker.model import Selector, Target
from broker.wire import Match

Abandoned = Sequence[tuple[int, bytes]]
"""(size, root) of checkpoints that were kept of a history which this store does not have."""


@dataclass(frozen=True, slots=True)
class Move:
    """The last write of all: from this commit on every process refuses this store, for good."""

    actor: str
    reason: str

    def apply(self, tx: Tx) -> int:
        """The position of the last event."""
        if tx.head.sealed == COPY:
            raise ValueError("a copy has not been accepted, so it cannot move")
        seq = tx.append("ledger.moved", {"actor": self.actor, "reason": self.reason})
        tx.head.sealed = MOVED
        return seq


@dataclass(frozen=True, slots=True)
class Arrive:
    """The first write in the store that a ledger was imported into."""

    kind: str  # move | copy
    root: bytes

    def apply(self, tx: Tx) -> int:
        body = {"size": tx.head.size, "root": b64encode(self.root).decode(), "kind": self.kind}
        return tx.append("ledger.arrived", body)


@dataclass(frozen=True, slots=True)
class Accepted:
    """A restored ledger that may serve again."""

    epoch: str
    previous: str
    seq: int  # where the new epoch begins
    kids: list[str]  # keys that died, and all that they signed
    kill: str
    hold: str | None
    tasks: int


@dataclass(frozen=True, slots=True)
class AcceptRestore:
    """Begin a new epoch after a roll-back: new keys, and everything that was issued before is dead.

    What was issued after the restored position is unknown here. It dies all the same: by its epoch, by its keys, and
    because verifiers take a new snapshot and a new key set when the epoch changes. With `hold` nothing is issued until
    the hold is lifted: holds and kills that were placed after the restored position are lost, too.
    """

    token_keys: tuple[NewKey, NewKey]  # the active one, and the next
    session_key: NewKey
    abandoned: Abandoned
    actor: str
    reason: str
    hold: bool

    def apply(self, tx: Tx) -> Accepted:
        if tx.head.sealed == MOVED:
            raise LedgerMoved("This ledger was exported, to go on elsewhere.")
        assert isinstance(tx, Transaction)
        previous, seq = tx.epoch, tx.next_seq()
        kids = [kid for (kid,) in tx.execute(_LIVE_KEYS).fetchall()]
        epoch = tx.begin_epoch()
        tx.append("ledger.restored", self._body(epoch, previous, kids))
        self._note_epochs(tx, previous, seq)
        killed = self._kill(tx, kids)
        tx.execute("UPDATE keys SET state = 'killed', retired = ? WHERE purpose IN ('token', 'session')", (tx.now,))
        active, upcoming = self.token_keys
        _begin_with(tx, active)
        _begin_with(tx, self.session_key)
        publish(tx, upcoming)
        tx.head.sealed = ""
        forget_holds(tx)
        tx.head.floor = max(tx.head.floor, killed.seq)
        return Accepted(epoch, previous, seq, kids, killed.id, killed.hold, killed.tasks)

    def _body(self, epoch: str, previous: str, kids: list[str]) -> dict[str, Any]:
        return {
            "epoch": epoch,
            "previous": previous,
            "abandoned": [[size, b64encode(root).decode()] for size, root in self.abandoned],
            "kids": kids,
            "actor": self.actor,
            "reason": self.reason,
        }

    def _note_epochs(self, tx: Tx, previous: str, seq: int) -> None:
        """Ids of earlier epochs stay resolvable: each position belongs to one."""
        add = "INSERT INTO epochs (epoch, first_seq, abandoned) VALUES (?, ?, ?)"
        if tx.execute("SELECT 1 FROM epochs LIMIT 1").fetchone() is None:
            tx.execute(add, (previous, 0, "[]"))
        given_up = [[size, b64encode(root).decode()] for size, root in self.abandoned]
        tx.execute(add, (tx.epoch, seq, orjson.dumps(given_up).decode()))

    def _kill(self, tx: Tx, kids: Sequence[str]) -> Killed:
        """Everything, with every open task; and every key by its name, which is not a matter of positions."""
        everything = Kill(
            selector=Selector(Target.ALL),
            reason=f"restored: {self.reason}",
            actor=self.actor,
            hold=self.hold,
            registry_hash=tx.head.registry_hash,
        )
        killed = everything.apply(tx)
        assert isinstance(killed, Killed)
        for kid in kids:
            _kill_key(tx, kid, self.actor, self.reason)
        return killed


_LIVE_KEYS = "SELECT kid FROM keys WHERE purpose = 'token' AND state <> 'killed' ORDER BY published, kid"


def _kill_key(tx: Tx, kid: str, actor: str, reason: str) -> None:
    """As a kill of the key does, without needing one that takes over."""
    seq = tx.next_seq()
    kill = make_id("kil", tx.epoch, seq)
    body = {"kill": kill, "target": "key", "value": kid, "matches": [[Match.KEY.value, kid]], "actor": actor}
    tx.append("killed", {**body, "reason": f"restored: {reason}", "tasks": 0})
    tx.execute(
        "INSERT INTO kills (seq, id, target, value, at, actor, reason, hold, tasks, floor)"
        " VALUES (?, ?, 'key', ?, ?, ?, ?, NULL, 0, ?)",
        (seq, kill, kid, tx.now, actor, f"restored: {reason}", tx.head.floor),
    )
    tx.execute("INSERT INTO kill_matches (seq, kind, value) VALUES (?, ?, ?)", (seq, Match.KEY.value, kid))


def _begin_with(tx: Tx, key: NewKey) -> None:
    """Nobody has cached a key set of this epoch, so its first keys sign at once."""
    publish(tx, key)
    activate(tx, key.kid, key.purpose, "taskpass", "the ledger was restored")


@dataclass(frozen=True, slots=True)
class DeclareArchived:
    """All events before a position are in the archive and were read back: their bytes may go from the store."""

    before: int
    root: bytes  # of the tree of that size

    def apply(self, tx: Tx) -> int:
        return tx.append("ledger.archived", {"before": self.before, "root": b64encode(self.root).decode()})


@dataclass(frozen=True, slots=True)
class ForgetEvents:
    """Remove a stretch of events, and their rows in projections, whose bytes are in the archive. Hashes stay.

    Only where the archive goes on from: of two brokers that archive at once, the second does nothing.
    """

    start: int
    stop: int  # a multiple of the tile's width
    stay: Collection[int]  # positions of events that the ledger itself needs
    tasks: Collection[str]  # ids of tasks that were opened in this stretch

    def apply(self, tx: Tx) -> bool:
        """Whether it was done here."""
        head = tx.head
        if head.archived != self.start or self.stop % TILE_WIDTH or not self.start < self.stop <= head.floor:
            return False
        staying = ", ".join(str(int(seq)) for seq in self.stay) or "-1"
        stretch = (self.start, self.stop)
        tx.execute(f"DELETE FROM events WHERE seq >= ? AND seq < ? AND seq NOT IN ({staying})", stretch)  # noqa: S608
        tx.execute("DELETE FROM grants WHERE seq >= ? AND seq < ?", stretch)
        tx.execute("DELETE FROM external_grants WHERE seq >= ? AND seq < ? AND next_try IS NULL", stretch)
        tx.execute("DELETE FROM kill_expected WHERE seq >= ? AND seq < ?", stretch)
        tx.execute("DELETE FROM checkpoints WHERE size >= ? AND size < ?", stretch)
        for table in ("kill_matches", "kills"):  # the endings of tasks; an operator's kills are final and few
            tx.execute(
                f"DELETE FROM {table} WHERE seq >= ? AND seq < ?"  # noqa: S608
                " AND seq NOT IN (SELECT seq FROM kills WHERE id LIKE 'kil%')",
                stretch,
            )
        for task in self.tasks:
            tx.execute("DELETE FROM texts WHERE ref >= ? AND ref < ?", (f"{task}/", f"{task}0"))
            tx.execute("DELETE FROM task_events WHERE task = ?", (task,))
            tx.execute("DELETE FROM tasks WHERE id = ?", (task,))
        head.archived = self.stop
        return True


@dataclass(frozen=True, slots=True)
class RaiseAlarm:
    """Something about the keeping of the ledger that a human should look at, or need not any more."""

    alarm: str
    sentence: str

    def apply(self, tx: Tx) -> int:
        return tx.append("alarm", {"alarm": self.alarm, "sentence": self.sentence})
