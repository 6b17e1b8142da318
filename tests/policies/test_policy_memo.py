"""Remembered decisions are the engine's own, whatever was asked before."""

from dataclasses import fields, replace

from hypothesis import given
from hypothesis import strategies as st

import policies
from policies import BASELINE, Action, Agent, Cause, Decision, Never, Parameter, Request, Resource, Vocabulary
from policies.bundle import load_directory
from policies.engine import Engine
from policies.memo import Remembered

AMOUNT = Parameter(type="integer", required=True)
VOCABULARY = Vocabulary(
    agents={"dispute-bot": Agent(owner="finance-platform"), "other-bot": Agent(owner="finance-platform")},
    resources={
        name: Resource(system=name, audience=f"https://{name}.example", owner="finance-platform")
        for name in ("invoices", "credits", "payments")
    },
    actions={
        "invoices:read": Action(resource="invoices", access="read"),
        "credits:propose": Action(
            resource="credits",
            access="write",
            parameters={"invoice": Parameter(type="string", required=True), "amount_cents": AMOUNT},
        ),
        "payments:transfer": Action(resource="payments", access="write", parameters={"amount_cents": AMOUNT}),
    },
)
ENGINE = Engine(bundle=load_directory(BASELINE, VOCABULARY))

ANYTHING = st.one_of(st.integers(-1, 2), st.booleans(), st.sampled_from(["1", "true", ""]), st.just(1.0))
REQUESTS = st.builds(
    Request,
    agent=st.sampled_from(["dispute-bot", "other-bot", "nobody"]),
    resource=st.sampled_from(["invoices", "credits", "payments"]),
    action=st.sampled_from([*VOCABULARY.actions, "no:such"]),
    parameters=st.dictionaries(st.sampled_from(["invoice", "amount_cents", "__entity"]), ANYTHING, max_size=3),
    trigger=st.sampled_from(["manual", "user", "invented"]),
    delegated=st.one_of(st.booleans(), st.integers(0, 1)),
    on_behalf=st.one_of(st.booleans(), st.integers(0, 1)),
    depth=st.one_of(st.integers(0, 1), st.booleans()),
    trust=st.just("idp"),
    workload=st.sampled_from(["oidc", "spiffe"]),
)


@given(st.lists(st.lists(REQUESTS, max_size=6), max_size=6), st.integers(1, 5))
def test_what_is_remembered_is_what_the_engine_says(batches: list[list[Request]], limit: int) -> None:
    remembered = Remembered(ENGINE, limit=limit)
    for batch in batches:
        assert remembered.decide_batch(batch) == ENGINE.decide_batch(batch)


class Counting:
    def __init__(self, answer: Decision) -> None:
        self.asked: list[Request] = []
        self._answer = answer

    def decide_batch(self, requests: list[Request]) -> list[Decision]:
        self.asked += requests
        return [self._answer for _ in requests]


READ = Request(agent="dispute-bot", resource="invoices", action="invoices:read", trust="idp", workload="oidc")


def test_the_same_request_is_asked_once_and_another_never_stands_for_it() -> None:
    engine = Counting(policies.Automatic(bundle="b", policies=("p",)))
    remembered = Remembered(engine)
    remembered.decide_batch([READ])
    remembered.decide_batch([READ])
    assert len(engine.asked) == 1
    others = {"parameters": {"a": 1}, "delegated": True, "on_behalf": True, "depth": 1}
    for field in fields(Request):
        changed = replace(READ, **{field.name: others.get(field.name, "another")})
        before = len(engine.asked)
        remembered.decide_batch([changed])
        assert len(engine.asked) == before + 1, field.name


def test_a_failure_is_not_remembered() -> None:
    engine = Counting(Never(bundle="b", policies=(), cause=Cause.ERROR, reasons=("failed",)))
    remembered = Remembered(engine)
    remembered.decide_batch([READ])
    remembered.decide_batch([READ])
    assert len(engine.asked) == 2
