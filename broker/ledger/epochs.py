"""Which epoch a position belongs to: the ids of one that was restored stay resolvable in those that come after it."""

from collections.abc import Callable
from typing import Protocol, TypeVar

from broker.ledger import Address, Reader, Tx, make_id, parse_id


class Granted(Protocol):
    """A row of something that was issued: the intent's position, and the id of its task."""

    @property
    def seq(self) -> int: ...  # noqa: D102

    @property
    def task(self) -> str: ...  # noqa: D102


G = TypeVar("G", bound=Granted)


def epoch_of(r: Reader, seq: int) -> str:
    """The epoch that `seq` was written in."""
    return _noted(r, seq) or r.head().epoch


def epoch_in(tx: Tx, seq: int) -> str:
    """The same, inside a transaction that begins none."""
    return _noted(tx, seq) or tx.epoch


def is_here(r: Reader, address: Address) -> bool:
    """Whether an id points into this ledger: what was issued after a backup, and lost with a restore, does not."""
    return 0 <= address.seq < r.head().size and epoch_of(r, address.seq) == address.epoch


def grant_of_id(r: Reader, text: str, at: Callable[[Reader, int], G | None]) -> G | None:
    """The grant that an id names, its own or its implicit task's. `at` finds the one at a position."""
    try:
        address = parse_id(text)
    except ValueError:
        return None
    found = at(r, address.seq) if is_here(r, address) else None
    return found if found and text in (make_id("grt", address.epoch, found.seq), found.task) else None


def _noted(r: Reader | Tx, seq: int) -> str | None:
    """None while there was only one."""
    row = r.execute("SELECT epoch FROM epochs WHERE first_seq <= ? ORDER BY first_seq DESC LIMIT 1", (seq,)).fetchone()
    return str(row[0]) if row else None
