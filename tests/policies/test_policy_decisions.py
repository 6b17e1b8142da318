"""Three outcomes, and the ways in which Cedar would say Allow when it must not."""

import cedarpy
import pytest
from policy_kit import PERMIT_ALL, VOCABULARY, ask, engine

import policies.bundle
from policies import Action as PolicyAction
from policies import Agent, Approval, Automatic, Cause, Gate, Never, Parameter, Vocabulary, as_dict, combine
from policies.engine import Engine
from policies.schema import INT_MAX, INT_MIN, encode

GATE = (
    '@id("big") @approvers("finance-oncall") @quorum("2") @max_age("15m") @reason("ask") '
    'forbid(principal, action == Action::"credits:propose", resource) when { context.parameters.amount_cents > 5000 };'
)
NEVER = (
    '@id("no-transfer") @reason("No agent moves money.") '
    'forbid(principal, action == Action::"payments:transfer", resource);'
)


def test_the_three_outcomes_with_their_policies():
    deciding = engine(PERMIT_ALL, GATE, NEVER)
    bundle = deciding.bundle.hash
    assert deciding.decide(ask()) == Automatic(bundle=bundle, policies=("all",))
    assert deciding.decide(ask(amount_cents=5001)) == Approval(
        bundle=bundle, policies=("all", "big"), gates=(Gate("big", "finance-oncall", 2, 900, "ask"),)
    )
    assert deciding.decide(ask("payments:transfer")) == Never(
        bundle=bundle, policies=("no-transfer",), cause=Cause.FORBIDDEN, reasons=("No agent moves money.",)
    )


def test_without_a_permit_everything_is_never_and_a_gate_does_not_change_that():
    for deciding in (engine(), engine(gates=GATE), engine(nevers=NEVER)):
        decision = deciding.decide(ask(amount_cents=9999))
        assert isinstance(decision, Never)
        assert (decision.cause, decision.policies) == (Cause.NOT_PERMITTED, ())


def test_a_never_beats_a_gate_and_names_only_itself():
    decision = engine(PERMIT_ALL, GATE, '@id("n") forbid(principal, action, resource);').decide(ask(amount_cents=9999))
    assert isinstance(decision, Never)
    assert (decision.cause, decision.policies, decision.reasons) == (Cause.FORBIDDEN, ("n",), ("forbidden by n",))


def test_every_gate_that_fires_is_named():
    second = '@id("write") @approvers("dba") forbid(principal, action in Action::"write", resource);'
    decision = engine(PERMIT_ALL, GATE + second).decide(ask(amount_cents=5001))
    assert isinstance(decision, Approval)
    assert [gate.id for gate in decision.gates] == ["big", "write"]


# --- Cedar fails open: each row says Allow when asked plainly ---------------------------------------------------------

FAIL_OPEN = {
    "attribute missing": 'context.parameters.reason == "error"',
    "type confusion": "context.parameters.invoice > 5",
    "overflow": f"context.parameters.amount_cents * {INT_MAX} > 5",
    "unknown attribute of the agent": "principal.suspended",
    "entity absent": 'Agent::"nobody".tier == 1',
}


@pytest.mark.parametrize("folder", ["gates", "nevers"])
@pytest.mark.parametrize("condition", FAIL_OPEN.values(), ids=FAIL_OPEN.keys())
def test_an_erroring_forbid_denies(monkeypatch, folder, condition):
    monkeypatch.setattr(policies.bundle, "_validate", lambda *_: [])  # what validation catches, the engine must too
    monkeypatch.setattr(policies.bundle, "_self_test", lambda _: None)
    forbid = f'@id("f") @approvers("x") forbid(principal, action, resource) when {{ {condition} }};'
    deciding = engine(PERMIT_ALL, **{folder: forbid if folder == "gates" else forbid.replace('@approvers("x") ', "")})
    request = ask(amount_cents=3)

    compiled = deciding.bundle.compiled
    plain = cedarpy.is_authorized(encode(request, VOCABULARY), PERMIT_ALL + forbid, compiled.entities, compiled.schema)
    assert plain.allowed, "Cedar no longer fails open here: good, and this test can say so"

    decision = deciding.decide(request)
    assert isinstance(decision, Never)
    assert decision.cause is Cause.ERROR
    assert decision.policies == ()
    assert [error.split(":")[0] for error in decision.errors] == ["f"]


