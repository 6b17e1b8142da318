"""Laws that hold for every bundle and request."""

import contextlib
import dataclasses
import random

import cedarpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_kit import VOCABULARY, annotated, ask, bundles, policy_texts, requests

from policies import Approval, Automatic, Cause, Never, PolicyInvalid, combine
from policies.bundle import load_files
from policies.engine import Engine
from policies.schema import encode

FEW = settings(max_examples=60, deadline=None)
RANK = {"automatic": 0, "approval": 1, "never": 2}
batches = st.lists(requests(), min_size=1, max_size=6)


def engine(files):
    return Engine(bundle=load_files(files, VOCABULARY))


def plainly(bundle, request):
    """The definition of the three outcomes, word for word: both questions to all policies, parsed from the files."""
    order = list(bundle.policies.values())
    answers = []
    for policies in (order, [policy for policy in order if policy.folder != "gates"]):
        text = "\n".join(policy.text for policy in policies)
        compiled = bundle.compiled
        result = cedarpy.is_authorized(encode(request, VOCABULARY), text, compiled.entities, compiled.schema)
        if result.diagnostics.errors or result.decision is cedarpy.Decision.NoDecision:
            return ("never", "error", set())
        fired = {policies[int(reason.removeprefix("policy"))] for reason in result.diagnostics.reasons}
        answers.append((result.allowed, fired))
    (full, by_full), (scope, by_scope) = answers
    if full:
        return ("automatic", None, {policy.id for policy in by_full})
    if scope:
        return ("approval", None, {policy.id for policy in by_full | by_scope})
    nevers = {policy.id for policy in by_scope}
    return ("never", "forbidden" if nevers else "not_permitted", nevers)


@FEW
@given(bundles(), batches)
def test_slices_and_batches_answer_as_the_full_set_asked_one_by_one(files, asked):
    deciding = engine(files)
    for request, decision in zip(asked, deciding.decide_batch(asked), strict=True):
        cause = decision.cause.value if isinstance(decision, Never) else None
        assert (decision.outcome, cause, set(decision.policies)) == plainly(deciding.bundle, request)
        assert decision == deciding.decide(request)


@settings(max_examples=25, deadline=None)
@given(bundles(), requests())
def test_slices_hold_for_every_agent_and_action_at_once(files, model):
    deciding = engine(files)
    amounts = {"amount_cents": 1001, "invoice": "i"}
    asked = [
        dataclasses.replace(
            model,
            agent=agent,
            action=id_,
            resource=action.resource,
            parameters={name: value for name, value in amounts.items() if name in action.parameters},
        )
        for agent in VOCABULARY.agents
        for id_, action in VOCABULARY.actions.items()
    ]
    for request, decision in zip(asked, deciding.decide_batch(asked), strict=True):
        assert (decision.outcome, set(decision.policies)) == plainly(deciding.bundle, request)[::2]


@FEW
@given(bundles(), batches, st.sampled_from(["gates", "nevers"]), st.data())
def test_adding_a_gate_or_a_never_only_tightens(files, asked, folder, data):
    more = dict(files)
    more[f"{folder}/y.cedar"] = annotated(folder, "new", data.draw(policy_texts(folder)))
    for before, after in zip(engine(files).decide_batch(asked), engine(more).decide_batch(asked), strict=True):
        assert RANK[after.outcome] >= RANK[before.outcome]
        if isinstance(before, Approval) and isinstance(after, Approval):
            assert set(after.gates) >= set(before.gates)


@FEW
@given(bundles(), batches, st.data())
def test_adding_a_permit_only_loosens_unless_it_fails(files, asked, data):
    more = dict(files)
    more["permits/y.cedar"] = annotated("permits", "new", data.draw(policy_texts("permits")))
    for before, after in zip(engine(files).decide_batch(asked), engine(more).decide_batch(asked), strict=True):
        if not (isinstance(after, Never) and after.cause is Cause.ERROR):
            assert RANK[after.outcome] <= RANK[before.outcome]


@FEW
@given(bundles(), batches, st.randoms())
def test_answers_do_not_depend_on_order_company_or_layout(files, asked, rng: random.Random):
    first = engine(files)
    expected = first.decide_batch(asked)
    order = list(range(len(asked)))
    rng.shuffle(order)
    shuffled = first.decide_batch([asked[index] for index in order])
    assert [expected[index] for index in order] == shuffled

    scattered = {}  # each policy in a file of its own
    for policy in first.bundle.policies.values():
        scattered[f"{policy.folder}/{policy.id}.cedar"] = policy.text
    other = Engine(bundle=load_files(scattered, VOCABULARY), max_slices=1)
    for one, two in zip(expected, other.decide_batch(asked), strict=True):
        assert (one.outcome, one.policies) == (two.outcome, two.policies)


@FEW
@given(bundles(max_policies=3), st.lists(requests(), min_size=3, max_size=3))
def test_combining_is_a_semilattice(files, asked):
    a, b, c = engine(files).decide_batch(asked)
    assert combine([a]) == a
    assert combine([a, a]) == a
    assert combine([a, b]) == combine([b, a])
    assert combine([combine([a, b]), c]) == combine([a, combine([b, c])]) == combine([a, b, c])
    assert RANK[combine([a, b]).outcome] == max(RANK[a.outcome], RANK[b.outcome])


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.just("__entity"), inner, max_size=3)
        ),
        max_leaves=6,
    )
)
def test_no_json_in_a_parameter_raises_or_loosens(value):
    deciding = engine({"permits/p.cedar": '@id("p") permit(principal, action, resource);'})
    good, decision = deciding.decide_batch([ask(), ask(invoice=value)])
    assert isinstance(good, Automatic)
    assert decision.outcome in ({"automatic", "never"} if type(value) is str else {"never"})


@settings(max_examples=300, deadline=None)
@given(
    st.text(max_size=200)
    | st.lists(
        st.sampled_from(
            [
                '@id("a")',
                "permit",
                "forbid",
                "(principal, action, resource)",
                ";",
                "//",
                "\n",
                '"',
                "\\",
                "when {",
                "}",
                "true",
                "é",
                " ",
            ]
        ),
        max_size=25,
    ).map("".join)
)
def test_any_text_loads_or_is_refused(text):
    with contextlib.suppress(PolicyInvalid):
        bundle = load_files({"permits/p.cedar": text}, VOCABULARY)
        assert all(policy.text in text for policy in bundle.policies.values())


@pytest.mark.parametrize("limit", [1, 2, 1024])
def test_a_small_cache_of_slices_changes_nothing(limit):
    files = {"permits/p.cedar": '@id("p") permit(principal == Agent::"ops-bot", action in Action::"read", resource);'}
    bundle = load_files(files, VOCABULARY)
    asked = [ask(action, agent) for agent in VOCABULARY.agents for action in VOCABULARY.actions] * 2
    assert Engine(bundle=bundle, max_slices=limit).decide_batch(asked) == [
        Engine(bundle=bundle).decide(request) for request in asked
    ]
