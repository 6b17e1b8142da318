"""The nouns, frozen, and the pure rules of their life cycles. No I/O and no clock: `now` is always an argument.

Times are ledger times: whole milliseconds since the Unix epoch, unless a name says `_s`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from broker.errors import Problem
from broker.wire import Match

# --- Identity ---------------------------------------------------------------------------------------------------------


class Proof(NamedTuple):
    """The replay mark of a single-use assertion: (issuer, jti) succeeds at most once until `expires` (DESIGN 5)."""

    issuer: str
    jti: str
    expires: int


class Workload(NamedTuple):
    """A running process that proved its identity. Only an attester makes one, after every check has passed."""

    trust: str  # id of the trust row that vouched for it
    kind: str  # of that row: spiffe, kubernetes, github, oidc, key
    issuer: str
    subject: str
    claims: Mapping[str, Any]  # checked claims that identities may be matched on
    expires: int
    proof: Proof | None = None  # None where the mechanism's tokens are reusable by design
    instance: str | None = None  # pod uid, run id or the like, where the mechanism states one


# --- Registry ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Owner:
    """Who answers for agents: a team or a person, with a backup and someone to escalate to."""

    id: str
    name: str
    contact: str
    backup: str
    escalation: str


@dataclass(frozen=True, slots=True)
class Identity:
    """One way for a workload to be this agent (or verifier): the trust row, and claims that must be equal, exactly."""

    trust: str
    subject: str | None = None
    subject_prefix: str | None = None  # SPIFFE only: whole path segments
    claims: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Review:
    """Who reviewed the agent's boundary, and until when (ISO date) that review holds."""

    reviewer: str
    reviewed: str
    expires: str


@dataclass(frozen=True, slots=True)
class Limits:
    """Ceilings of one agent. Seconds and counts."""

    token_ttl_s: int = 300
    task_ttl_s: int = 3600
    open_tasks: int = 1000


@dataclass(frozen=True, slots=True)
class Agent:
    """A registered non-human identity. While `problems` is not empty this agent, and only it, gets nothing."""

    id: str
    owner: str
    purpose: str
    workflow: str  # the workflow boundary statement, as reviewed
    identities: tuple[Identity, ...]
    boundary: Mapping[str, frozenset[str]]  # resource id -> action ids: the most it may ever hold
    review: Review | None
    limits: Limits = Limits()
    retired: bool = False
    problems: tuple[Problem, ...] = ()


class ParameterType(StrEnum):
    """What a parameter of an action may be. Money is an integer in minor units: floats have no canonical form."""

    STRING = "string"
    INTEGER = "integer"
    BOOLEAN = "boolean"


@dataclass(frozen=True, slots=True)
class Parameter:
    """One typed parameter of an action."""

    name: str
    type: ParameterType
    required: bool = False
    values: tuple[str, ...] = ()  # a closed set, for strings
    minimum: int | None = None
    maximum: int | None = None
    max_length: int = 200


@dataclass(frozen=True, slots=True)
class Action:
    """Something that can be done to a resource. Its id is the scope on the wire, e.g. `invoices:read`."""

    id: str
    access: str  # "read" or "write"
    description: str
    parameters: Mapping[str, Parameter] = field(default_factory=dict)


ACCESS_TOKEN = "access_token"  # noqa: S105  (the name of an issuer)
"""The issuer of resources that take access tokens. Every other name is of a configured issuer of secrets."""


@dataclass(frozen=True, slots=True)
class Resource:
    """A system that credentials open."""

    id: str
    system: str
    audience: str
    owner: str
    actions: Mapping[str, Action]
    data_classes: tuple[str, ...]
    fields: tuple[str, ...]
    leaves_boundary: bool
    retention: str
    issuer: str = ACCESS_TOKEN
    settings: Mapping[str, Any] = field(default_factory=dict)  # for that issuer


class Right(StrEnum):
    """What an operator may do."""

    READ = "read"
    KILL = "kill"
    RESUME = "resume"
    APPROVE = "approve"
    RELOAD = "reload"
    ROTATE = "rotate"


@dataclass(frozen=True, slots=True)
class Operator:
    """A human, or a break-glass key. `owners` None means every owner; break-glass may only hold and kill."""

    id: str
    name: str
    keys: tuple[Mapping[str, Any], ...]  # public JWKs
    rights: frozenset[Right]
    owners: frozenset[str] | None = None
    break_glass: bool = False


