"""The tree against a second implementation that follows the recursive definitions of RFC 9162, and known answers."""

import base64
import hashlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.ledger.merkle import (
    EMPTY_ROOT,
    HASH_SIZE,
    TILE_WIDTH,
    Frontier,
    ProofInvalid,
    complete_root,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    nodes_of,
    root_at,
    split,
    verify_consistency,
    verify_inclusion,
)

# The eight entries that Certificate Transparency implementations have shared since RFC 6962, and the roots over the
# first n of them.
CT_ENTRIES = [
    bytes.fromhex(entry)
    for entry in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
CT_ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def naive_root(leaves: list[bytes]) -> bytes:
    """MTH(D), as RFC 9162 section 2.1.1 defines it."""
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return leaves[0]
    k = largest_power_below(len(leaves))
    return hashlib.sha256(b"\x01" + naive_root(leaves[:k]) + naive_root(leaves[k:])).digest()


def naive_path(m: int, leaves: list[bytes]) -> list[bytes]:
    """PATH(m, D), section 2.1.3.1."""
    if len(leaves) == 1:
        return []
    k = largest_power_below(len(leaves))
    if m < k:
        return [*naive_path(m, leaves[:k]), naive_root(leaves[k:])]
    return [*naive_path(m - k, leaves[k:]), naive_root(leaves[:k])]


def naive_subproof(m: int, leaves: list[bytes], *, known: bool) -> list[bytes]:
    """SUBPROOF(m, D, b), section 2.1.4.1."""
    if m == len(leaves):
        return [] if known else [naive_root(leaves)]
    k = largest_power_below(len(leaves))
    if m <= k:
        return [*naive_subproof(m, leaves[:k], known=known), naive_root(leaves[k:])]
    return [*naive_subproof(m - k, leaves[k:], known=False), naive_root(leaves[:k])]


def largest_power_below(n: int) -> int:
    k = 1
    while k * 2 < n:
        k *= 2
    return k


def leaves_of(size: int) -> list[bytes]:
    return [leaf_hash(b"%d" % number) for number in range(size)]


def nodes_over(leaves: list[bytes]):
    """Complete subtrees straight from the leaves."""
    return lambda height, index: naive_root(leaves[index << height : (index + 1) << height])


def test_roots_that_everybody_agrees_on() -> None:
    frontier = Frontier()
    for entry, root in zip([None, *CT_ENTRIES], CT_ROOTS, strict=True):
        if entry is not None:
            frontier.append(leaf_hash(entry))
        assert frontier.root().hex() == root
    assert EMPTY_ROOT.hex() == CT_ROOTS[0]


def test_every_root_and_proof_up_to_70_leaves() -> None:
    leaves = leaves_of(70)
    nodes, frontier = nodes_over(leaves), Frontier()
    for size in range(1, 71):
        frontier.append(leaves[size - 1])
        root = naive_root(leaves[:size])
        assert frontier.root() == root_at(size, nodes) == root
        assert Frontier.decode(size, frontier.encode()).root() == root
        for index in range(size):
            proof = inclusion_proof(index, size, nodes)
            assert proof == naive_path(index, leaves[:size])
            verify_inclusion(index=index, size=size, leaf=leaves[index], proof=proof, root=root)
        for old in range(1, size + 1):
            proof = consistency_proof(old, size, nodes)
            assert proof == naive_subproof(old, leaves[:size], known=True)
            verify_consistency(size1=old, root1=naive_root(leaves[:old]), size2=size, root2=root, proof=proof)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_changed_inclusion_proof_is_refused(data: st.DataObject) -> None:
    leaves = leaves_of(data.draw(st.integers(1, 40)))
    size, nodes = len(leaves), nodes_over(leaves)
    index = data.draw(st.integers(0, size - 1))
    good = {"index": index, "size": size, "leaf": leaves[index], "root": naive_root(leaves)}
    proof = inclusion_proof(index, size, nodes)
    change = data.draw(st.sampled_from(["leaf", "root", "index", "bit", "drop", "add", "length"]))
    bad = dict(good)
    if change in ("leaf", "root"):
        bad[change] = leaf_hash(b"other")
    elif change == "index":
        bad["index"] = data.draw(st.integers(-1, size).filter(lambda other: other != index))
    elif change == "length":
        bad["leaf"] = good["leaf"] + b"x"
    elif change == "add":
        proof = [*proof, leaf_hash(b"x")]
    elif proof:
        place = data.draw(st.integers(0, len(proof) - 1))
        flipped = bytes([proof[place][0] ^ 1]) + proof[place][1:]
        proof = [*proof[:place], *([flipped] if change == "bit" else []), *proof[place + 1 :]]
    else:
        bad["root"] = leaf_hash(b"other")
    with pytest.raises(ProofInvalid):
        verify_inclusion(**bad, proof=proof)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_changed_consistency_proof_is_refused(data: st.DataObject) -> None:
    leaves = leaves_of(data.draw(st.integers(2, 40)))
    size2 = len(leaves)
    size1 = data.draw(st.integers(1, size2))
    fork = [*leaves[: size1 - 1], leaf_hash(b"other")]
    proof = consistency_proof(size1, size2, nodes_over(leaves))
    root1, root2 = naive_root(leaves[:size1]), naive_root(leaves)
    for old, new, hashes in (
        (naive_root(fork), root2, proof),
        (root1, leaf_hash(b"other"), proof),
        (root1, root2, [*proof, leaf_hash(b"x")]),
        (root1, root2[:-1], proof),
        *((root1, root2, [*proof[:n], leaf_hash(b"x"), *proof[n + 1 :]]) for n in range(len(proof))),
        *((root1, root2, [*proof[:n], *proof[n + 1 :]]) for n in range(len(proof))),
    ):
        with pytest.raises(ProofInvalid):
            verify_consistency(size1=size1, root1=old, size2=size2, root2=new, proof=hashes)


def test_the_empty_tree_is_consistent_with_nothing() -> None:
    leaves = leaves_of(3)
    for size1 in (0, -1, 4):
        with pytest.raises(ProofInvalid):
            verify_consistency(size1=size1, root1=EMPTY_ROOT, size2=3, root2=naive_root(leaves), proof=[])
        with pytest.raises(ValueError, match="no consistency proof"):
            consistency_proof(size1, 3, nodes_over(leaves))


def test_an_inner_node_is_no_leaf() -> None:
    leaves = leaves_of(4)
    inner = naive_root(leaves[:2])
    with pytest.raises(ProofInvalid):
        verify_inclusion(index=0, size=2, leaf=leaf_hash(leaves[0] + leaves[1]), proof=[], root=inner)
    assert leaf_hash(leaves[0] + leaves[1]) != inner


def test_no_proof_for_a_leaf_that_is_not_there() -> None:
    for index in (-1, 3, 10**12):
        with pytest.raises(ValueError, match="no leaf"):
            inclusion_proof(index, 3, nodes_over(leaves_of(3)))
        with pytest.raises(ProofInvalid):
            verify_inclusion(index=index, size=3, leaf=leaves_of(1)[0], proof=[], root=EMPTY_ROOT)


@pytest.mark.parametrize("size", [1, 255, 256, 257, 511, 512, 700])
def test_tiles_give_the_same_nodes(size: int) -> None:
    leaves = leaves_of(size)
    full = [complete_root(leaves[n : n + TILE_WIDTH]) for n in range(0, size - TILE_WIDTH + 1, TILE_WIDTH)]
    levels = [leaves, full]
    nodes = nodes_of(lambda level, index: b"".join(levels[level][index * TILE_WIDTH : (index + 1) * TILE_WIDTH]))
    assert root_at(size, nodes) == naive_root(leaves)
    for index in {0, size // 2, size - 1}:
        proof = inclusion_proof(index, size, nodes)
        verify_inclusion(index=index, size=size, leaf=leaves[index], proof=proof, root=naive_root(leaves))
    with pytest.raises(LookupError):
        nodes(0, size)


def test_what_cannot_be_a_frontier() -> None:
    for size, joined in ((1, b""), (3, b"x" * HASH_SIZE), (1, b"x" * 31), (0, b"x" * HASH_SIZE)):
        with pytest.raises(ValueError, match=r"frontier|whole"):
            Frontier.decode(size, joined)
    with pytest.raises(ValueError, match="complete"):
        complete_root(leaves_of(3))
    with pytest.raises(ValueError, match="whole"):
        split(b"x")


VECTORS = os.environ.get("MERKLE_TESTDATA")


@pytest.mark.skipif(
    VECTORS is None, reason="MERKLE_TESTDATA does not name a checkout of transparency-dev/merkle/testdata"
)
@pytest.mark.parametrize(("kind", "number"), [("inclusion", 98), ("consistency", 98)])
def test_published_proof_vectors(kind: str, number: int) -> None:
    files = sorted((Path(str(VECTORS)) / kind).rglob("*.json"))
    assert len(files) == number
    vectors = {str(file): json.loads(file.read_text()) for file in files}
    assert [name for name, vector in vectors.items() if accepts(vector) is vector["wantErr"]] == []


def accepts(vector: dict) -> bool:
    proof = [base64.b64decode(item) for item in vector["proof"] or []]
    decode = lambda name: base64.b64decode(vector[name] or "")
    try:
        if "leafIdx" in vector:
            verify_inclusion(
                index=vector["leafIdx"],
                size=vector["treeSize"],
                leaf=decode("leafHash"),
                proof=proof,
                root=decode("root"),
            )
        else:
            verify_consistency(
                size1=vector["size1"], root1=decode("root1"), size2=vector["size2"], root2=decode("root2"), proof=proof
            )
    except ProofInvalid:
        return False
    return True
