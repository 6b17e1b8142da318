"""The decision: ask Cedar twice, and believe no answer that comes with an error.

    full  = permits + gates + nevers          allows             -> automatic
    scope = permits + nevers                  allows only here   -> approval, by the gates that fired
                                              otherwise          -> never

Cedar skips a policy that errors, so an erroring `forbid` would open the door: any diagnostic in either answer is a
`Never`. The second question is asked only where gates alone stood in the way. Elsewhere its answer is known: a never
that fired fires again, and without a permit nothing is allowed.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cedarpy

from policies import Approval, Automatic, Cause, Decision, Gate, Never, Request
from policies.model import Bundle, Folder, Policy
from policies.schema import RequestRefused, encode
from policies.slices import Slice, Slices

_NOT_PERMITTED = "no policy permits it"
_UNDECIDED = "the policies could not be evaluated on this request"
_POSITION = re.compile(r"\Aerror while evaluating policy `policy(\d{1,6})`")
_MAX_ERROR = 300


@dataclass(frozen=True, slots=True)
class _Answer:
    """What Cedar said to one question: allowed or not, by which policies. Worth nothing if `errors` is not empty."""

    allowed: bool
    policies: tuple[Policy, ...] = ()
    errors: tuple[str, ...] = ()


_Asked = tuple[int, dict[str, Any]]
"""A request on its way: its place in the batch, and its Cedar form."""


class Engine:
    """Decides by one bundle, parsed once. Safe to share between threads; holds the GIL while Cedar works."""

    def __init__(self, *, bundle: Bundle, max_slices: int = 1024) -> None:
        self.bundle = bundle
        self._slices = Slices(bundle=bundle, limit=max_slices)

    def slice_of(self, agent: str, action: str) -> Slice:
        """The policies that can match what this agent asks about this action. KeyError if either is unknown."""
        return self._slices.of(agent, action)

    def decide(self, request: Request) -> Decision:
        """The decision on one request. Never raises for a request."""
        return self.decide_batch([request])[0]

    def decide_batch(self, requests: Sequence[Request]) -> list[Decision]:
        """One decision per request, in order, each as if asked alone. Never raises for a request."""
        decisions: dict[int, Decision] = {}
        asked: dict[Slice, list[_Asked]] = {}
        for index, request in enumerate(requests):
            try:
                cedar_request = encode(request, self.bundle.compiled.vocabulary)
            except RequestRefused as refusal:
                decisions[index] = self._never(Cause.REQUEST, reasons=(str(refusal),))
            else:
                asked.setdefault(self._slices.of(request.agent, request.action), []).append((index, cedar_request))
        for policy_slice, members in asked.items():
            self._decide_slice(policy_slice, members, decisions)
        return [decisions[index] for index in range(len(requests))]

    def _decide_slice(self, policy_slice: Slice, members: list[_Asked], decisions: dict[int, Decision]) -> None:
        gated: list[tuple[_Asked, tuple[Gate, ...]]] = []
        answers = self._ask(policy_slice.full, policy_slice.policies, members)
        for member, answer in zip(members, answers, strict=True):
            gates = tuple(policy.gate for policy in answer.policies if policy.gate is not None)
            if gates and not answer.errors and len(gates) == len(answer.policies):
                gated.append((member, gates))
            else:
                decisions[member[0]] = self._settle(answer)
        if not gated:
            return
        answers = self._ask(policy_slice.scope, policy_slice.without_gates(), [member for member, _ in gated])
        for ((index, _), gates), answer in zip(gated, answers, strict=True):
            decisions[index] = self._settle(answer, gates)

    def _settle(self, answer: _Answer, gates: tuple[Gate, ...] = ()) -> Decision:
        """The decision once Cedar's answer is final. `gates` stood in the way when it was asked with them."""
        if answer.errors:
            return self._never(Cause.ERROR, reasons=(_UNDECIDED,), errors=answer.errors)
        ids = [policy.id for policy in answer.policies]
        if answer.allowed and gates:
            policies = tuple(sorted([*ids, *(gate.id for gate in gates)]))
            return Approval(bundle=self.bundle.hash, policies=policies, gates=tuple(sorted(gates, key=_gate_id)))
        if answer.allowed:
            return Automatic(bundle=self.bundle.hash, policies=tuple(sorted(ids)))
        nevers = [policy for policy in answer.policies if policy.folder is Folder.NEVERS]
        if nevers:
            reasons = (policy.reason or f"forbidden by {policy.id}" for policy in nevers)
            return self._never(Cause.FORBIDDEN, policies=[policy.id for policy in nevers], reasons=tuple(reasons))
        return self._never(Cause.NOT_PERMITTED, reasons=(_NOT_PERMITTED,))

    def _never(
        self, cause: Cause, *, reasons: Sequence[str], policies: Sequence[str] = (), errors: Sequence[str] = ()
    ) -> Never:
        return Never(
            bundle=self.bundle.hash,
            cause=cause,
            policies=tuple(sorted(policies)),
            reasons=tuple(sorted(set(reasons))),
            errors=tuple(sorted(errors)),
        )

    def _ask(self, policy_set: cedarpy.PolicySet, order: tuple[Policy, ...], members: list[_Asked]) -> list[_Answer]:
        """Cedar's answers. If the batch as a whole fails, each is asked alone, so that only the culprit is refused."""
        compiled = self.bundle.compiled
        requests = [request for _, request in members]
        try:
            results = cedarpy.is_authorized_batch(requests, policy_set, compiled.entities, compiled.schema)
            if len(results) != len(requests):
                raise RuntimeError("Cedar answered another number of requests than it was asked")
        except Exception as error:  # noqa: BLE001  (whatever the binding raises: this request is refused, and recorded)
            if len(members) == 1:
                return [_Answer(allowed=False, errors=(f"{type(error).__name__}: {error}"[:_MAX_ERROR],))]
            return [self._ask(policy_set, order, [member])[0] for member in members]
        return [self._read(result, order) for result in results]

    def _read(self, result: cedarpy.AuthzResult, order: tuple[Policy, ...]) -> _Answer:
        decision, diagnostics = result.decision, result.diagnostics
        errors = tuple(_named(error, order)[:_MAX_ERROR] for error in diagnostics.errors)
        reasons = diagnostics.reasons
        ids = diagnostics.id_annotations_by_reason
        if decision is cedarpy.Decision.NoDecision:
            errors = errors or ("Cedar gave no decision",)
        elif len(ids) != len(reasons) or (decision is cedarpy.Decision.Allow and not reasons):
            errors = (*errors, "Cedar's reasons are incomplete")
        if errors:
            return _Answer(allowed=False, errors=errors)
        policies = tuple(self.bundle.policies[ids[reason]] for reason in reasons)
        return _Answer(allowed=decision is cedarpy.Decision.Allow, policies=policies)


def _named(error: str, order: tuple[Policy, ...]) -> str:
    """Cedar numbers the policies of a set; a record must name them."""
    found = _POSITION.match(error)
    if found is None or int(found[1]) >= len(order):
        return error
    return f"{order[int(found[1])].id}: {error[found.end() :].removeprefix(': ')}"


def _gate_id(gate: Gate) -> str:
    return gate.id
