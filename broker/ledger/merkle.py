"""The Merkle tree of RFC 9162, section 2.1. Pure.

Three ideas carry this module. A `Frontier` is the tree's right edge: with the roots of its complete subtrees, at most
one per power of two, leaves can be appended and the root told without looking back. A `Nodes` function gives the root
of any complete subtree; proofs of any size are put together from O(log n) of those. And hashes are kept in tiles of
256, so that a `Nodes` reads a few rows and hashes a few hundred times, however long the log is.

Verification raises `ProofInvalid`; it never returns a bool that somebody could forget to look at.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Final

HASH_SIZE: Final = 32
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()

TILE_HEIGHT: Final = 8
TILE_WIDTH: Final = 1 << TILE_HEIGHT

Nodes = Callable[[int, int], bytes]
"""`nodes(height, index)`: the root of the complete subtree over the leaves [index << height, (index + 1) << height)."""

Tiles = Callable[[int, int], bytes]
"""`tiles(level, index)`: as many joined hashes of that tile as exist, each the root of 256 ** level leaves."""


class ProofInvalid(Exception):
    """The proof does not show what it was presented for."""


def leaf_hash(data: bytes) -> bytes:
    """The leaf's prefix keeps an attacker from presenting an inner node as an entry."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The parent of two nodes."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Frontier:
    """The right edge of a tree: the roots of its maximal complete subtrees, leftmost (largest) first."""

    __slots__ = ("_hashes", "size")

    def __init__(self, size: int = 0, hashes: Iterable[bytes] = ()) -> None:
        self.size = size
        self._hashes = list(hashes)
        if len(self._hashes) != size.bit_count() or any(len(known) != HASH_SIZE for known in self._hashes):
            raise ValueError(f"a tree of {size} leaves has another frontier")

    @classmethod
    def decode(cls, size: int, joined: bytes) -> "Frontier":
        """The inverse of `encode`. Raises ValueError when `joined` cannot be the frontier of `size` leaves."""
        return cls(size, split(joined))

    def encode(self) -> bytes:
        """All hashes, joined."""
        return b"".join(self._hashes)

    def append(self, leaf: bytes) -> None:
        """Add one leaf hash at the right."""
        size, hashes = self.size, self._hashes
        self.size = size + 1
        while size & 1:  # a complete subtree of this size stands to the left: the two become one of twice its size
            leaf = node_hash(hashes.pop(), leaf)
            size >>= 1
        hashes.append(leaf)

    def root(self) -> bytes:
        """The root of the tree as it is now."""
        return _fold(self._hashes)


def split(joined: bytes) -> list[bytes]:
    """Take joined hashes apart. Raises ValueError unless they are whole."""
    if len(joined) % HASH_SIZE:
        raise ValueError("not a whole number of hashes")
    return [joined[start : start + HASH_SIZE] for start in range(0, len(joined), HASH_SIZE)]


def complete_root(hashes: Sequence[bytes]) -> bytes:
    """The root over a power of two of sibling hashes."""
    layer = list(hashes)
    if not layer or len(layer) & (len(layer) - 1):
        raise ValueError("not a complete subtree")
    while len(layer) > 1:
        layer = [node_hash(layer[i], layer[i + 1]) for i in range(0, len(layer), 2)]
    return layer[0]


def nodes_of(tiles: Tiles) -> Nodes:
    """Complete subtrees, computed from tiles. Raises LookupError for a subtree that is not complete yet."""

    def nodes(height: int, index: int) -> bytes:
        level, inner = divmod(height, TILE_HEIGHT)
        tile, place = divmod(index << inner, TILE_WIDTH)
        joined = tiles(level, tile)[place * HASH_SIZE : (place + (1 << inner)) * HASH_SIZE]
        if len(joined) != HASH_SIZE << inner:
            raise LookupError(f"no complete subtree of height {height} at {index}")
        return complete_root(split(joined))

    return nodes


def root_at(size: int, nodes: Nodes) -> bytes:
    """The root when the log had `size` leaves."""
    return _range_root(0, size, nodes)


def inclusion_proof(index: int, size: int, nodes: Nodes) -> list[bytes]:
    """PATH(index, D[size]) of RFC 9162 section 2.1.3.1, leaf upwards. Raises ValueError unless index < size."""
    if not 0 <= index < size:
        raise ValueError(f"there is no leaf {index} in a tree of {size}")
    path: list[bytes] = []
    low, high = 0, size
    while high - low > 1:
        middle = low + _split_point(high - low)
        if index < middle:
            path.append(_range_root(middle, high, nodes))
            high = middle
        else:
            path.append(_range_root(low, middle, nodes))
            low = middle
    return path[::-1]


