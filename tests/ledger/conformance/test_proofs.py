"""Proofs and checkpoints as they are served, checked by somebody who has nothing but the answer."""

import base64
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker.errors import Malformed, NotFound
from broker.ledger import Ledger, LedgerCorrupt
from broker.ledger.checkpoint import NoteInvalid, VerifierKey, open_checkpoint, unverified_checkpoint
from broker.ledger.events import EventMalformed
from broker.ledger.merkle import ProofInvalid, verify_consistency
from broker.ledger.proofs import Proofs
from broker.ledger.verify import verify_event_proof
from tests.ledger.conformance.conftest import Store
from tests.ledger.kit import ORIGIN, Note, count


def data_at(ledger: Ledger, proofs: Proofs, seq: int) -> bytes:
    with ledger.read() as reader:
        return proofs.event(reader, seq).data


def test_an_event_is_followed_to_a_signed_checkpoint(made: Store, ledger: Ledger) -> None:
    ledger.commit([Note(str(number)) for number in range(700)])
    proofs = made.proofs(ledger)
    for seq in (0, 1, 255, 256, 511, 512, 699, 700):
        data, proof = data_at(ledger, proofs, seq), proofs.inclusion(seq)
        event = verify_event_proof(data, proof, keys=[made.verifier_key], origin=ORIGIN)
        assert (event.seq, proof["size"]) == (seq, 701)
    assert count(ledger, "checkpoints") == 1


def test_a_proof_for_anything_else_is_refused(made: Store, ledger: Ledger) -> None:
    ledger.commit([Note(str(number)) for number in range(10)])
    proofs = made.proofs(ledger)
    data, other, proof = data_at(ledger, proofs, 4), data_at(ledger, proofs, 5), proofs.inclusion(4)
    ledger.commit([Note()])
    made.clock.now += 5000
    ledger.commit([Note()])
    later = proofs.inclusion(4)
    keys = [made.verifier_key]
    stranger = [VerifierKey.of(ORIGIN, Ed25519PrivateKey.generate())]
    wrong: list[tuple[bytes, dict[str, Any], list[VerifierKey], str]] = [
        (other, proof, keys, ORIGIN),
        (data.replace(b'"why":"3"', b'"why":"4"'), proof, keys, ORIGIN),
        (data, proofs.inclusion(5), keys, ORIGIN),
        (data, {**proof, "proof": later["proof"]}, keys, ORIGIN),
        (data, {**proof, "proof": proof["proof"][:-1]}, keys, ORIGIN),
        (data, {**proof, "proof": [base64.b64encode(b"short").decode()]}, keys, ORIGIN),
        (data, {**proof, "checkpoint": later["checkpoint"]}, keys, ORIGIN),
        (data, {**proof, "seq": 5}, keys, ORIGIN),
        (data, proof, stranger, ORIGIN),
        (data, proof, keys, "ledger.example/other"),
        (b"junk", proof, keys, ORIGIN),
    ]
    verify_event_proof(data, proof, keys=keys, origin=ORIGIN)
    verify_event_proof(data, later, keys=keys, origin=ORIGIN)
    for bytes_, answer, known, origin in wrong:
        with pytest.raises((ProofInvalid, NoteInvalid, EventMalformed)):
            verify_event_proof(bytes_, answer, keys=known, origin=origin)


def test_any_two_sizes_are_consistent(made: Store, ledger: Ledger) -> None:
    ledger.commit([Note()] * 600)
    proofs = made.proofs(ledger)
    for first, second in ((1, 1), (1, 601), (256, 512), (255, 257), (300, 601), (601, 601)):
        answer = proofs.consistency(first, second)
        verify_consistency(
            size1=first,
            root1=base64.b64decode(answer["root1"]),
            size2=second,
            root2=base64.b64decode(answer["root2"]),
            proof=[base64.b64decode(item) for item in answer["proof"]],
        )
    newest = proofs.consistency(5)
    checkpoint = open_checkpoint(newest["checkpoint"], keys=[made.verifier_key])
    assert (newest["to"], base64.b64decode(newest["root2"])) == (601, checkpoint.root)


