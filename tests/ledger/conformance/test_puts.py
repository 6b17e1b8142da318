"""Writes that a store may put off, and claims that it may take on trust: what commands see is as if it did neither."""

from collections.abc import Callable
from typing import Any

import pytest

from broker.ledger import Ledger, Tx
from broker.ledger.commands.replay import spend
from broker.model import Proof
from tests.ledger.conformance.conftest import Store
from tests.ledger.kit import Do, Note, Poison, count

_TEXT = "INSERT INTO texts (ref, salt, text) VALUES (?, ?, ?)"


def proof(made: Store, jti: str) -> Proof:
    return Proof("https://idp.example.com", jti, made.clock() + 60_000)


def spends(made: Store, *jtis: str) -> Do:
    """Spend proofs, and say of each whether it was unspent."""
    return Do(lambda tx: [spend(tx, proof(made, jti)) for jti in jtis])


def texts(tx: Tx) -> list[tuple[Any, ...]]:
    return tx.execute("SELECT ref, text FROM texts ORDER BY ref").fetchall()


def test_a_proof_is_spent_once_wherever_its_twin_is(made: Store) -> None:
    ledger, other = made.open(), made.open()
    assert ledger.commit([spends(made, "a"), spends(made, "b", "b"), spends(made, "a")]) == [
        [True],
        [True, False],
        [False],
    ]
    assert other.commit([spends(made, name) for name in "abcdc"]) == [[False], [False], [True], [True], [False]]
    assert count(ledger, "proofs") == 4


def test_a_spent_proof_in_a_batch_costs_the_others_nothing(made: Store) -> None:
    ledger = made.open()
    ledger.commit([spends(made, "old")])
    outcomes = ledger.commit([Note("one"), spends(made, "old"), Note("two"), spends(made, "new")])
    assert outcomes == [1, [False], 2, [True]]
    assert made.verify().sound


def test_beside_a_command_that_raises_claims_are_still_told_apart(made: Store) -> None:
    ledger = made.open()
    ledger.commit([spends(made, "old")])
    poison, *others = ledger.commit([Poison(), spends(made, "old", "new"), spends(made, "new")])
    assert isinstance(poison, RuntimeError)
    assert others == [[False, True], [False]]


def test_what_was_put_is_read(ledger: Ledger) -> None:
    def put_and_read(tx: Tx) -> Any:
        for ref in ("x", "y"):
            tx.put(_TEXT, (ref, b"\x00\xff", f"'{ref}' \\ \N{SNOWMAN}"))
        return texts(tx)

    first, second = ledger.commit([Do(put_and_read), Do(texts)])
    assert first == second == [("x", "'x' \\ \N{SNOWMAN}"), ("y", "'y' \\ \N{SNOWMAN}")]
    with ledger.read() as reader:
        assert bytes(reader.execute("SELECT salt FROM texts WHERE ref = ?", ("x",)).fetchone()[0]) == b"\x00\xff"


def test_writes_of_one_table_keep_their_order(ledger: Ledger) -> None:
    def write(tx: Tx) -> Any:
        tx.put(_TEXT, ("x", b"", "first"))
        tx.put("UPDATE texts SET text = ? WHERE ref = ?", ("second", "x"))
        tx.put(_TEXT, ("y", b"", "third"))
        tx.put("UPDATE texts SET text = ? WHERE ref = ?", ("fourth", "y"))
        tx.put("INSERT INTO texts (ref, salt, text) SELECT ref || ?, salt, text FROM texts WHERE ref = ?", ("!", "y"))
        tx.execute("DELETE FROM texts WHERE ref = ?", ("x",))

    ledger.commit([Do(write)])
    (found,) = ledger.commit([Do(texts)])
    assert found == [("y", "fourth"), ("y!", "fourth")]


@pytest.mark.parametrize(
    "bad",
    [
        lambda tx: tx.put(_TEXT, ("taken", b"", "twice")),
        lambda tx: tx.put(_TEXT, ("other", b"", None)),
        lambda tx: tx.put("UPDATE texts SET text = ? WHERE ref = ?", (None, "taken")),
    ],
)
def test_a_write_that_cannot_be_made_fails_its_command_alone(ledger: Ledger, bad: Callable[[Tx], None]) -> None:
    ledger.commit([Do(lambda tx: tx.put(_TEXT, ("taken", b"", "once")))])
    before, failed, after = ledger.commit([Note("before"), Do(bad), Note("after")])
    assert (before, after) == (1, 2)
    assert isinstance(failed, Exception)
    (found,) = ledger.commit([Do(texts)])
    assert found == [("taken", "once")]
