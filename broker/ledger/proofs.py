"""The read side of the tree: events, proofs at any size, and checkpoints, none signed unless it extends the last."""

import threading
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker.errors import Conflict, Malformed, NotFound
from broker.ledger import Ledger, LedgerCorrupt, Reader, StoredEvent, Tx
from broker.ledger.archive import Archive, in_archive
from broker.ledger.checkpoint import Checkpoint, NoteInvalid, sign_checkpoint, unverified_checkpoint
from broker.ledger.events import EventMalformed, parse
from broker.ledger.merkle import (
    TILE_WIDTH,
    Frontier,
    Nodes,
    ProofInvalid,
    Tiles,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    nodes_of,
    root_at,
    verify_consistency,
    verify_inclusion,
)

CHECKPOINT_INTERVAL_MS: Final = 1_000
"""A checkpoint this young is handed out again, however often one is asked for."""


@dataclass(frozen=True, slots=True)
class KeepCheckpoint:
    """Store a signed checkpoint. Not an event: it speaks about the events."""

    size: int
    note: str

    def apply(self, tx: Tx) -> str:
        """The note that is kept for that size: another process may have been first."""
        tx.execute(
            "INSERT INTO checkpoints (size, at, note) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
            (self.size, tx.now, self.note),
        )
        (note,) = tx.execute("SELECT note FROM checkpoints WHERE size = ?", (self.size,)).fetchone()
        return str(note)


class Proofs:
    """Proofs and checkpoints of one ledger. Thread-safe. What it hands out it has verified itself."""

    def __init__(
        self, *, ledger: Ledger, origin: str, key: Callable[[], Ed25519PrivateKey], archive: Archive | None = None
    ) -> None:
        self._ledger, self._origin, self._key, self._archive = ledger, origin, key, archive
        self._last: Checkpoint | None = None  # the newest that this process knows was signed
        self._signing = threading.Lock()

    def event(self, reader: Reader, seq: int) -> StoredEvent:
        """One event. Raises NotFound, InArchive when only an archive that is not configured has it, or LedgerCorrupt
        when what is stored there is no event.
        """
        data = _data_of(reader, seq)
        if data is None:
            data = self._from_archive(reader, seq)
        try:
            return parse(data)
        except EventMalformed as error:
            raise LedgerCorrupt(f"Position {seq} of the ledger is damaged.", internal=str(error)) from error

    def inclusion(self, seq: int, size: int | None = None) -> dict[str, Any]:
        """The proof that the event at `seq` is in the tree of `size` leaves, JSON-ready; hashes are base64.

        Without a size: that of the newest checkpoint, or of a new one if the event is younger. Raises NotFound when
        there is no such event or size.
        """
        if size is None:
            size = unverified_checkpoint(self.checkpoint(covering=seq)).size
        with self._ledger.read() as reader:
            if not 0 <= seq < size <= reader.head().size:
                raise NotFound(f"There is no position {seq} in a ledger of {min(size, reader.head().size)} events.")
            nodes, data = _tree(reader), _data_of(reader, seq)
            leaf = nodes(0, seq) if data is None else leaf_hash(data)
            root, proof = root_at(size, nodes), inclusion_proof(seq, size, nodes)
            note = _checkpoint_at(reader, size)
        _agree(lambda: verify_inclusion(index=seq, size=size, leaf=leaf, proof=proof, root=root))
        answer = {"seq": seq, "size": size, "leaf": _text(leaf), "proof": _texts(proof), "root": _text(root)}
        return answer if note is None else {**answer, "checkpoint": note}

    def consistency(self, first: int, second: int | None = None) -> dict[str, Any]:
        """The proof that the tree of `first` leaves is a prefix of that of `second`, JSON-ready; hashes are base64.

        Without `second`: up to the newest checkpoint. Raises Malformed for sizes between which there is no proof, and
        NotFound for a size that the ledger has not reached.
        """
        if second is None:
            second = unverified_checkpoint(self.checkpoint(covering=first - 1)).size
        with self._ledger.read() as reader:
            if second > reader.head().size:
                raise NotFound(f"The ledger has {reader.head().size} events, not {second}.")
            if not 0 < first <= second:
                raise Malformed(f"There is no consistency proof from {first} to {second}: give 0 < from <= to.")
            nodes = _tree(reader)
            root1, root2 = root_at(first, nodes), root_at(second, nodes)
            proof = consistency_proof(first, second, nodes)
            note = _checkpoint_at(reader, second)
        _agree(lambda: verify_consistency(size1=first, root1=root1, size2=second, root2=root2, proof=proof))
        answer = {"from": first, "to": second, "root1": _text(root1), "root2": _text(root2), "proof": _texts(proof)}
        return answer if note is None else {**answer, "checkpoint": note}

    def _from_archive(self, reader: Reader, seq: int) -> bytes:
        if self._archive is None:
            raise in_archive(seq, reader.head().archived)
        data = self._archive.event(seq)
        if leaf_hash(data) != _tree(reader)(0, seq):
            raise Conflict("The configured archive is not this ledger's.")
        return data

    def root(self, size: int) -> bytes:
        """The root when the ledger had `size` events. Raises NotFound for a size that it has not reached."""
        with self._ledger.read() as reader:
            if not 0 <= size <= reader.head().size:
                raise NotFound(f"The ledger has {reader.head().size} events, not {size}.")
            return root_at(size, _tree(reader))

    def checkpoint(self, *, covering: int = -1) -> str:
        """A signed checkpoint of the tree as it stands, at most a second old, that covers the position `covering`.

        Signs a new one only after proving that it extends the last one. Raises LedgerCorrupt when it does not.
        """
        with self._signing:
            with self._ledger.read() as reader:
                head = reader.head()
                row = reader.execute("SELECT size, at, note FROM checkpoints ORDER BY size DESC LIMIT 1").fetchone()
                if row is not None:
                    size, at, note = row
                    fresh = size == head.size or (size > covering and head.time - at < CHECKPOINT_INTERVAL_MS)
                    if fresh and (self._last is None or size >= self._last.size):
                        return str(note)
                checkpoint = self._extend(reader, None if row is None else note)
            (kept,) = self._ledger.commit([KeepCheckpoint(checkpoint.size, sign_checkpoint(checkpoint, self._key()))])
            if isinstance(kept, Exception):
                raise kept
            self._last = checkpoint
            return str(kept)

    def _extend(self, reader: Reader, newest: str | None) -> Checkpoint:
        """The tree as it stands, which is proven to extend every checkpoint that we know of."""
        size, nodes = reader.head().size, _tree(reader)
        root = root_at(size, nodes)
        try:
            (frontier,) = reader.execute("SELECT frontier FROM head").fetchone()
            if Frontier.decode(size, frontier).root() != root:
                raise ProofInvalid("the head and the tiles disagree")
            known = [] if newest is None else [unverified_checkpoint(newest)]
            for earlier in (*known, *([] if self._last is None else [self._last])):
                verify_consistency(
                    size1=earlier.size,
                    root1=earlier.root,
                    size2=size,
                    root2=root,
                    proof=consistency_proof(earlier.size, size, nodes),
                )
        except (ProofInvalid, NoteInvalid, ValueError) as error:
            raise LedgerCorrupt(
                "The ledger does not extend its last checkpoint; nothing is signed.", internal=str(error)
            ) from error
        return Checkpoint(self._origin, size, root)


