"""The matrix, the cases and the baseline: what people read."""

import cedarpy
import pytest
from policy_kit import PERMIT_ALL, engine

import policies
from policies import Action, Agent, Parameter, PolicyInvalid, Resource, Vocabulary
from policies.bundle import load_directory
from policies.cases import read_cases, run_cases
from policies.engine import Engine
from policies.matrix import matrix, who_can

BASELINE = policies.BASELINE
DISPUTES = Vocabulary(
    agents={"dispute-bot": Agent("finance")},
    resources={
        "invoices": Resource("erp", "https://invoices.test", "finance", frozenset({"personal"})),
        "credits": Resource("erp", "https://credits.test", "finance"),
        "payments": Resource("bank", "https://payments.test", "finance"),
    },
    actions={
        "invoices:read": Action("invoices", "read"),
        "credits:propose": Action(
            "credits",
            "write",
            {"invoice": Parameter("string", required=True), "amount_cents": Parameter("integer", required=True)},
        ),
        "payments:transfer": Action("payments", "write", {"amount_cents": Parameter("integer", required=True)}),
    },
)

# --- Baseline ---------------------------------------------------------------------------------------------------------


def baseline():
    return Engine(bundle=load_directory(BASELINE, DISPUTES))


def test_the_baseline_passes_its_cases_and_they_exercise_all_of_it():
    cases = read_cases((BASELINE / "cases.yaml").read_text(), DISPUTES)
    report = run_cases(baseline(), cases)
    assert report.passed, report.as_dict()
    assert report.as_dict()["unexercised"] == []


def test_the_baseline_as_a_matrix():
    assert {cell.action: cell.text() for cell in matrix(baseline())} == {
        "credits:propose": "automatic [dispute-bot-proposes-credits]; "
        "approval by finance-oncall if amount_cents < 0 [credit-below-zero]; "
        "approval by finance-oncall if amount_cents > 5000 [credit-over-limit]",
        "invoices:read": "automatic [dispute-bot-reads-invoices]",
        "payments:transfer": "never [no-agent-moves-money]",
    }


# --- Matrix -----------------------------------------------------------------------------------------------------------


def line(permits="", gates="", nevers="", action="credits:propose", agent="dispute-bot"):
    (cell,) = matrix(engine(permits, gates, nevers), agents=[agent], actions=[action])
    return cell.outcome, cell.text()


def when(condition, clause="when"):
    outcome, text = line(
        f'@id("p") permit(principal, action == Action::"credits:propose", resource) {clause} {{ {condition} }};'
    )
    return text if outcome == "automatic" else outcome


def test_what_agent_and_resource_decide_is_decided():
    assert when("principal.tier == 1") == "automatic [p]"
    assert when("principal.tier == 2") == "never"
    assert when('resource.data_classes.contains("financial") && context.delegated') == "automatic if delegated [p]"
    assert when("context.delegated && resource.leaves_boundary") == "never"
    assert when("context.delegated || resource.leaves_boundary") == "automatic if delegated [p]"
    assert when("principal.owner == resource.owner", "unless") == "never"


@pytest.mark.parametrize(
    ("condition", "text"),
    [
        ("context.parameters.amount_cents <= 5000", "amount_cents <= 5000"),
        ("!(context.parameters.amount_cents <= 5000)", "amount_cents > 5000"),
        ('context.trigger != "user"', 'trigger != "user"'),
        ("!context.delegated && !(!context.on_behalf)", "not delegated and on_behalf"),
        ("context.parameters has reason", "reason is given"),
        ("(context.delegated || context.on_behalf) && context.depth > 1", "(delegated or on_behalf) and depth > 1"),
        ("(context.depth + 1) * 2 > 3 - context.depth", "((depth + 1) * 2) > (3 - depth)"),
        ("-context.depth < 0", "-depth < 0"),
        ('context.trust like "k8s-*"', 'trust is like "k8s-*"'),
        ('["agent", "user"].contains(context.trigger)', '["agent", "user"] contains trigger'),
        (
            "if context.delegated then context.depth == 1 else context.on_behalf",
            "(if delegated then depth == 1 else on_behalf)",
        ),
        ("if context.delegated then context.depth == 1 else false", "delegated and depth == 1"),
    ],
)
def test_conditions_read_as_text(condition, text):
    assert when(condition) == f"automatic if {text} [p]"
    assert when(condition, "unless") == "never" or when(condition, "unless").endswith("[p]")


def test_gates_and_nevers_stand_beside_the_permit():
    gate = (
        '@id("g") @approvers("dba") forbid(principal, action in Action::"write", resource) '
        "when { context.parameters has amount_cents };"
    )
    never = '@id("n") forbid(principal, action, resource) when { context.trigger == "webhook" };'
    assert line(PERMIT_ALL, gate, never) == (
        "automatic",
        'automatic [all]; approval by dba if amount_cents is given [g]; never if trigger == "webhook" [n]',
    )
    always = '@id("g") @approvers("dba") forbid(principal, action in Action::"write", resource);'
    assert line(PERMIT_ALL, always) == ("approval", "permitted [all]; approval by dba [g]")
    assert line(PERMIT_ALL, always, '@id("n") forbid(principal, action, resource);') == ("never", "never [n]")
    assert line("", always) == ("never", "never: no policy permits it")


