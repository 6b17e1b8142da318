"""The ledger: an append-only, Merkle-hashed log of events, and the projections that ride on it in the same store.

Every write is a `Command`. It re-checks its guards, appends its event and updates its projections inside one
transaction; nothing is answered before that transaction is durable. A position (`seq`) is the event's place in the log
and its leaf index in the tree of RFC 9162, starting at 0.

`merkle`, `events`, `checkpoint` and `ids` are pure. `transaction` and `heads` are what a write is on any store; the
`sqlite*` and `postgres*` modules are the stores. `writer` is their asynchronous front, `proofs` the read side, `verify`
the audit that trusts none of the others' stored hashes, `spool` the last resort for kills. `transfer`, `archive`,
`kept` and `witness` are about whole ledgers: moved, thinned out, compared with what is kept elsewhere.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from broker.errors import TaskpassError, Unavailable
from broker.ledger.ids import Address, make_id, parse_id

__all__ = [
    "Address",
    "Command",
    "Cursor",
    "Head",
    "Ledger",
    "LedgerCorrupt",
    "LedgerMoved",
    "LedgerNotOpened",
    "LedgerShrunk",
    "LedgerStopped",
    "LedgerUnavailable",
    "Now",
    "OpenLedger",
    "OutcomeUnknown",
    "Reader",
    "StoredEvent",
    "Tx",
    "make_id",
    "parse_id",
]

Now = Callable[[], int]
"""The host's clock: whole milliseconds since the Unix epoch."""


@dataclass(slots=True)
class Head:
    """The one row that all writers take turns on. A command may change what stands below the line, never what is above.

    `guard_version` and `floor` never decrease. `issuance_stopped` is the reason while it is, else empty.
    """

    epoch: str
    size: int  # events in the log: the next position
    time: int  # ledger time of the last write, ms; never decreases
    # ---
    guard_version: int = 0
    registry_hash: str = ""
    policy_hash: str = ""
    active_kid: str = ""
    issuance_stopped: str = ""
    floor: int = 0
    archived: int = 0  # the bytes of events before this position are in the archive
    sealed: str = ""  # `moved` or `copy`: why no broker may use this store; else empty


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """One event as it was written. `data` are the exact bytes that the tree's leaf covers."""

    seq: int
    t: int
    type: str
    body: dict[str, Any]
    data: bytes


class Cursor(Protocol):
    """The part of a database cursor that commands and views use."""

    @property
    def rowcount(self) -> int:
        """Rows changed by an INSERT, UPDATE or DELETE."""

    def fetchone(self) -> Any:  # noqa: ANN401  (a row is a tuple whose types only the query knows)
        """The next row, or None."""

    def fetchall(self) -> list[Any]:
        """All remaining rows."""

    def __iter__(self) -> Iterator[Any]: ...


class Statements(Protocol):
    """What commands may do to the projections."""

    def execute(self, sql: str, params: Sequence[Any] = ()) -> Cursor:
        """Run one portable statement with `?` placeholders."""

    def put(self, sql: str, params: Sequence[Any] = ()) -> None:
        """Run a write whose result is not looked at. A store may put it off until something reads its table, so one
        that cannot be made raises here or later, but before the commit.
        """

    def claim(self, sql: str, params: Sequence[Any]) -> bool:
        """Run an `INSERT ... ON CONFLICT DO NOTHING` whose first column is its key: whether the row is new."""


class Tx(Statements, Protocol):
    """One write transaction, on the writer's thread."""

    epoch: str
    now: int  # ledger time of this transaction, ms: max(last, host clock)
    head: Head  # a copy; what is changed here is stored on commit
    scratch: dict[str, Any]  # what commands of one batch share, e.g. rows read once; gone with the transaction

    def next_seq(self) -> int:
        """The position that the next `append` will take."""

    def append(self, type: str, body: dict[str, Any]) -> int:  # noqa: A002  (the word on the wire)
        """Append an event and return its position. Raises ValueError for a type or field that is not registered.

        The event's row becomes visible to `execute` with the commit, not before.
        """


class Command(Protocol):
    """One requested write: guards, event and projection together.

    `apply` may run more than once, each time from a clean transaction, and so must not have effects outside of it. One
    that also has a method `unheard(outcome) -> Command | None` says with it what must follow in the ledger when it
    turns out to be committed after its caller was told OutcomeUnknown.
    """

    def apply(self, tx: Tx) -> Any:  # noqa: ANN401  (each command has its own outcome)
        """Do it and return the outcome; a refusal is an outcome too. Raising means a bug: nothing of it is kept."""


class Reader(Protocol):
    """A consistent snapshot. Not to be kept longer than a request: it delays the clean-up of old pages."""

    def head(self) -> Head:
        """The head as of this snapshot."""

    def execute(self, sql: str, params: Sequence[Any] = ()) -> Cursor:
        """Run one portable query with `?` placeholders."""


class Ledger(Protocol):
    """A store. Safe to use from several threads; several processes may have the same one open.

    `synced_s` is how long the last COMMIT took, in seconds: the store's disk, and the way to it.
    """

    synced_s: float

    @property
    def head(self) -> Head:
        """The newest head that this process has seen, without asking the store. To be looked at, never changed."""

    def commit(self, commands: Sequence[Command], *, priority: bool = False) -> list[Any]:
        """Apply all commands in one durable transaction; their outcomes, in order.

        A command that raises fails alone: its slot holds the exception. Raises LedgerUnavailable when the store failed:
        then none was applied, unless it is OutcomeUnknown. With `priority`, ordinary writers of all processes wait
        until this commit is through.
        """

    def read(self) -> AbstractContextManager[Reader]:
        """A snapshot for as long as the context lasts. Raises LedgerUnavailable."""

    def data_version(self) -> int:
        """A number that changes when anyone has committed. Costs microseconds, so it can be polled."""


class OpenLedger(Ledger, Protocol):
    """A ledger as its owner holds it."""

    @property
    def origin(self) -> str:
        """Its name in its checkpoints."""

    @property
    def concerns(self) -> Sequence[str]:
        """What in the store's own settings endangers it, as found when it was opened; sentences for people."""

    def clock(self) -> int:
        """The store's clock, in ms, as near as it can be told without asking: the database's where brokers share one,
        else the host's. May step back. Ledger time is this, but never less than `head.time`.
        """

    def close(self) -> None:
        """Let go of the store. Later calls raise."""


class LedgerUnavailable(Unavailable):
    """The ledger cannot be written or read now; nothing of the request was applied. Trying again may help."""


class OutcomeUnknown(LedgerUnavailable):
    """Whether the request was applied is not known, and may never be: nothing of it may be handed out."""


class LedgerStopped(LedgerUnavailable):
    """This process must not use its ledger any more: stop and look."""


class LedgerCorrupt(LedgerStopped):
    """What is stored contradicts itself."""


class LedgerShrunk(LedgerStopped):
    """The ledger under this process was rolled back, forked, replaced, or moved to another epoch."""


class LedgerMoved(LedgerStopped):
    """The ledger was exported to go on elsewhere: this store takes nothing more, for good."""


class LedgerNotOpened(TaskpassError):
    """There is no ledger at that place, it is something else, or another version's. Nothing was changed."""
