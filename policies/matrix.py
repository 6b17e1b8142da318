"""Who may do what, and on which conditions: agent by action, as a report for a reviewer. Never used for a grant.

Cedar evaluates each policy that can match as far as agent, action and resource alone decide it; what is left over is
about the task and the parameters, and is written out as text. The library calls this evaluation experimental. Where it
fails, the conditions are shown as they stand in the policy.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import cedarpy
import orjson

from policies.engine import Engine
from policies.model import Folder, Policy
from policies.residual import ALWAYS, IMPOSSIBLE, conditions_text
from policies.slices import Slice


@dataclass(frozen=True, slots=True)
class Condition:
    """One policy that can decide a cell. `when` is None where it always does; `approvers` is set for gates."""

    policy: str
    when: str | None
    approvers: str | None = None

    def as_dict(self) -> dict[str, str | None]:
        """The condition as a JSON object."""
        body = {"policy": self.policy, "when": self.when}
        return body if self.approvers is None else body | {"approvers": self.approvers}


@dataclass(frozen=True, slots=True)
class Cell:
    """One agent and one action. `outcome` is the most that this agent can be answered with; what stands in the way is
    in the conditions. `never` is certain, the other two hold only under their conditions.
    """

    agent: str
    resource: str
    action: str
    outcome: Literal["automatic", "approval", "never"]
    permits: tuple[Condition, ...]
    gates: tuple[Condition, ...]
    nevers: tuple[Condition, ...]

    def text(self) -> str:
        """The cell in one line, e.g. `automatic if amount <= 10 [small]; approval by dba if amount > 5 [ask-dba]`."""
        if self.outcome == "never":
            certain = [condition.policy for condition in self.nevers if condition.when is None]
            return f"never [{', '.join(certain)}]" if certain else "never: no policy permits it"
        parts = [_clause("permitted" if self.outcome == "approval" else "automatic", each) for each in self.permits]
        parts += [_clause(f"approval by {each.approvers}", each) for each in self.gates]
        parts += [_clause("never", each) for each in self.nevers]
        return "; ".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """The cell as a JSON object, with its line as `text`."""
        return {
            "agent": self.agent,
            "resource": self.resource,
            "action": self.action,
            "outcome": self.outcome,
            "text": self.text(),
            "permits": [condition.as_dict() for condition in self.permits],
            "gates": [condition.as_dict() for condition in self.gates],
            "nevers": [condition.as_dict() for condition in self.nevers],
        }


def matrix(engine: Engine, *, agents: Iterable[str] | None = None, actions: Iterable[str] | None = None) -> list[Cell]:
    """Every cell, or those of the given agents and actions, by agent and then action. KeyError for unknown ids."""
    vocabulary = engine.bundle.compiled.vocabulary
    return [
        _cell(engine, agent, action)
        for agent in sorted(vocabulary.agents if agents is None else agents)
        for action in sorted(vocabulary.actions if actions is None else actions)
    ]


def who_can(engine: Engine, action: str) -> list[Cell]:
    """The agents that can do this at all, alone or with approval. KeyError for an unknown action."""
    return [cell for cell in matrix(engine, actions=[action]) if cell.outcome != "never"]


def _cell(engine: Engine, agent: str, action: str) -> Cell:
    vocabulary = engine.bundle.compiled.vocabulary
    resource = vocabulary.actions[action].resource
    found: dict[Folder, list[Condition]] = {folder: [] for folder in Folder}
    for policy, when in _conditions(engine, agent, action, resource):
        if when != IMPOSSIBLE:
            approvers = policy.gate.approvers if policy.gate else None
            found[policy.folder].append(Condition(policy.id, None if when == ALWAYS else when, approvers))
    permits, gates, nevers = (tuple(found[folder]) for folder in Folder)
    outcome: Literal["automatic", "approval", "never"] = "automatic"
    if not permits or any(condition.when is None for condition in nevers):
        outcome = "never"
    elif any(condition.when is None for condition in gates):
        outcome = "approval"
    return Cell(agent, resource, action, outcome, permits, gates, nevers)


def _conditions(engine: Engine, agent: str, action: str, resource: str) -> Iterator[tuple[Policy, str]]:
    """The policies that can match, each with what remains to be known about the request."""
    compiled = engine.bundle.compiled
    policy_slice = engine.slice_of(agent, action)
    asked = (("principal", "Agent", agent), ("action", "Action", action), ("resource", "Resource", resource))
    request = {part: _uid(kind, id_) for part, kind, id_ in asked}
    result = cedarpy.is_authorized_partial(request, policy_slice.full, compiled.entities, compiled.schema)
    residuals = result.residuals
    if len(residuals) != len(policy_slice.policies) or result.diagnostics.errors:
        residuals = _as_written(policy_slice)
    for position, policy in enumerate(policy_slice.policies):
        yield policy, conditions_text(residuals[f"policy{position}"]["conditions"])


def _as_written(policy_slice: Slice) -> dict[str, Any]:
    """The conditions with nothing evaluated, in the same form as residuals."""
    static: dict[str, Any] = orjson.loads(cedarpy.policies_to_json_str(str(policy_slice.full)))["staticPolicies"]
    return static


def _uid(kind: str, id_: str) -> str:
    """Cedar text. Ids are printable, so only its own two marks need escaping; partial evaluation takes no dicts."""
    escaped = id_.replace("\\", "\\\\").replace('"', '\\"')
    return f'{kind}::"{escaped}"'


def _clause(what: str, condition: Condition) -> str:
    when = f" if {condition.when}" if condition.when else ""
    return f"{what}{when} [{condition.policy}]"
