"""The steps that every issuance takes, whatever mints the credential in the end: 4 to 7 of the pipeline, and the
answers to what the ledger's commit said. `issuance` takes tokens through them in batches, `credentials` the rest.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import policies
from broker.approvals import PENDING_MS, intent
from broker.errors import AccessDenied, InvalidTarget, TaskpassError, UnauthorizedClient
from broker.ledger import Command
from broker.ledger.commands.issue import Asked, Pend, Refuse, Refused, Verdict
from broker.model import ACCESS_TOKEN, Action, Agent, Ask, Resource, Workload
from broker.rules import Rules
from broker.service.asks import TokenRequest, narrow, outside_boundary, target
from broker.service.outcomes import never, refusal_error
from broker.service.task_facts import TaskFacts, TaskFactsReader
from broker.stops import Stops

_REMEMBERED = 10_000


@dataclass(slots=True)
class Case:
    """One request on its way through the steps. It is done once `result` is set: its answer, or why there is none."""

    request: TokenRequest
    workload: Workload | None = None
    agent: Agent | None = None
    resource: Resource | None = None
    ask: Ask | None = None
    facts: TaskFacts | None = None
    verdict: Verdict | None = None
    gates: Sequence[policies.Gate] = ()
    refusal: tuple[str, TaskpassError] | None = None  # authenticated, refused, not yet recorded
    result: Any = None

    @property
    def open(self) -> bool:
        """Still on its way to a decision."""
        return self.result is None and self.refusal is None

    def start_over(self) -> None:
        """Forget what was decided by rules that are not in force any more."""
        self.refusal, self.verdict, self.gates = None, None, ()

    def refuse(self, reason: str, error: TaskpassError) -> None:
        """Refuse an authenticated caller: the commit records it."""
        self.refusal = (reason, error)

    def asked(self) -> Asked:
        """Who asks for what, as the ledger records it."""
        assert self.agent is not None
        assert self.workload is not None
        request = self.request
        return Asked(self.agent.id, self.agent.owner, self.workload, request.task, self.ask, request.traceparent)


class Steps:
    """Steps 3 to 7 for one case, or a batch of them. `tokens`: for access tokens, or for everything else."""

    def __init__(self, *, task_facts: TaskFactsReader, stops: Stops, now: Callable[[], int], tokens: bool) -> None:
        self._task_facts = task_facts
        self._stops = stops
        self._now = now
        self._tokens = tokens
        self._rules: Rules | None = None  # under which the following is known
        self._known: dict[tuple[str, str, tuple[str, ...] | None], tuple[Resource, Ask]] = {}
        self._granted: dict[tuple[object, ...], tuple[Ask, Verdict]] = {}

    def standing(self, rules: Rules, case: Case) -> None:
        """3, once the agent is known: in good standing."""
        agent = case.agent
        assert agent is not None
        problems = rules.registry.agent_problems(agent, self._now())
        if problems:
            case.refuse(
                "agent_blocked",
                UnauthorizedClient(
                    f"Agent {agent.id} gets nothing until its registration is mended.",
                    problems=[str(problem) for problem in problems],
                    next=f"Its owner is {agent.owner}: correct the registration, then `taskpass reload`.",
                ),
            )

    def load_task(self, _: Rules, case: Case) -> None:
        """4: the task as the caller's own; another agent's does not exist."""
        assert case.agent is not None
        case.facts = self._task_facts.of(case.request.task, case.agent.id)
        if case.facts is None:
            case.refuse("task_not_found", UnauthorizedClient(f"There is no task {case.request.task} of yours."))

    def narrow(self, rules: Rules, case: Case) -> None:
        """5: what is asked, typed, within what is registered."""
        assert case.agent is not None
        try:
            case.resource, case.ask = self._narrowed(rules, case.agent, case.request)
        except TaskpassError as error:
            case.refuse(error.code, error)
            return
        case.result = self.stopped(agent=case.agent.id, audience=case.resource.audience, task=case.request.task or "")

    def _forget_unless(self, rules: Rules) -> None:
        """What is remembered of asks and decisions counts under one set of rules only."""
        if rules is not self._rules:
            self._rules, self._known, self._granted = rules, {}, {}

    def _narrowed(self, rules: Rules, agent: Agent, request: TokenRequest) -> tuple[Resource, Ask]:
        """A pure function of the registry, so what has no typed parameters in it is narrowed once."""
        self._forget_unless(rules)
        registry = rules.registry
        key = (agent.id, request.resource, request.scope)
        known = self._known.get(key) if request.details is None else None
        if known is None:
            resource = target(registry, request)
            _at_the_right_door(resource, tokens=self._tokens)
            known = resource, narrow(registry, agent, request)
            if request.details is None and len(self._known) < _REMEMBERED:
                self._known[key] = known
        return known

    def decide(self, rules: Rules, cases: Sequence[Case]) -> None:
        """6: what was granted for the same question before, and all others in one batch."""
        self._forget_unless(rules)
        fresh = []
        for case in cases:
            granted = self._granted.get(_question(case)) if case.request.details is None else None
            if granted is None:
                fresh.append(case)
            else:
                case.ask, case.verdict = granted
        if fresh:
            self._decide_anew(rules, fresh)

    def _decide_anew(self, rules: Rules, cases: Sequence[Case]) -> None:
        """One policy request for each action of each case."""
        asked = [policy_requests(case) for case in cases]
        decisions = iter(rules.engine.decide_batch([each for requests in asked for each in requests]))
        for case, requests in zip(cases, asked, strict=True):
            decided = [next(decisions) for _ in requests]
            assert case.agent is not None
            assert case.ask is not None
            if case.request.scope is None and case.request.details is None:
                case.ask, decided = _default_scope(case.ask, decided)
            decision = policies.combine(decided)
            beyond = outside_boundary(case.agent, case.ask)
            if beyond:
                beyond_review = f"{' '.join(beyond)} is outside the boundary reviewed for {case.agent.id}"
                decision = policies.combine([decision, _never(decision.bundle, beyond_review)])
            case.verdict = rules.verdict(decision)
            if isinstance(decision, policies.Approval):
                case.gates = decision.gates
            elif isinstance(decision, policies.Never):
                case.refuse("never", never(decision, case.agent))
            elif case.request.details is None and len(self._granted) < _REMEMBERED:
                self._granted[_question(case)] = case.ask, case.verdict

    def without_issuing(self, rules: Rules, case: Case) -> Command | None:
        """7, 8: the command of a case that gets nothing now: refused, or waiting for a human. None for one to issue."""
        if case.refusal is not None:
            reason, error = case.refusal
            return Refuse(case.asked(), reason, error.sentence, case.verdict)
        if not case.gates:
            return None
        assert case.agent is not None
        assert case.ask is not None
        assert case.verdict is not None
        wanted = intent(agent=case.agent.id, task=case.request.task, ask=case.ask, policy_hash=rules.policy_hash)
        gates = [asdict(gate) for gate in case.gates]
        return Pend(case.asked(), case.verdict, wanted.digest, wanted.canonical, gates, PENDING_MS)

    @staticmethod
    def refused(case: Case, refused: Refused) -> TaskpassError:
        """The answer to a recorded refusal: the one decided on, unless a guard at the commit refused first."""
        if case.refusal is not None and case.refusal[0] == refused.reason:
            error = case.refusal[1]
        else:
            error = refusal_error(refused, grant=case.request.grant)
        error.decision_id = refused.decision_id
        return error

    def stopped(
        self, *, agent: str, audience: str, task: str, jti: str = "", kid: str | None = None
    ) -> AccessDenied | None:
        """The refusal, while a kill that the ledger has yet to record covers such a credential."""
        if not self._stops.any():
            return None
        stop = self._stops.covering({"sub": agent, "aud": audience, "task": task, "jti": jti}, kid)
        if stop is None:
            return None
        sentence = f"Issuance is on hold by a kill that the ledger has yet to record ({stop})."
        return AccessDenied(sentence, outcome="held", retry=False)


def _at_the_right_door(resource: Resource, *, tokens: bool) -> None:
    """Raises InvalidTarget where a token is asked for what takes none, or the other way round."""
    if tokens and resource.issuer != ACCESS_TOKEN:
        raise InvalidTarget(
            f"{resource.id} takes no access token: its credentials are made by issuer {resource.issuer}.",
            next="Ask for it at POST /v1/credentials, or with `taskpass secret`.",
        )
    if not tokens and resource.issuer == ACCESS_TOKEN:
        raise InvalidTarget(
            f"{resource.id} takes access tokens.", next="Ask for one at /oauth2/token, or with `taskpass token`."
        )


def _question(case: Case) -> tuple[object, ...]:
    """All that a decision on scopes alone depends on, beside the rules: see `policy_requests`."""
    agent, workload, facts, request = case.agent, case.workload, case.facts, case.request
    assert agent is not None
    assert workload is not None
    assert facts is not None
    who = agent.id, workload.trust, workload.kind
    return *who, request.resource, request.scope, facts.trigger, facts.on_behalf, facts.depth


def policy_requests(case: Case) -> list[policies.Request]:
    """One policy request for each action that is asked for."""
    assert case.agent is not None
    assert case.ask is not None
    assert case.facts is not None
    assert case.workload is not None
    assert case.resource is not None
    return [
        policies.Request(
            agent=case.agent.id,
            resource=case.ask.resource,
            action=action,
            parameters=parameters_of(case.resource.actions[action], case.ask.parameters),
            trigger=case.facts.trigger,
            on_behalf=case.facts.on_behalf,
            depth=case.facts.depth,
            trust=case.workload.trust,
            workload=case.workload.kind,
        )
        for action in case.ask.actions
    ]


def split_actions(resource: Resource, ask: Ask) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What is granted outright, and what is granted within limits: an action that takes one of the parameters is
    granted with them only.
    """
    if not ask.parameters:
        return tuple(ask.actions), ()
    limited = tuple(action for action in ask.actions if parameters_of(resource.actions[action], ask.parameters))
    return tuple(action for action in ask.actions if action not in limited), limited


def parameters_of(action: Action, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that this action knows: a request of several actions carries all of theirs."""
    if not parameters:
        return {}
    return {name: value for name, value in parameters.items() if name in action.parameters}


def _never(bundle: str, reason: str) -> policies.Never:
    return policies.Never(bundle=bundle, policies=(), cause=policies.Cause.FORBIDDEN, reasons=(reason,))


def _default_scope(ask: Ask, decided: list[policies.Decision]) -> tuple[Ask, list[policies.Decision]]:
    """A client that names no scope gets what is automatic (RFC 6749 section 3.3), or the whole refusal."""
    automatic = [
        (action, each)
        for action, each in zip(ask.actions, decided, strict=True)
        if isinstance(each, policies.Automatic)
    ]
    if not automatic:
        return ask, decided
    return Ask(ask.resource, tuple(action for action, _ in automatic), ask.parameters), [each for _, each in automatic]
