"""Credentials at backends that live longer: the same steps as their issuance, decided anew, on what was asked then.

 1. to 7. the grant as the caller's own, and what was asked for it, decided by the rules in force now
 8.       commit the intent    a kill, hold, reload or task's end that came first; a proof spent twice
 9.       ask the backend      only now may it live longer there
10.       commit what came of it, then answer

Nothing secret leaves, and no guard is read twice: a kill that comes meanwhile ends the credential at its backend,
however long it was to live. What stops in between leaves the later time on record, and a look at the earlier one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from broker.errors import AccessDenied, Conflict, Forbidden, Malformed, NotFound, TaskpassError, Unavailable
from broker.ledger import Command, Ledger, LedgerUnavailable
from broker.ledger.commands.guards import Stale
from broker.ledger.commands.issue import Refused
from broker.ledger.commands.renewal import AT_ITS_LIMIT, ENDED, NOT_RENEWABLE, NotRenewed, Renew, Renewed, Renewing
from broker.ledger.external_views import ExternalRow, Origin, external_grant_by_id, origin_of
from broker.ledger.writer import Writer
from broker.model import AgentCaller, Caller
from broker.rules import Rules, RulesInForce
from broker.service.asks import CredentialAsk
from broker.service.calls import Busy, StillRunning, place_of
from broker.service.credentials import Backend, external_json
from broker.service.steps import Case, Steps
from broker.telemetry import tracing
from issuers import IssuerError, NotRenewable, Renewer, renewer_of

log = structlog.get_logger(__name__)

_DECIDE_AGAIN = 8
_ASK_ANEW = "Ask for another one: POST /v1/credentials, or `taskpass secret`."
_NEXT: Mapping[str, str] = {
    ENDED: _ASK_ANEW,
    NOT_RENEWABLE: _ASK_ANEW,
    AT_ITS_LIMIT: "It ends with its task at the latest. For longer work open a task with a later deadline.",
}


@dataclass(frozen=True, slots=True)
class _Wish:
    """Whose credential is to live longer, by how much at most, and what was asked when it was issued."""

    caller: AgentCaller
    row: ExternalRow
    origin: Origin
    backend: Backend
    ttl_s: int


class Renewals:
    """The verb that has a credential live longer."""

    def __init__(
        self,
        *,
        rules: RulesInForce,
        ledger: Ledger,
        writer: Writer,
        steps: Steps,
        backends: Mapping[str, Backend],
    ) -> None:
        self._rules = rules
        self._ledger = ledger
        self._writer = writer
        self._steps = steps
        self._backends = backends

    async def renew(self, caller: Caller, grant_id: str, *, ttl_s: int | None = None) -> dict[str, Any]:
        """Have it live `ttl_s` from now, or as long again as it was first given; never beyond its task. Raises the
        TaskpassError that says why not; it then lives as long as before.
        """
        if not isinstance(caller, AgentCaller):
            raise Forbidden("Only the agent that holds a credential renews it.")
        if ttl_s is not None and ttl_s < 1:
            raise Malformed("ttl_seconds must be at least 1.")
        wish, renewer = self._found(caller, grant_id, ttl_s)
        renewing = await self._begin(wish)
        exp = await self._ask(wish, renewer, renewing)
        if not await self._commit(Renewed(renewing, exp)):
            raise _refusal(ENDED, "It was ended while it was being renewed.", renewing.decision_id)
        with self._ledger.read() as r:
            row = external_grant_by_id(r, grant_id)
        assert row is not None
        return {"id": grant_id, **external_json(row), "decision_id": renewing.decision_id}

    # --- 1 to 8 -------------------------------------------------------------------------------------------------------

    def _found(self, caller: AgentCaller, grant_id: str, ttl_s: int | None) -> tuple[_Wish, Renewer]:
        """The grant as the caller's own, and what can renew it. Raises NotFound, Conflict, Unavailable."""
        with self._ledger.read() as r:
            row = external_grant_by_id(r, grant_id)
            if row is None or row.agent != caller.id:
                raise NotFound(f"There is no credential {grant_id[:80]} of yours.")
            origin = origin_of(r, row.seq)
        backend = self._backends.get(row.issuer)
        if backend is None:
            raise Unavailable(f"No issuer {row.issuer} is configured in this broker.", retry_after=60)
        renewer = renewer_of(backend.issuer, row.handle)
        if renewer is None:
            raise _refusal(NOT_RENEWABLE, f"Credentials of {row.resource} live as long as they were made for.")
        return _Wish(caller, row, origin, backend, min(ttl_s or origin.life_s, backend.issuer.max_ttl_s)), renewer

    async def _begin(self, wish: _Wish) -> Renewing:
        rules = self._rules.current
        for _ in range(_DECIDE_AGAIN):
            case = self._decided(rules, wish)
            outcome = await self._commit(self._command(rules, case, wish))
            match outcome:
                case Renewing():
                    return outcome
                case Stale():
                    rules = await self._rules.catch_up()
                case Refused(reason=reason) if reason in _NEXT:
                    raise _refusal(reason, outcome.sentence, outcome.decision_id)
                case Refused():
                    raise self._steps.refused(case, outcome)
        raise Unavailable("The rules kept changing while this request was decided. Nothing was renewed.")

    def _decided(self, rules: Rules, wish: _Wish) -> Case:
        """3 to 6, as if it were asked for now."""
        agent = rules.registry.agents.get(wish.caller.id)
        if agent is None:
            raise Forbidden(f"{wish.caller.id} is not registered any more.")
        origin, task = wish.origin, None if wish.origin.implicit else wish.row.task
        ask = CredentialAsk(wish.row.resource, origin.actions, origin.parameters, task)
        request = ask.narrowed(rules.registry, traceparent=tracing.current())
        case = Case(request, workload=wish.caller.workload, agent=agent)
        for step in (self._steps.standing, self._steps.load_task, self._steps.narrow):
            if case.open:
                step(rules, case)
        if case.open:
            self._steps.decide(rules, [case])
        if case.gates and case.open:
            sentence = "A person approved it once, and for one credential: it is not renewed."
            case.refuse("approved_once", AccessDenied(sentence, outcome="approval", next=_ASK_ANEW))
        if case.result is not None:
            raise case.result
        return case

    def _command(self, rules: Rules, case: Case, wish: _Wish) -> Command:
        other = self._steps.without_issuing(rules, case)
        if other is not None:
            return other
        assert case.agent is not None
        assert case.verdict is not None
        ttl_s = min(wish.ttl_s, case.agent.limits.task_ttl_s)
        return Renew(wish.row.seq, wish.origin.jti, case.asked(), case.verdict, ttl_s * 1000)

    # --- 9, 10 --------------------------------------------------------------------------------------------------------

    async def _ask(self, wish: _Wish, renewer: Renewer, renewing: Renewing) -> int:
        """Until when the backend lets it live. Raises; what is not known by then, a look will tell."""
        stop = self._stopped(wish, renewing)
        if stop is not None:
            await self._commit(NotRenewed(renewing, "killed", happened=False))
            raise stop
        try:
            exp = await wish.backend.making.run(renewer.renew, renewing.handle, renewing.exp)
        except Exception as error:  # noqa: BLE001  (whatever a backend does becomes a recorded outcome)
            failure, certain = _failure(error)
            await self._commit(NotRenewed(renewing, failure.sentence, happened=not certain))
            failure.decision_id = renewing.decision_id
            raise failure from None
        return min(exp, renewing.exp)

    def _stopped(self, wish: _Wish, renewing: Renewing) -> AccessDenied | None:
        """The refusal, while a kill that the ledger has yet to record covers this grant."""
        row = wish.row
        return self._steps.stopped(agent=row.agent, audience=row.audience, task=row.task, jti=renewing.jti)

    async def _commit(self, command: Command) -> Any:  # noqa: ANN401  (each command has its own outcome)
        try:
            return await self._writer.submit(command)
        except LedgerUnavailable as error:
            raise Unavailable("The ledger cannot be written, so nothing is renewed.", internal=repr(error)) from error


def _refusal(reason: str, sentence: str, decision_id: str | None = None) -> Conflict:
    return Conflict(sentence, outcome=reason, retry=False, next=_NEXT[reason], decision_id=decision_id)


def _failure(error: Exception) -> tuple[TaskpassError, bool]:
    """What a caller learns of a backend's failure, and whether nothing was done for certain."""
    match error:
        case NotRenewable():
            return _refusal(NOT_RENEWABLE, error.sentence), True
        case IssuerError():
            return Unavailable(error.sentence, retry_after=max(1, round(error.retry_after_s or 1))), (
                error.happened is False
            )
        case Busy():
            return Unavailable("Too many requests wait for this backend. Nothing was renewed.", retry_after=2), True
        case StillRunning():
            return Unavailable("The backend does not answer.", retry_after=5), False
        case _:
            return Unavailable("The credential could not be renewed.", internal=place_of(error)), False
