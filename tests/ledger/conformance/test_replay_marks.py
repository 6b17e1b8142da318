"""Spent proofs are looked through in the order of their marks: none is passed over, and none is forgotten too soon."""

import random

from hypothesis import given
from hypothesis import strategies as st

from broker.ledger.commands.replay import REPLAY_GRACE_MS, ProofWindow, Prune, mark_of, proof_window, spend
from broker.model import Proof
from tests.ledger.conformance.conftest import Store
from tests.ledger.kit import Do, count

ISSUER = "https://idp.example.com"


def spends(jtis: list[str], expires: int) -> Do:
    return Do(lambda tx: [spend(tx, Proof(ISSUER, jti, expires)) for jti in jtis])


def round_of_windows(made: Store, number: int, now: int) -> list[ProofWindow]:
    ledger, windows, after = made.open(), [], b""
    while not windows or not windows[-1].ends:
        with ledger.read() as r:
            windows.append(proof_window(r, after, number, now))
        after = windows[-1].last
    return windows


def test_a_round_finds_every_expired_proof_and_forgets_no_other(made: Store) -> None:
    ledger, start = made.open(), made.clock()
    names = [f"{n:04x}" for n in range(500)]
    random.Random(7).shuffle(names)
    ledger.commit([spends(names[:300], start + 1_000), spends(names[300:], start + 50_000)])
    made.clock.now = now = start + 1_000 + REPLAY_GRACE_MS
    windows = round_of_windows(made, 64, now)
    assert sum(window.expired for window in windows) == 300
    assert len(windows) == 500 // 64 + 1
    ledger.commit([Prune(window.after, window.last) for window in windows])
    assert count(ledger, "proofs") == 200
    assert [window.expired for window in round_of_windows(made, 64, now)] == [0] * (200 // 64 + 1)
    assert not any(ledger.commit([spends(names[300:], start + 50_000)])[0])


def test_pruning_goes_by_the_ledgers_time_not_by_the_look(made: Store) -> None:
    ledger, start = made.open(), made.clock()
    ledger.commit([spends(["a"], start + 1_000)])
    (window,) = round_of_windows(made, 10, start + 10 * REPLAY_GRACE_MS)
    assert window.expired == 1
    ledger.commit([Prune(window.after, window.last)])  # the clock that looked was ahead
    assert count(ledger, "proofs") == 1


@given(st.lists(st.tuples(st.text(min_size=1, max_size=5), st.text(min_size=1, max_size=40)), unique=True, min_size=2))
def test_two_proofs_have_two_marks(pairs: list[tuple[str, str]]) -> None:
    assert len({mark_of(Proof(issuer, jti, 0)) for issuer, jti in pairs}) == len(pairs)


def test_marks_are_in_the_order_of_ids_that_begin_with_the_time() -> None:
    ids = [
        f"{time:012x}{random.Random(time).randbytes(10).hex()}" for time in range(1_800_000_000_000, 1_800_000_000_050)
    ]
    marks = [mark_of(Proof(ISSUER, jti, 0)) for jti in ids]
    assert marks == sorted(marks)
    assert {len(mark) for mark in marks} == {32}