def test_positions_and_sizes_that_are_not_there(made: Store, ledger: Ledger) -> None:
    ledger.commit([Note()] * 3)
    proofs = made.proofs(ledger)
    for seq, size in ((-1, None), (4, None), (10**30, None), (1 << 63, None), (3, 3), (0, 5), (0, 0), (0, -1)):
        with pytest.raises(NotFound):
            proofs.inclusion(seq, size)
    for first, second in ((0, None), (-1, 3), (3, 2), (0, 0)):
        with pytest.raises(Malformed):
            proofs.consistency(first, second)
    for first, second in ((1, 5), (10**30, 10**31)):
        with pytest.raises(NotFound):
            proofs.consistency(first, second)
    for seq in (-1, 4, 1 << 70):
        with ledger.read() as reader, pytest.raises(NotFound):
            proofs.event(reader, seq)


def test_checkpoints_follow_the_ledger_but_are_not_signed_on_every_request(made: Store, ledger: Ledger) -> None:
    proofs = made.proofs(ledger)
    sizes = []
    for _ in range(3):
        ledger.commit([Note()])
        sizes.append(unverified_checkpoint(proofs.checkpoint()).size)
    made.clock.now += 1000
    ledger.commit([Note()])
    sizes.append(unverified_checkpoint(proofs.checkpoint()).size)
    sizes.append(unverified_checkpoint(made.proofs(made.open()).checkpoint()).size)
    assert sizes == [2, 2, 2, 5, 5]
    ledger.commit([Note()])
    assert unverified_checkpoint(proofs.checkpoint(covering=5)).size == 6
    assert made.verify(keys=[made.verifier_key]).checkpoints == 3


def test_a_checkpoint_writes_no_event(made: Store, ledger: Ledger) -> None:
    made.proofs(ledger).checkpoint()
    assert ledger.head.size == 1


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE events SET leaf = {zeros} WHERE seq = 300",
        "UPDATE tiles SET hashes = {zeros} WHERE level = 1",
        "DELETE FROM tiles WHERE level = 1",
        "UPDATE head SET frontier = {six_zeros}",
        "UPDATE checkpoints SET note = replace(note, '\n301\n', '\n299\n')",
        "UPDATE checkpoints SET note = 'junk'",
    ],
)
def test_nothing_is_signed_over_a_tree_that_contradicts_itself(made: Store, damage: str) -> None:
    ledger = made.open()
    ledger.commit([Note()] * 300)
    made.proofs(ledger).checkpoint()
    ledger.commit([Note()])
    made.clock.now += 5000
    ledger.commit([Note()])
    made.close()
    made.behind(damage.format(zeros=made.blob(bytes(32)), six_zeros=made.blob(bytes(6 * 32))))
    ledger = made.open()
    with pytest.raises(LedgerCorrupt):
        made.proofs(ledger).checkpoint()
    assert made.stored("SELECT count(*) FROM checkpoints") == 1


def test_this_process_remembers_what_it_signed(made: Store) -> None:
    """Even when the stored checkpoint is gone, nothing is signed that contradicts it."""
    ledger = made.open()
    ledger.commit([Note()] * 3)
    proofs = made.proofs(ledger)
    proofs.checkpoint()
    forged = unverified_checkpoint(proofs.checkpoint())
    proofs._last = type(forged)(forged.origin, forged.size, bytes(32))
    made.clock.now += 5000
    ledger.commit([Note()])
    with pytest.raises(LedgerCorrupt, match="nothing is signed"):
        proofs.checkpoint()


def test_a_damaged_tile_is_not_proven_with(made: Store, ledger: Ledger) -> None:
    ledger.commit([Note()] * 600)
    proofs = made.proofs(ledger)
    proofs.checkpoint()
    for damage in (
        f"UPDATE tiles SET hashes = {made.blob(bytes(8192))} WHERE level = 0",
        f"UPDATE tiles SET hashes = {made.blob(bytes(8192))}",
    ):
        made.behind(damage)
        with pytest.raises(LedgerCorrupt, match="contradicts"):
            proofs.inclusion(7)
    made.behind("DELETE FROM tiles WHERE level = 1")
    with pytest.raises(LedgerCorrupt, match="hole"):
        proofs.consistency(5, 600)


def test_a_changed_event_is_not_proven(made: Store, ledger: Ledger) -> None:
    ledger.commit([Note()] * 5)
    proofs = made.proofs(ledger)
    proofs.checkpoint()
    changed = made.blob(data_at(ledger, proofs, 3) + b" ")
    made.behind(f"UPDATE events SET bytes = {changed} WHERE seq = 3")
    made.behind(f"UPDATE events SET bytes = {made.blob(bytes(1))} WHERE seq = 4")
    with pytest.raises(LedgerCorrupt, match="contradicts"):
        proofs.inclusion(3)
    with ledger.read() as reader, pytest.raises(LedgerCorrupt, match="Position 4"):
        proofs.event(reader, 4)