def test_who_can():
    deciding = engine(
        '@id("p") permit(principal in Owner::"finance", action, resource);',
        nevers='@id("n") forbid(principal == Agent::"report-bot", action, resource);',
    )
    assert [cell.agent for cell in who_can(deciding, "payments:read")] == ["dispute-bot"]
    with pytest.raises(KeyError):
        who_can(deciding, "payments:raed")


def test_a_cell_is_json():
    gate = '@id("g") @approvers("dba") forbid(principal, action, resource) when { context.delegated };'
    (cell,) = matrix(engine(PERMIT_ALL, gate), agents=["ops-bot"], actions=["payments:read"])
    assert cell.as_dict() == {
        "agent": "ops-bot",
        "resource": "payments",
        "action": "payments:read",
        "outcome": "automatic",
        "text": "automatic [all]; approval by dba if delegated [g]",
        "permits": [{"policy": "all", "when": None}],
        "gates": [{"policy": "g", "when": "delegated", "approvers": "dba"}],
        "nevers": [],
    }


def test_where_partial_evaluation_fails_conditions_are_shown_as_written(monkeypatch):
    monkeypatch.setattr(cedarpy, "is_authorized_partial", lambda *_: cedarpy.PartialAuthzResult({}))
    permit = (
        '@id("p") permit(principal in Owner::"finance", action, resource) '
        'when { principal.tier == 2 && resource is Resource in System::"erp" && context has trigger };'
    )
    expected = 'automatic if principal.tier == 2 and resource is Resource in System::"erp" and trigger is given [p]'
    assert line(permit) == ("automatic", expected)


def test_hostile_names_in_the_matrix():
    names = ['a"b', "a\\b", "a\\u{62}", "日本語", "e\u0301", "*"]
    vocabulary = Vocabulary(
        agents={name: Agent(name) for name in names},
        resources={name: Resource(name, name, name) for name in names},
        actions={name: Action(name, "read") for name in names},
    )
    cells = matrix(
        engine(
            '@id("p") permit(principal, action, resource) when { principal.owner == resource.owner };',
            vocabulary=vocabulary,
        )
    )
    for cell in cells:
        # Where Cedar cannot take the name as text, the condition stays in the cell: too much said, nothing wrong.
        expected = "automatic" if cell.agent == cell.action or (cell.permits and cell.permits[0].when) else "never"
        assert cell.outcome == expected


# --- Cases ------------------------------------------------------------------------------------------------------------


def run(text):
    return run_cases(baseline(), read_cases(text, DISPUTES))


def test_a_wrong_expectation_and_an_unexercised_policy_fail():
    report = run("""
cases:
  - name: wrong on purpose
    request: {agent: dispute-bot, action: "invoices:read", resource: invoices, parameters: {}, trigger: webhook,
              delegated: true, on_behalf: true, depth: 2, trust: t, workload: w}
    expect: never
    policies: [no-agent-moves-money]
""")
    assert not report.passed
    body = report.as_dict()
    assert body["cases"][0]["failures"] == [
        "expected never, got automatic",
        "expected the policies ['no-agent-moves-money'], got ['dispute-bot-reads-invoices']",
    ]
    assert body["cases"][0]["line"] == 3
    assert body["unexercised"] == [
        "credit-below-zero",
        "credit-over-limit",
        "dispute-bot-proposes-credits",
        "no-agent-moves-money",
    ]


def test_a_case_may_ask_for_what_does_not_exist():
    report = run("cases: [{name: n, request: {agent: nobody, action: nothing}, expect: never, policies: []}]")
    assert report.results[0].failures == ()


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("", "cases.yaml:1: must be one mapping"),
        ("[]", "cases.yaml:1: must be one mapping"),
        ("cases: []\nmore: 1", "cases.yaml:1: must be one mapping"),
        ("cases: {}", "cases.yaml:1: must be one mapping"),
        ("cases: []\ncases: []", "cases.yaml:2: the key 'cases' is given twice"),
        ("cases:\n  - 1", "cases.yaml: case 1: must be a mapping"),
        ("cases:\n  - {nmae: x}", "cases.yaml:2: case 1: unknown key 'nmae'"),
        ("cases:\n  - {name: 1}", "cases.yaml:2: case 1: name must be of type str"),
        ("cases:\n  - {expect: maybe}", "cases.yaml:2: case 1: expect must be one of"),
        ("cases:\n  - {policies: [1]}", "cases.yaml:2: case 1: policies must be a list of policy ids"),
        ("cases:\n  - {request: {agnet: x}}", "cases.yaml:2: case 1: request: unknown key 'agnet'"),
        ("cases:\n  - {request: {depth: true}}", "cases.yaml:2: case 1: request: depth must be of type int"),
        ("cases:\n  - {1: x}", "cases.yaml:2: the key '1' is given twice, or is no string"),
        ("cases: &a []\nx: *a", "cases.yaml:2: aliases are not used"),
        ("cases: !!python/object/apply:os.getcwd []", "cases.yaml:1: could not determine a constructor"),
        ("cases:\n  - <<: {name: x}", "cases.yaml:2: "),
        ("cases: [", "cases.yaml:1: "),
        ("cases: \0", "cases.yaml: not YAML"),
        ("[" * 50_000, "cases.yaml: "),
        ("#" * (1024 * 1024 + 1), "cases.yaml: larger than"),
    ],
)
def test_case_files_are_strict(text, where):
    with pytest.raises(PolicyInvalid) as refused:
        read_cases(text, DISPUTES)
    assert any(str(problem).startswith(where) for problem in refused.value.problems), refused.value
