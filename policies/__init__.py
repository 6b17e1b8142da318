"""What may agents do by themselves, what needs a person, what never: Cedar policies, asked twice.

    bundle = load_directory(path, vocabulary)     policies.bundle     checked against the vocabulary, or PolicyInvalid
    engine = Engine(bundle=bundle)                policies.engine   parsed once
    engine.decide_batch(requests)                                   one Decision per request, never an exception

Three folders that a reviewer can read alone: `permits/` (what is automatic), `gates/` (`forbid` with `@approvers`: what
a person must approve), `nevers/` (`forbid`: what is never done). This page is the vocabulary; the package knows
nothing of the broker and can be used without it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

BASELINE = Path(__file__).parent / "baseline"
"""A small bundle with its cases, for the invoice-dispute workflow: what a new installation starts from."""

# --- What policies talk about -----------------------------------------------------------------------------------------

Scalar = str | int | bool
"""All that a parameter or attribute may be. An integer is a Cedar Long: 64 bits, signed."""

INT_MIN, INT_MAX = -(2**63), 2**63 - 1


@dataclass(frozen=True, slots=True)
class Agent:
    """A principal: `Agent::"id"`, in `Owner::"owner"`. Attributes are readable as `principal.<name>`."""

    owner: str
    attributes: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Resource:
    """`Resource::"id"`, in `System::"system"` and `Owner::"owner"`."""

    system: str
    audience: str
    owner: str
    data_classes: frozenset[str] = frozenset()
    leaves_boundary: bool = False


@dataclass(frozen=True, slots=True)
class Parameter:
    """One typed parameter of an action. `values` closes the set that a string may come from."""

    type: Literal["string", "integer", "boolean"]
    required: bool = False
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Action:
    """`Action::"id"` on exactly one resource, in the group `Action::"read"` or `Action::"write"`."""

    resource: str
    access: Literal["read", "write"]
    parameters: Mapping[str, Parameter] = field(default_factory=dict)


TRIGGERS = frozenset({"user", "schedule", "webhook", "agent", "manual"})


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Everything that a policy may name. The Cedar schema and entities are generated from it, so a policy that
    misspells an action, a parameter, an agent or a data class does not load. `policies.schema.compile_vocabulary`
    refuses one that contradicts itself.
    """

    agents: Mapping[str, Agent]
    resources: Mapping[str, Resource]
    actions: Mapping[str, Action]
    triggers: frozenset[str] = TRIGGERS


# --- What is asked ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """May this agent do this one action with these parameters? Policies read the facts below as `context.<name>`, and
    parameters as `context.parameters.<name>`. The agent's free text has no place here, on purpose.
    """

    agent: str
    resource: str
    action: str
    parameters: Mapping[str, Scalar] = field(default_factory=dict)
    trigger: str = "manual"  # what started the task, one of the vocabulary's triggers
    delegated: bool = False  # another agent acts through this one
    on_behalf: bool = False  # someone stands behind the task
    depth: int = 0  # how many tasks stand above this one
    trust: str  # id of the trust row that vouched for the workload
    workload: str  # kind of workload identity, e.g. "spiffe"


# --- What is answered -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Gate:
    """A gate that fired: who must approve, how many of them, and how long their answer holds (None: no own rule)."""

    id: str
    approvers: str
    quorum: int = 1
    max_age_s: int | None = None
    reason: str = ""


class Cause(StrEnum):
    """Why `never`. In order of precedence, when several actions are refused at once."""

    ERROR = "error"  # a policy or the engine failed on this request, so nothing is allowed
    REQUEST = "request"  # the request names what the vocabulary does not have, or mistypes a parameter
    FORBIDDEN = "forbidden"  # a policy in nevers/ says so
    NOT_PERMITTED = "not_permitted"  # no policy in permits/ says otherwise


@dataclass(frozen=True, slots=True, kw_only=True)
class Automatic:
    """Allowed with no one asked. `policies` are the ids of the permits, `bundle` the hash of the whole bundle."""

    bundle: str
    policies: tuple[str, ...]
    outcome: ClassVar[Literal["automatic"]] = "automatic"


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """Allowed once every gate is approved. `policies` are the ids of those gates and of the permits behind them."""

    bundle: str
    policies: tuple[str, ...]
    gates: tuple[Gate, ...]
    outcome: ClassVar[Literal["approval"]] = "approval"


@dataclass(frozen=True, slots=True, kw_only=True)
class Never:
    """Refused. `policies` are the nevers that fired; `reasons` are sentences fit for the caller; `errors` are the
    engine's own words, for the record only.
    """

    bundle: str
    policies: tuple[str, ...]
    cause: Cause
    reasons: tuple[str, ...]
    errors: tuple[str, ...] = ()
    outcome: ClassVar[Literal["never"]] = "never"


Decision = Automatic | Approval | Never


class PolicyEngine(Protocol):
    """Decides. Pure: the same bundle and request give the same answer, in any process, in any order."""

    def decide_batch(self, requests: Sequence[Request]) -> list[Decision]:
        """One decision per request, in order. Never raises for a request; what is wrong with it is a `Never`."""
        ...


# --- What does not load -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a bundle, and where."""

    message: str
    file: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}: " if self.file and self.line else f"{self.file}: " if self.file else ""
        return where + self.message


class PolicyInvalid(Exception):
    """A bundle, vocabulary or case file that does not load. Names every problem found, not the first one."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


# --- The algebra ------------------------------------------------------------------------------------------------------


def combine(decisions: Sequence[Decision]) -> Decision:
    """One answer for a request of several actions: the worst wins, with everything that led to it united.

    Associative, commutative and idempotent. All decisions must come from one bundle (ValueError), so that the answer
    has one hash; so must there be at least one.
    """
    if len(decisions) == 1:
        return decisions[0]
    bundles = {decision.bundle for decision in decisions}
    if len(bundles) != 1:
        raise ValueError("combine needs at least one decision, and all of them from one bundle")
    bundle = bundles.pop()
    refusals = [decision for decision in decisions if isinstance(decision, Never)]
    if refusals:
        return Never(
            bundle=bundle,
            policies=_united(refusal.policies for refusal in refusals),
            cause=min((refusal.cause for refusal in refusals), key=list(Cause).index),
            reasons=_united(refusal.reasons for refusal in refusals),
            errors=_united(refusal.errors for refusal in refusals),
        )
    policies = _united(decision.policies for decision in decisions)
    gates = {gate for decision in decisions if isinstance(decision, Approval) for gate in decision.gates}
    if gates:
        return Approval(bundle=bundle, policies=policies, gates=tuple(sorted(gates, key=lambda gate: gate.id)))
    return Automatic(bundle=bundle, policies=policies)


def as_dict(decision: Decision) -> dict[str, Any]:
    """The decision as a JSON object: `outcome`, `policies`, `bundle`, and what its kind adds."""
    body: dict[str, Any] = {
        "outcome": decision.outcome,
        "policies": list(decision.policies),
        "bundle": decision.bundle,
    }
    match decision:
        case Approval():
            body["gates"] = [
                {
                    "id": gate.id,
                    "approvers": gate.approvers,
                    "quorum": gate.quorum,
                    "max_age_s": gate.max_age_s,
                    "reason": gate.reason,
                }
                for gate in decision.gates
            ]
        case Never():
            body |= {
                "cause": decision.cause.value,
                "reasons": list(decision.reasons),
                "errors": list(decision.errors),
            }
        case Automatic():
            pass
    return body


def _united(parts: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(sorted({item for part in parts for item in part}))