def consistency_proof(size1: int, size2: int, nodes: Nodes) -> list[bytes]:
    """PROOF(size1, D[size2]) of RFC 9162 section 2.1.4.1. Raises ValueError unless 0 < size1 <= size2."""
    if not 0 < size1 <= size2:
        raise ValueError(f"there is no consistency proof from {size1} to {size2}")
    path: list[bytes] = []
    low, high = 0, size2
    while high > size1:
        middle = low + _split_point(high - low)
        if size1 <= middle:
            path.append(_range_root(middle, high, nodes))
            high = middle
        else:
            path.append(_range_root(low, middle, nodes))
            low = middle
    if low > 0:  # the old tree ends inside: its last subtree has to be named
        path.append(_range_root(low, high, nodes))
    return path[::-1]


def verify_inclusion(*, index: int, size: int, leaf: bytes, proof: Sequence[bytes], root: bytes) -> None:
    """Check that leaf hash `leaf` is at `index` in the tree of `size` leaves with this root. Raises ProofInvalid."""
    if not 0 <= index < size:
        raise ProofInvalid(f"there is no leaf {index} in a tree of {size}")
    _check_hashes(leaf, root, *proof)
    place, last, node = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise ProofInvalid("the proof is too long")
        if place & 1 or place == last:
            node = node_hash(sibling, node)
            while not place & 1 and place:  # levels at which this node has no sibling
                place >>= 1
                last >>= 1
        else:
            node = node_hash(node, sibling)
        place >>= 1
        last >>= 1
    if last != 0:
        raise ProofInvalid("the proof is too short")
    if node != root:
        raise ProofInvalid("the proof leads to another root")


def verify_consistency(*, size1: int, root1: bytes, size2: int, root2: bytes, proof: Sequence[bytes]) -> None:
    """Check that the tree of `size1` leaves is a prefix of the tree of `size2`. Raises ProofInvalid.

    A proof from the empty tree would show nothing about the other one, so `size1` = 0 is refused.
    """
    if not 0 < size1 <= size2:
        raise ProofInvalid(f"there is no consistency proof from {size1} to {size2}")
    if size1 == size2:
        if proof or root1 != root2:
            raise ProofInvalid("two trees of one size, and they differ")
        return
    _check_hashes(root1, root2, *proof)
    # A complete old tree is itself the first hash, and is left out of the proof.
    hashes = [root1, *proof] if size1 & (size1 - 1) == 0 else list(proof)
    if not hashes:
        raise ProofInvalid("the proof is too short")
    place, last = size1 - 1, size2 - 1
    while place & 1:
        place >>= 1
        last >>= 1
    old = new = hashes[0]
    for sibling in hashes[1:]:
        if last == 0:
            raise ProofInvalid("the proof is too long")
        if place & 1 or place == last:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while not place & 1 and place:
                place >>= 1
                last >>= 1
        else:
            new = node_hash(new, sibling)
        place >>= 1
        last >>= 1
    if last != 0:
        raise ProofInvalid("the proof is too short")
    if old != root1 or new != root2:
        raise ProofInvalid("the proof leads to other roots")


def _check_hashes(*hashes: bytes) -> None:
    if any(len(known) != HASH_SIZE for known in hashes):
        raise ProofInvalid("a hash of the wrong length")


def _split_point(width: int) -> int:
    """The largest power of two smaller than `width`."""
    return 1 << (width - 1).bit_length() - 1


def _range_root(low: int, high: int, nodes: Nodes) -> bytes:
    """The root over [low, high), where `low` is a multiple of the power of two that covers the range."""
    hashes: list[bytes] = []
    for height in reversed(range((high - low).bit_length())):
        if (high - low) >> height:
            hashes.append(nodes(height, low >> height))
            low += 1 << height
    return _fold(hashes)


def _fold(hashes: Sequence[bytes]) -> bytes:
    """The root over neighbouring complete subtrees, leftmost (largest) first."""
    if not hashes:
        return EMPTY_ROOT
    root = hashes[-1]
    for left in reversed(hashes[:-1]):
        root = node_hash(left, root)
    return root