def test_an_erroring_permit_denies_even_where_another_permit_allows():
    overflow = (
        '@id("p") permit(principal, action == Action::"credits:propose", resource) '
        f"when {{ context.parameters.amount_cents * {INT_MAX} > 5 }};"
    )
    decision = engine(PERMIT_ALL + overflow).decide(ask(amount_cents=3))
    assert isinstance(decision, Never)
    assert decision.cause is Cause.ERROR


def test_a_group_that_does_not_exist_does_not_load():
    for group in ('Owner::"blocked"', 'Agent::"blocked"', 'Group::"blocked"'):
        with pytest.raises(policies.PolicyInvalid, match=r"blocked|Group"):
            engine(f'@id("p") permit(principal, action, resource) unless {{ principal in {group} }};')


@pytest.mark.parametrize(
    "smuggled", [{"__entity": {"type": "Agent", "id": "ops-bot"}}, {"__extn": {"fn": "ip", "arg": "::1"}}]
)
def test_agent_json_never_reaches_the_type_system(smuggled):
    deciding = engine(PERMIT_ALL)
    for given in (
        {"invoice": smuggled},
        {"reason": [smuggled]},
        {"invoice": {"a": smuggled}},
        smuggled,
        {"__entity": "x"},
    ):
        decision = deciding.decide(ask(parameters={"invoice": "i", "amount_cents": 1} | given))
        assert isinstance(decision, Never)
        assert decision.cause is Cause.REQUEST


def test_an_engine_that_raises_or_does_not_decide_denies(monkeypatch):
    deciding = engine(PERMIT_ALL)
    good, bad = ask(), ask(invoice="poison")
    real = cedarpy.is_authorized_batch

    def poisoned(requests, *rest):
        if any("poison" in request["context"] for request in requests):
            raise KeyError("principal")
        return real(requests, *rest)

    monkeypatch.setattr(cedarpy, "is_authorized_batch", poisoned)
    first, second, third = deciding.decide_batch([good, bad, good])
    assert isinstance(first, Automatic)
    assert isinstance(second, Never)
    assert second.cause is Cause.ERROR
    assert third == first

    for answer in (
        {"decision": "NoDecision"},
        {"decision": "NoDecision", "diagnostics": {"errors": ["x"]}},
        {"decision": "Allow", "diagnostics": {"reason": ["policy0"], "errors": ["policy1 failed"]}},
        {"decision": "Allow", "diagnostics": {"reason": [], "errors": []}},
        {"decision": "Allow", "diagnostics": {"reason": ["policy7"], "errors": []}},
    ):
        monkeypatch.setattr(cedarpy, "is_authorized_batch", lambda r, *_, a=answer: [cedarpy.AuthzResult(a)] * len(r))
        decision = deciding.decide(good)
        assert isinstance(decision, Never)
        assert decision.cause is Cause.ERROR
    monkeypatch.setattr(cedarpy, "is_authorized_batch", lambda *_: [])
    assert deciding.decide(good).outcome == "never"


# --- Requests that do not fit -----------------------------------------------------------------------------------------

REFUSED = {
    "unknown action": ask("credits:erase"),
    "action group as action": ask("write"),
    "unknown agent": ask(agent="nobody"),
    "owner as agent": ask(agent="finance"),
    "unknown resource": ask(resource="ledger"),
    "another resource's action": ask(resource="payments"),
    "escaped id": ask(agent="dispute\\u{2d}bot"),
    "id with a trailing newline": ask(agent="dispute-bot\n"),
    "id with a comment": ask(agent='dispute-bot" // '),
    "unknown trigger": ask(trigger="usr"),
    "undeclared parameter": ask(note="x"),
    "missing parameter": ask(parameters={"invoice": "i"}),
    "string for integer": ask(amount_cents="100"),
    "boolean for integer": ask(amount_cents=True),
    "float for integer": ask(amount_cents=1.0),
    "integer for boolean": ask(urgent=1),
    "integer for string": ask(invoice=1),
    "null": ask(invoice=None),
    "too large": ask(amount_cents=INT_MAX + 1),
    "too small": ask(amount_cents=INT_MIN - 1),
    "outside the closed set": ask(reason="Goodwill"),
    "too long": ask(invoice="x" * 4097),
    "lone surrogate": ask(invoice="\ud800"),
    "list for an id": ask(agent=["dispute-bot"]),
    "unhashable action": ask(action="credits:propose", resource={}),
}


