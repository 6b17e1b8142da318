"""Which policies can match a request, parsed once per distinct choice.

Cedar looks at every policy it is given, about 1.7 microseconds each, so a decision is given only those whose head
(principal, action, resource) can match. The rest could neither fire nor fail: Cedar evaluates a policy's conditions
only after its head. A property test holds every slice equal to the full set.
"""

import threading
from dataclasses import dataclass, field
from typing import TypeVar

import cedarpy
from cedarpy import pst

from policies.model import Bundle, Folder, Policy
from policies.schema import Uid

_K = TypeVar("_K")


@dataclass(eq=False)
class Slice:
    """Policies asked together, in the two sets of the two questions."""

    policies: tuple[Policy, ...]
    full: cedarpy.PolicySet = field(init=False)
    _scope: cedarpy.PolicySet | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.full = _parse(self.policies)

    @property
    def scope(self) -> cedarpy.PolicySet:
        """The same without gates. Parsed when first asked for: most slices never need it."""
        if self._scope is None:
            self._scope = _parse(self.without_gates())
        return self._scope

    def without_gates(self) -> tuple[Policy, ...]:
        """The policies of `scope`, in its order."""
        return tuple(policy for policy in self.policies if policy.folder is not Folder.GATES)


class Slices:
    """The slices of one bundle. Bounded: the oldest entry goes when `limit` is reached. Safe between threads."""

    def __init__(self, *, bundle: Bundle, limit: int = 1024) -> None:
        self._bundle = bundle
        self._limit = limit
        self._lock = threading.Lock()
        self._by_pair: dict[tuple[str, str], Slice] = {}
        self._by_content: dict[tuple[str, ...], Slice] = {}
        self._by_action: dict[str, tuple[Policy, ...]] = {}

    def of(self, agent: str, action: str) -> Slice:
        """The slice for a registered agent and action. KeyError for others."""
        found = self._by_pair.get((agent, action))
        return found if found is not None else self._make(agent, action)

    def _make(self, agent: str, action: str) -> Slice:
        vocabulary = self._bundle.compiled.vocabulary
        above = self._bundle.compiled.above
        with self._lock:
            candidates = self._by_action.get(action)
            if candidates is None:
                resource = vocabulary.actions[action].resource
                acts, resources = above("Action", action), above("Resource", resource)
                candidates = self._by_action[action] = tuple(
                    policy
                    for policy in self._bundle.policies.values()
                    if _may_match(policy.node.action, ("Action", action), acts)
                    and _may_match(policy.node.resource, ("Resource", resource), resources)
                )
            groups = above("Agent", agent)
            matching = tuple(p for p in candidates if _may_match(p.node.principal, ("Agent", agent), groups))
            content = tuple(policy.id for policy in matching)
            made = self._by_content.get(content)
            if made is None:
                made = Slice(matching)
                _insert(self._by_content, content, made, self._limit)
            _insert(self._by_pair, (agent, action), made, 8 * self._limit)
        return made


def _insert(cache: dict[_K, Slice], key: _K, value: Slice, limit: int) -> None:
    if len(cache) >= limit:
        del cache[next(iter(cache))]
    cache[key] = value


def _may_match(constraint: object, itself: Uid, above: frozenset[Uid]) -> bool:
    """Whether a head can match an entity. A form that is not known here is taken to match: too many is only slow."""
    match constraint:
        case pst.ScopeEq(pst.EntityUid() as entity) | pst.ActionEq(entity):
            return _uid(entity) == itself
        case pst.ScopeIn(pst.EntityUid() as entity):
            return _uid(entity) in above
        case pst.ActionIn(entities):
            return any(_uid(entity) in above for entity in entities)
        case pst.ScopeIs(entity_type):
            return str(entity_type) == itself[0]
        case pst.ScopeIsIn(entity_type, pst.EntityUid() as entity):
            return str(entity_type) == itself[0] and _uid(entity) in above
        case _:
            return True


def _uid(entity: pst.EntityUid) -> Uid:
    return (str(entity.type), entity.id)


def _parse(policies: tuple[Policy, ...]) -> cedarpy.PolicySet:
    return cedarpy.PolicySet.from_str("\n".join(policy.text for policy in policies))
