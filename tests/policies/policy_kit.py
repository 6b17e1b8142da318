"""A small world for policy tests: three agents of two owners, three resources of two systems, five actions."""

from hypothesis import strategies as st

from policies import Action, Agent, Parameter, Request, Resource, Vocabulary
from policies.bundle import load_files
from policies.engine import Engine

VOCABULARY = Vocabulary(
    agents={
        "dispute-bot": Agent(owner="finance", attributes={"tier": 1}),
        "report-bot": Agent(owner="finance", attributes={"tier": 2}),
        "ops-bot": Agent(owner="ops", attributes={"tier": 3}),
    },
    resources={
        "invoices": Resource("erp", "https://invoices.test", "finance", frozenset({"personal", "financial"})),
        "credits": Resource("erp", "https://credits.test", "finance", frozenset({"financial"})),
        "payments": Resource("bank", "https://payments.test", "ops", frozenset(), leaves_boundary=True),
    },
    actions={
        "invoices:read": Action("invoices", "read"),
        "invoices:note": Action("invoices", "write", {"note": Parameter("string")}),
        "credits:propose": Action(
            "credits",
            "write",
            {
                "invoice": Parameter("string", required=True),
                "amount_cents": Parameter("integer", required=True),
                "reason": Parameter("string", values=("goodwill", "error")),
                "urgent": Parameter("boolean"),
            },
        ),
        "payments:read": Action("payments", "read"),
        "payments:transfer": Action("payments", "write", {"amount_cents": Parameter("integer")}),
    },
)

PERMIT_ALL = '@id("all") permit(principal, action, resource);\n'


def engine(permits="", gates="", nevers="", vocabulary=VOCABULARY):
    """An engine on three files' text."""
    files = {"permits/p.cedar": permits, "gates/g.cedar": gates, "nevers/n.cedar": nevers}
    return Engine(bundle=load_files(files, vocabulary))


def ask(action="credits:propose", agent="dispute-bot", **given):
    """A request that fits the vocabulary, unless `given` says otherwise. Unknown names are parameters."""
    facts = {name: given.pop(name) for name in list(given) if name in Request.__dataclass_fields__}
    parameters = {"invoice": "INV-1", "amount_cents": 100} if action == "credits:propose" else {}
    facts.setdefault("parameters", parameters | given)
    known = VOCABULARY.actions.get(action)
    defaults = {"resource": known.resource if known else "credits", "trust": "k8s-prod", "workload": "jwt"}
    return Request(**(defaults | {"agent": agent, "action": action} | facts))


# --- Random bundles and requests --------------------------------------------------------------------------------------

_PRINCIPALS = [
    "principal",
    'principal == Agent::"dispute-bot"',
    'principal == Agent::"ops-bot"',
    'principal in Agent::"report-bot"',
    'principal in Owner::"finance"',
    'principal in Owner::"ops"',
    "principal is Agent",
    'principal is Agent in Owner::"finance"',
]
_ACTIONS = [
    "action",
    *(f'action == Action::"{action}"' for action in VOCABULARY.actions),
    'action in Action::"read"',
    'action in Action::"write"',
    'action in Action::"credits:propose"',
    'action in [Action::"invoices:read", Action::"payments:transfer"]',
    'action in [Action::"read", Action::"credits:propose"]',
]
_RESOURCES = [
    "resource",
    'resource == Resource::"credits"',
    'resource in Resource::"payments"',
    'resource in System::"erp"',
    'resource in Owner::"ops"',
    "resource is Resource",
    'resource is Resource in System::"bank"',
]
_CONDITIONS = [
    "",
    "",
    "when { context.parameters has amount_cents && context.parameters.amount_cents > 1000 }",
    # Fails for large amounts, which is the point: Cedar would skip the policy.
    "when { context.parameters has amount_cents && context.parameters.amount_cents * 4611686018427387904 >= 0 }",
    'when { context.trigger == "user" }',
    "unless { context.delegated }",
    "unless { context.on_behalf && context.depth < 2 }",
    'when { resource.data_classes.contains("financial") }',
    "when { principal.tier > 1 && principal.owner == resource.owner }",
]


@st.composite
def policy_texts(draw, folder):
    """The body of one policy, without annotations."""
    effect = "permit" if folder == "permits" else "forbid"
    head = ", ".join(draw(st.sampled_from(parts)) for parts in (_PRINCIPALS, _ACTIONS, _RESOURCES))
    return f"{effect} ({head}) {draw(st.sampled_from(_CONDITIONS))};"


def annotated(folder, number, text):
    """The policy with an id that no other has, and what its folder asks for."""
    approvers = '@approvers("team") ' if folder == "gates" else ""
    return f'@id("{folder}-{number}") {approvers}{text}'


@st.composite
def bundles(draw, max_policies=6):
    """Files of a random bundle."""
    return {
        f"{folder}/x.cedar": "\n".join(
            annotated(folder, number, text)
            for number, text in enumerate(draw(st.lists(policy_texts(folder), max_size=max_policies)))
        )
        for folder in ("permits", "gates", "nevers")
    }


@st.composite
def requests(draw):
    """A well-formed request."""
    action = draw(st.sampled_from(sorted(VOCABULARY.actions)))
    declared = VOCABULARY.actions[action].parameters
    given = {}
    if "amount_cents" in declared:
        given["amount_cents"] = draw(st.sampled_from([0, 1, 2, 1000, 1001, 2**62, -(2**63)]))
    if "invoice" in declared:
        given["invoice"] = draw(st.text(max_size=5, alphabet=st.characters(exclude_categories=["Cs"])))
    return ask(
        action,
        draw(st.sampled_from(sorted(VOCABULARY.agents))),
        parameters=given,
        trigger=draw(st.sampled_from(sorted(VOCABULARY.triggers))),
        delegated=draw(st.booleans()),
        on_behalf=draw(st.booleans()),
        depth=draw(st.integers(0, 3)),
    )