@dataclass(frozen=True, slots=True)
class VerifierRegistration:
    """A downstream service that follows the feed, with the audiences it serves."""

    id: str
    owner: str
    identities: tuple[Identity, ...]
    audiences: frozenset[str]


# --- Callers: the first argument of every verb of the broker ----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AgentCaller:
    """An agent's workload. `session_seq` is set when it came with a session token instead of its assertion."""

    agent: Agent
    workload: Workload
    session_seq: int | None = None

    @property
    def id(self) -> str:
        """The agent's id."""
        return self.agent.id


@dataclass(frozen=True, slots=True)
class VerifierCaller:
    """A registered downstream service."""

    verifier: VerifierRegistration
    proof: Proof | None = None
    session_seq: int | None = None

    @property
    def id(self) -> str:
        """The verifier's id."""
        return self.verifier.id


@dataclass(frozen=True, slots=True)
class OperatorCaller:
    """A human, or a break-glass key."""

    operator: Operator
    proof: Proof | None = None
    session_seq: int | None = None

    @property
    def id(self) -> str:
        """The operator's id."""
        return self.operator.id


@dataclass(frozen=True, slots=True)
class SystemCaller:
    """The broker itself: expiry, reconciliation, start-up."""

    id: str = "taskpass"


Caller = AgentCaller | VerifierCaller | OperatorCaller | SystemCaller

# --- Tasks and grants -------------------------------------------------------------------------------------------------


class TaskState(StrEnum):
    """`active -> ended | expired | killed`; the last three are final."""

    ACTIVE = "active"
    ENDED = "ended"
    EXPIRED = "expired"
    KILLED = "killed"


class GrantState(StrEnum):
    """Of a credential at a backend: `issuing -> live -> revoking -> revoked`. `stuck` is a `revoking` that keeps
    failing; only a look at the backend makes `revoked` or `expired` of anything. `failed`: it was never made.
    """

    ISSUING = "issuing"
    LIVE = "live"
    REVOKING = "revoking"
    STUCK = "stuck"
    REVOKED = "revoked"
    EXPIRED = "expired"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Task:
    """One piece of work by one agent; owns everything issued under it."""

    id: str
    agent: str
    state: TaskState
    opened_seq: int
    opened: int
    deadline: int
    trigger: str
    heartbeat_ms: int | None = None
    last_heartbeat: int | None = None
    parent: str | None = None
    ended_seq: int | None = None
    ended: int | None = None

    def overdue(self, now: int) -> str | None:
        """Why an active task is over at `now`: `deadline`, `heartbeat`, or None while it may go on."""
        if self.state is not TaskState.ACTIVE:
            return None
        if now >= self.deadline:
            return "deadline"
        if self.heartbeat_ms is not None and now >= (self.last_heartbeat or self.opened) + self.heartbeat_ms:
            return "heartbeat"
        return None


@dataclass(frozen=True, slots=True)
class Ask:
    """What one credential request asks for, narrowed and typed: the input of the decision."""

    resource: str
    actions: tuple[str, ...]  # sorted, distinct
    parameters: Mapping[str, str | int | bool] = field(default_factory=dict)


# --- Kills ------------------------------------------------------------------------------------------------------------


class Target(StrEnum):
    """What an operator can kill. Task, grant and key kills are final and place no hold."""

    AGENT = "agent"
    TASK = "task"
    GRANT = "grant"
    RESOURCE = "resource"
    OWNER = "owner"
    KEY = "key"
    ALL = "all"

    @property
    def holds(self) -> bool:
        """Whether killing this places a hold too, unless asked not to: else it would mint again at once."""
        return self in _HOLDING


_HOLDING = frozenset({Target.AGENT, Target.RESOURCE, Target.OWNER, Target.ALL})


@dataclass(frozen=True, slots=True)
class Selector:
    """What a kill or a hold covers. `value` is empty for ALL."""

    target: Target
    value: str = ""

    def __str__(self) -> str:
        return self.target.value if self.target is Target.ALL else f"{self.target.value} {self.value}"


MATCH_OF = {
    Target.AGENT: Match.AGENT,
    Target.TASK: Match.TASK,
    Target.GRANT: Match.GRANT,
    Target.KEY: Match.KEY,
    Target.ALL: Match.ALL,
}
"""Targets that compare directly with a token; a resource becomes its audience, an owner its agents."""