@pytest.mark.parametrize("request_", REFUSED.values(), ids=REFUSED.keys())
def test_what_the_vocabulary_cannot_say_is_never_and_hurts_no_neighbour(request_):
    deciding = engine(PERMIT_ALL)
    before, decision, after = deciding.decide_batch([ask(), request_, ask()])
    assert isinstance(decision, Never)
    assert decision.cause is Cause.REQUEST
    assert decision.reasons
    assert isinstance(before, Automatic)
    assert before == after


def test_facts_of_a_wrong_type_are_caught_by_the_schema():
    for wrong in (
        {"depth": "0"},
        {"delegated": 1},
        {"trust": None},
        {"depth": INT_MAX + 1},
        {"workload": {"__entity": {}}},
    ):
        decision = engine(PERMIT_ALL).decide(ask(**wrong))
        assert isinstance(decision, Never)
        assert decision.cause in {Cause.ERROR, Cause.REQUEST}


def test_the_bounds_of_integers_are_usable():
    for amount in (INT_MAX, INT_MIN):
        assert engine(PERMIT_ALL).decide(ask(amount_cents=amount)).outcome == "automatic"


def test_text_is_compared_as_it_is():
    like = (
        '@id("p") permit(principal, action == Action::"credits:propose", resource) '
        'when { context.parameters.invoice like "INV-*" };'
    )
    deciding = engine(like)
    assert deciding.decide(ask(invoice="INV-*")).outcome == "automatic"
    for other in ("inv-1", "\u0399NV-1", "XINV-1", "INV\u20101", " INV-1"):
        assert deciding.decide(ask(invoice=other)).outcome == "never"


def test_hostile_names_are_only_names():
    names = [
        'a"b',
        "a\\b",
        'x"; permit(principal,action,resource); //',
        'Agent::"x"',
        "日本語",
        "a::b",
        "*",
        "__entity",
        "é",
    ]
    vocabulary = Vocabulary(
        agents={name: Agent(owner=name) for name in names},
        resources={name: policies.Resource(name, name, name, frozenset({name})) for name in names},
        actions={name: PolicyAction(name, "write", {"p": Parameter("string", values=(name,))}) for name in names},
    )
    quoted = names[0].replace('"', '\\"')
    permit = f'@id("p") permit(principal == Agent::"{quoted}", action, resource in System::"{quoted}");'
    deciding = engine(permit, vocabulary=vocabulary)
    for name in names:
        request = policies.Request(
            agent=name, resource=name, action=name, parameters={"p": name}, trust=name, workload=name
        )
        assert deciding.decide(request).outcome == ("automatic" if name == names[0] else "never")


# --- Combining --------------------------------------------------------------------------------------------------------


def test_the_worst_decision_wins_with_all_its_reasons():
    deciding = engine(PERMIT_ALL, GATE, NEVER)
    automatic, approval, never, unknown = deciding.decide_batch(
        [ask(), ask(amount_cents=9999), ask("payments:transfer"), ask("credits:erase")]
    )
    assert combine([automatic, automatic]) == automatic
    assert combine([automatic, approval]) == approval
    assert combine([approval, never, automatic]) == never
    both = combine([never, unknown])
    assert isinstance(both, Never)
    assert both.cause is Cause.REQUEST
    assert both.reasons == ("No agent moves money.", "the action is not registered")


def test_decisions_of_two_bundles_do_not_combine():
    one, other = engine(PERMIT_ALL).decide(ask()), engine(PERMIT_ALL, GATE).decide(ask())
    for decisions in ([], [one, other]):
        with pytest.raises(ValueError, match="bundle"):
            combine(decisions)


def test_a_decision_is_json():
    deciding = engine(PERMIT_ALL, GATE, NEVER)
    approval = as_dict(deciding.decide(ask(amount_cents=9999)))
    assert approval == {
        "outcome": "approval",
        "policies": ["all", "big"],
        "bundle": deciding.bundle.hash,
        "gates": [{"id": "big", "approvers": "finance-oncall", "quorum": 2, "max_age_s": 900, "reason": "ask"}],
    }
    assert as_dict(deciding.decide(ask()))["outcome"] == "automatic"
    assert as_dict(deciding.decide(ask("payments:transfer")))["cause"] == "forbidden"


def test_two_engines_of_one_bundle_agree():
    first = engine(PERMIT_ALL, GATE, NEVER)
    second = Engine(bundle=first.bundle, max_slices=1)
    asked = [ask(), ask("payments:transfer"), ask(amount_cents=9999), ask("invoices:read", "ops-bot")] * 3
    assert first.decide_batch(asked) == second.decide_batch(asked)
