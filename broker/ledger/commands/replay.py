"""Single-use proofs: spent once, remembered for as long as they could be shown again, then pruned."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

from broker.ledger import Reader, Tx
from broker.model import Proof

REPLAYED = "This assertion has been used before; present a fresh one."

REPLAY_GRACE_MS = 60_000
"""A mark outlives its proof by this much, so that no tolerated clock difference reopens the window."""

_MARK_START: Final = 16
_BEHIND_ALL_MARKS: Final = b"\xff" * 33


@lru_cache(maxsize=1024)  # asked for twice in a commit: to spend it, and for its event
def mark_of(proof: Proof) -> bytes:
    """The replay mark of a proof: how its jti begins, and half a digest of issuer and jti, joined so that no two pairs
    collide.

    The beginning is there for the order it gives. Ids that begin with the time (our SDK's, UUIDv7, ULID) are neighbours
    in the table, so a commit of sixty dirties a page or two of it; of marks without order each dirties one of its own.
    """
    issuer, jti = proof.issuer.encode(), proof.jti.encode()
    digest = hashlib.sha256(b"%d:%b%b" % (len(issuer), issuer, jti)).digest()
    return jti[:_MARK_START].ljust(_MARK_START, b"\0") + digest[:16]


def spend(tx: Tx, proof: Proof | None, *, even_late: bool = False) -> bool:
    """Spend a single-use proof. False when it was spent before; True too where there is nothing to spend.

    One that has expired by ledger time counts as spent: its mark may be pruned, and a host clock that stepped back must
    not reopen it. `even_late` is for kills: while that clock is behind, every proof is late, and a kill cannot wait.
    """
    if proof is None:
        return True
    if proof.expires <= tx.now and not even_late:
        return False
    return tx.claim(
        "INSERT INTO proofs (mark, expires) VALUES (?, ?) ON CONFLICT DO NOTHING",
        (mark_of(proof), max(proof.expires, tx.now) + REPLAY_GRACE_MS),
    )


class ProofWindow(NamedTuple):
    """Neighbours among the spent proofs: those with marks after `after`, up to `last`."""

    after: bytes
    last: bytes
    expired: int  # of them, how many can be pruned
    ends: bool  # nothing is stored behind it


def proof_window(r: Reader, after: bytes, number: int, now: int) -> ProofWindow:
    """The next `number` spent proofs behind the mark `after`, in the order of marks, or as many as there are."""
    row = r.execute("SELECT mark FROM proofs WHERE mark > ? ORDER BY mark LIMIT 1 OFFSET ?", (after, number - 1))
    end = row.fetchone()
    last = bytes(end[0]) if end else _BEHIND_ALL_MARKS
    query = "SELECT count(*) FROM proofs WHERE mark > ? AND mark <= ? AND expires <= ?"
    (expired,) = r.execute(query, (after, last, now)).fetchone()
    return ProofWindow(after, last, expired, ends=end is None)


@dataclass(frozen=True, slots=True)
class Prune:
    """Forget the spent proofs with marks after `after`, up to `last`, that can no longer be replayed."""

    after: bytes
    last: bytes

    def apply(self, tx: Tx) -> None:
        tx.execute("DELETE FROM proofs WHERE mark > ? AND mark <= ? AND expires <= ?", (self.after, self.last, tx.now))
