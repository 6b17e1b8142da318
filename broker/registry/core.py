"""The registry as the rest of the broker sees it: frozen nouns, look-ups, and the bytes that the ledger keeps."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from typing import Generic, TypeVar

import orjson
from pydantic import ValidationError

from broker.attest.trust import TrustRow
from broker.errors import ConfigurationInvalid, Problem
from broker.model import (
    Action,
    Agent,
    Identity,
    Limits,
    Operator,
    Owner,
    Parameter,
    Resource,
    Review,
    VerifierRegistration,
    Workload,
)
from broker.registry.check import identity_of
from broker.registry.identity import matches
from broker.registry.schema import ALL_OWNERS, ActionRow, AgentRow, IdentityRow, OperatorRow, ParameterRow, Rows

FORMAT = 1
DEFAULT_MAX_LENGTH = 200  # of a string parameter, in characters

Place = tuple[str, int]
"""A file and a line."""

Holder = TypeVar("Holder", Agent, VerifierRegistration)


@dataclass(frozen=True, kw_only=True, eq=False)
class Registry:
    """One loaded registry. Never changes; a reload makes another.

    `blocked` says what is wrong with each agent that must get nothing, and `places` where each agent's review stands,
    for the day it expires. All look-ups are dictionary look-ups after their first use.
    """

    rows: Rows
    blocked: Mapping[str, tuple[Problem, ...]]
    places: Mapping[str, Place]

    # --- The nouns, by id ---------------------------------------------------------------------------------------------

    @cached_property
    def owners(self) -> Mapping[str, Owner]:
        """Who answers for what."""
        return {
            key: Owner(key, row.name, row.contact, row.backup, row.escalation) for key, row in self.rows.owners.items()
        }

    @cached_property
    def agents(self) -> Mapping[str, Agent]:
        """Every agent, blocked and retired ones too: their ids stay resolvable for audits."""
        return {key: self._agent(key, row) for key, row in self.rows.agents.items()}

    @cached_property
    def resources(self) -> Mapping[str, Resource]:
        """The systems that credentials open."""
        return {
            key: Resource(
                id=key,
                system=row.system,
                audience=row.audience,
                owner=row.owner,
                actions={action_id: _action(action_id, action) for action_id, action in row.actions.items()},
                data_classes=row.data_classes,
                fields=row.fields,
                leaves_boundary=row.leaves_boundary,
                retention=row.retention,
                issuer=row.issuer,
                settings=row.settings,
            )
            for key, row in self.rows.resources.items()
        }

    @cached_property
    def operators(self) -> Mapping[str, Operator]:
        """Humans and break-glass keys."""
        return {key: _operator(key, row) for key, row in self.rows.operators.items()}

    @cached_property
    def verifiers(self) -> Mapping[str, VerifierRegistration]:
        """The services that follow the feed."""
        return {
            key: VerifierRegistration(key, row.owner, self._identities(row.identities), frozenset(row.audiences))
            for key, row in self.rows.verifiers.items()
        }

    @property
    def trust(self) -> Mapping[str, TrustRow]:
        """Who may vouch for workloads."""
        return self.rows.trust

    # --- Look-ups -----------------------------------------------------------------------------------------------------

    def by_audience(self, audience: str) -> Resource | None:
        """The resource with exactly this audience."""
        return self._audiences.get(audience)

    def by_action(self, action: str) -> Resource | None:
        """The one resource that has this action: action ids are unique across the registry."""
        return self._actions.get(action)

    def agents_of(self, owner: str) -> tuple[str, ...]:
        """The ids of the owner's agents, sorted, blocked and retired ones too: their credentials may still live."""
        return tuple(sorted(agent.id for agent in self.agents.values() if agent.owner == owner))

    def agents_for(self, workload: Workload) -> tuple[Agent, ...]:
        """The agents that `workload` is: one for a good registration, none for an unknown workload.

        Two or more only where all of them are blocked for just that. A retired agent is answered only where nobody has
        taken over its identity.
        """
        found = self._agent_index.find(workload)
        if len(found) == 1:
            return found
        return tuple(agent for agent in found if not agent.retired) or found

    def verifiers_for(self, workload: Workload) -> tuple[VerifierRegistration, ...]:
        """The verifier that `workload` is, or none."""
        return self._verifier_index.find(workload)

    def agent_problems(self, agent: Agent, now: int) -> tuple[Problem, ...]:
        """Why `agent` gets nothing at ledger time `now` (ms), or nothing if it may act. Asked at every issuance."""
        if agent.retired:
            return (Problem(f"agent {agent.id}: it is retired"),)
        review = agent.review
        if review is not None and now >= _end_of(review.expires):
            sentence = (
                f"agent {agent.id}: its review by {review.reviewer} expired after {review.expires}: review it again"
            )
            return (*agent.problems, Problem(sentence, *self.places.get(agent.id, (None, None))))
        return agent.problems

    def problems(self, now: int) -> tuple[Problem, ...]:
        """What blocks each agent at `now` that is not retired, for reports at load."""
        live = (agent for agent in self.agents.values() if not agent.retired)
        return tuple(problem for agent in live for problem in self.agent_problems(agent, now))

    # --- The bytes ----------------------------------------------------------------------------------------------------

    @cached_property
    def hash(self) -> str:
        """SHA-256 in hex over what is registered and which agents are blocked for what.

        The same entries have the same hash however they are laid out in files; a problem's file and line do not count.
        """
        blocked = {key: sorted(problem.message for problem in found) for key, found in self.blocked.items()}
        return hashlib.sha256(_canonical({**self._body, "blocked": blocked})).hexdigest()

    def to_content(self) -> bytes:
        """Canonical JSON of all of it, for the ledger."""
        blocked = {key: [[p.message, p.file, p.line] for p in found] for key, found in self.blocked.items()}
        return _canonical({**self._body, "blocked": blocked, "places": self.places})

    @classmethod
    def from_content(cls, content: bytes) -> "Registry":
        """Load what `to_content` made. Raises ConfigurationInvalid on anything else."""
        try:
            body = orjson.loads(content)
            if body["format"] != FORMAT:
                raise ValueError("unknown format")
            rows = Rows.model_validate_json(orjson.dumps(body["rows"]))
            blocked = {key: tuple(Problem(*found) for found in problems) for key, problems in body["blocked"].items()}
            places = {key: (str(file), int(line)) for key, (file, line) in body["places"].items()}
        except (ValidationError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigurationInvalid("The stored registry cannot be read by this version of Taskpass.") from error
        return cls(rows=rows, blocked=blocked, places=places)

    @cached_property
    def _body(self) -> dict[str, object]:
        return {"format": FORMAT, "rows": self.rows.model_dump(mode="json")}

    # --- Derived ------------------------------------------------------------------------------------------------------

    @cached_property
    def _audiences(self) -> dict[str, Resource]:
        return {resource.audience: resource for resource in self.resources.values()}

    @cached_property
    def _actions(self) -> dict[str, Resource]:
        return {action: resource for resource in self.resources.values() for action in resource.actions}

    @cached_property
    def _agent_index(self) -> "_IdentityIndex[Agent]":
        return _IdentityIndex(self.agents.values(), lambda agent: agent.identities)

    @cached_property
    def _verifier_index(self) -> "_IdentityIndex[VerifierRegistration]":
        return _IdentityIndex(self.verifiers.values(), lambda verifier: verifier.identities)

    def _identities(self, rows: Iterable[IdentityRow]) -> tuple[Identity, ...]:
        return tuple(identity_of(row, self.rows.trust.get(row.trust)) for row in rows)

    def _agent(self, agent_id: str, row: AgentRow) -> Agent:
        review = row.review
        return Agent(
            id=agent_id,
            owner=row.owner,
            purpose=row.purpose,
            workflow=row.workflow,
            identities=self._identities(row.identities),
            boundary={resource_id: frozenset(actions) for resource_id, actions in row.boundary.items()},
            review=None if review is None else Review(review.reviewer, review.reviewed, review.expires),
            limits=Limits(row.limits.token_ttl_s, row.limits.task_ttl_s, row.limits.open_tasks),
            retired=row.retired,
            problems=tuple(self.blocked.get(agent_id, ())),
        )


class _IdentityIndex(Generic[Holder]):
    """Finds the holders of a workload's identity: by exact subject at once, by comparing where no subject is named."""

    def __init__(self, holders: Iterable[Holder], identities: Callable[[Holder], Iterable[Identity]]) -> None:
        self._exact: dict[tuple[str, str], list[tuple[Identity, Holder]]] = defaultdict(list)
        self._open: dict[str, list[tuple[Identity, Holder]]] = defaultdict(list)
        for holder in holders:
            for identity in identities(holder):
                if identity.subject is not None:
                    self._exact[identity.trust, identity.subject].append((identity, holder))
                else:
                    self._open[identity.trust].append((identity, holder))

    def find(self, workload: Workload) -> tuple[Holder, ...]:
        candidates = (*self._exact.get((workload.trust, workload.subject), ()), *self._open.get(workload.trust, ()))
        if not candidates:
            return ()
        return tuple({holder.id: holder for identity, holder in candidates if matches(identity, workload)}.values())


@lru_cache(maxsize=1024)
def _end_of(day: str) -> int:
    """The first millisecond after an ISO date, in UTC."""
    following = datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp() + 86_400
    return int(following * 1000)


def _action(action_id: str, row: ActionRow) -> Action:
    parameters = {name: _parameter(name, parameter) for name, parameter in row.parameters.items()}
    return Action(action_id, row.access, row.description, parameters)


def _parameter(name: str, row: ParameterRow) -> Parameter:
    return Parameter(
        name=name,
        type=row.type,
        required=row.required,
        values=row.values,
        minimum=row.minimum,
        maximum=row.maximum,
        max_length=row.max_length or DEFAULT_MAX_LENGTH,
    )


def _operator(operator_id: str, row: OperatorRow) -> Operator:
    owners = None if row.owners == ALL_OWNERS else frozenset(row.owners)
    return Operator(operator_id, row.name, row.keys, frozenset(row.rights), owners, row.break_glass)


def _canonical(value: object) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
