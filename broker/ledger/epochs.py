"""Which epoch a position belongs to: the ids of one that was restored stay resolvable in those that come after it."""

from broker.ledger import Address, Reader


def epoch_of(r: Reader, seq: int) -> str:
    """The epoch that `seq` was written in."""
    row = r.execute("SELECT epoch FROM epochs WHERE first_seq <= ? ORDER BY first_seq DESC LIMIT 1", (seq,)).fetchone()
    return str(row[0]) if row else r.head().epoch


def is_here(r: Reader, address: Address) -> bool:
    """Whether an id points into this ledger: what was issued after a backup, and lost with a restore, does not."""
    return 0 <= address.seq < r.head().size and epoch_of(r, address.seq) == address.epoch