def _tree(reader: Reader) -> Nodes:
    """The tree of one snapshot. Raises LedgerCorrupt where stored hashes are missing."""
    nodes = nodes_of(tiles_of(reader))

    def checked(height: int, index: int) -> bytes:
        try:
            return nodes(height, index)
        except (LookupError, ValueError) as error:
            raise LedgerCorrupt("The ledger's tree has a hole.", internal=str(error)) from error

    return checked


def tiles_of(reader: Reader) -> Tiles:
    """The stored tiles of one snapshot, each read once. The last tile of leaves comes from the events themselves."""
    known: dict[tuple[int, int], bytes] = {}

    def tiles(level: int, index: int) -> bytes:
        joined = known.get((level, index))
        if joined is None:
            joined = known[level, index] = _read_tile(reader, level, index)
        return joined

    return tiles


def _read_tile(reader: Reader, level: int, index: int) -> bytes:
    row = reader.execute("SELECT hashes FROM tiles WHERE level = ? AND idx = ?", (level, index)).fetchone()
    if row is not None:
        return bytes(row[0])
    if level > 0:
        return b""
    first = index * TILE_WIDTH
    rows = reader.execute(
        "SELECT leaf FROM events WHERE seq >= ? AND seq < ? ORDER BY seq", (first, first + TILE_WIDTH)
    )
    return b"".join(leaf for (leaf,) in rows.fetchall())


def _data_of(reader: Reader, seq: int) -> bytes | None:
    """The bytes of an event; None when they are in the archive. Raises NotFound."""
    row = reader.execute("SELECT bytes FROM events WHERE seq = ?", (seq,)).fetchone() if 0 <= seq < 1 << 63 else None
    if row is not None:
        return bytes(row[0])
    if 0 <= seq < reader.head().archived:
        return None
    raise NotFound(f"There is no position {seq} in this ledger.")


def _checkpoint_at(reader: Reader, size: int) -> str | None:
    row = reader.execute("SELECT note FROM checkpoints WHERE size = ?", (size,)).fetchone()
    return None if row is None else str(row[0])


def _agree(check: Callable[[], None]) -> None:
    try:
        check()
    except ProofInvalid as error:
        raise LedgerCorrupt("The ledger's tree contradicts its events.", internal=str(error)) from error


def _text(digest: bytes) -> str:
    return b64encode(digest).decode()


def _texts(hashes: Sequence[bytes]) -> list[str]:
    return [_text(digest) for digest in hashes]
