"""Random lives of a ledger: append, fail, reopen, sign, prove; at every step an auditor finds it sound."""

import itertools
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from broker.ledger.checkpoint import unverified_checkpoint
from broker.ledger.verify import verify_event_proof
from tests.ledger.conformance.conftest import Store
from tests.ledger.kit import ORIGIN, Made, Note, Poison
from tests.ledger.postgres import PostgresMade


class Lives(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.made = self.new()
        self.handles = [self.made.open(), self.made.open()]
        self.written = ["genesis"]  # the model: what each position holds
        self.kept: list[str] = []

    def new(self) -> Store:
        raise NotImplementedError

    def teardown(self) -> None:
        self.made.close()

    @rule(
        which=st.integers(0, 1),
        texts=st.lists(st.text(max_size=5).filter(str.isprintable), max_size=6),
        urgent=st.booleans(),
    )
    def append(self, which: int, texts: list[str], urgent: bool) -> None:
        expected = list(range(len(self.written), len(self.written) + len(texts)))
        assert self.handles[which].commit([Note(text) for text in texts], priority=urgent) == expected
        self.written += texts

    @rule(which=st.integers(0, 1), number=st.integers(200, 300))
    def append_much(self, which: int, number: int) -> None:
        self.handles[which].commit([Note("much")] * number)
        self.written += ["much"] * number

    @rule(which=st.integers(0, 1), place=st.integers(0, 2))
    def append_with_poison(self, which: int, place: int) -> None:
        commands = [Note("beside"), Note("beside")]
        commands.insert(place, Poison())
        results = self.handles[which].commit(commands)
        assert isinstance(results[place], RuntimeError)
        self.written += ["beside"] * 2

    @rule(step=st.integers(-5000, 5000))
    def clock_jumps(self, step: int) -> None:
        self.made.clock.now += step

    @rule()
    def reopen(self) -> None:
        self.made.close()
        self.handles = [self.made.open(), self.made.open()]

    @rule(which=st.integers(0, 1))
    def sign(self, which: int) -> None:
        self.kept.append(self.made.proofs(self.handles[which]).checkpoint())

    @rule(which=st.integers(0, 1), data=st.data())
    def prove(self, which: int, data: st.DataObject) -> None:
        seq = data.draw(st.integers(0, len(self.written) - 1))
        proofs = self.made.proofs(self.handles[which])
        with self.handles[which].read() as reader:
            event = proofs.event(reader, seq)
        verify_event_proof(event.data, proofs.inclusion(seq), keys=[self.made.verifier_key], origin=ORIGIN)
        assert event.body.get("why", "genesis") == self.written[seq]

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def compare(self, data: st.DataObject) -> None:
        old = unverified_checkpoint(data.draw(st.sampled_from(self.kept)))
        answer = self.made.proofs(self.handles[0]).consistency(old.size, len(self.written))
        assert answer["to"] == len(self.written)

    @invariant()
    def an_auditor_finds_it_sound(self) -> None:
        report = self.made.verify(keys=[self.made.verifier_key], kept=self.kept)
        assert report.sound, report.findings
        assert (report.size, report.kept) == (len(self.written), len(self.kept))


@pytest.mark.parametrize("store", ["sqlite", "postgres"])
def test_lives(request: pytest.FixtureRequest, tmp_path: Path, store: str) -> None:
    numbers = itertools.count()

    class OnOneStore(Lives):
        def new(self) -> Store:
            if store == "postgres":
                return PostgresMade(request.getfixturevalue("server"))
            return Made(tmp_path / f"{next(numbers)}.db")

    examples = 12 if store == "sqlite" else 3
    run_state_machine_as_test(
        OnOneStore, settings=settings(max_examples=examples, stateful_step_count=15, deadline=None)
    )
