"""Credentials that live at a backend: a database login, a lease, a cloud key. The same steps as `issuance`, and then a
world outside of the transaction, so step 9 is in parts:

 1. to 7.                     as `issuance`; the route's guard has authenticated the caller
 8. commit the intent         a kill, hold, reload or task's end that came first; a proof spent twice. Meanwhile a
                              backend that can may begin with what has no effect until it is confirmed, see `ahead`
 9a. prepare, and record it   a credential at the backend that the ledger cannot find (in 8 already, if foreseen)
 9b. ask the backend          only now can there be one
10. check what was made       one that outlives its commit
11. commit again, then answer a kill, hold or task's end that came meanwhile: revoked, and not handed out

Whatever stops in between, this process included, leaves a row that `reconciler` ends.
"""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog

from broker.errors import AccessDenied, Forbidden, Malformed, NotFound, TaskpassError, Unavailable
from broker.ledger import Command, Ledger, LedgerUnavailable
from broker.ledger.commands.credentials import Abandon, Begin, Begun, Deliver, Delivered, GiveBack, Prepared
from broker.ledger.commands.guards import Stale
from broker.ledger.commands.issue import Asked, Pending, Refused, Stop
from broker.ledger.external_views import ExternalRow, external_grant_by_id
from broker.ledger.writer import Writer
from broker.model import AgentCaller, Caller
from broker.rules import Rules, RulesInForce
from broker.service.ahead import Ahead
from broker.service.asks import CredentialAsk
from broker.service.callers import may_see
from broker.service.calls import Busy, Calls, StillRunning, place_of
from broker.service.outcomes import approval_needed, refusal_error
from broker.service.steps import Case, Steps, split_actions
from broker.telemetry import tracing
from issuers import Ending, Handle, IssuerError, Minted, Order, SecretIssuer, Wish, renewer_of

log = structlog.get_logger(__name__)

_DECIDE_AGAIN = 8
_LEDGER_DOWN = "The ledger cannot be written, so nothing is issued."


@dataclass(frozen=True, slots=True)
class Backend:
    """One configured issuer, with the threads that call it: some to make credentials, some to end them."""

    issuer: SecretIssuer
    making: Calls
    ending: Calls

    def shut_down(self) -> None:
        """Begin no more calls, and let go of what the issuer keeps open."""
        self.making.close()
        self.ending.close()
        let_go: Callable[[], None] | None = getattr(self.issuer, "shut_down", None)
        if let_go is not None:
            let_go()


@dataclass(slots=True)
class _Case(Case):
    """One request on its way, and how long its credential may live."""

    ttl_s: int = 0


class Credentials:
    """Verbs on credentials at backends."""

    def __init__(
        self,
        *,
        rules: RulesInForce,
        ledger: Ledger,
        writer: Writer,
        steps: Steps,
        backends: Mapping[str, Backend],
        call_limit_s: float,
    ) -> None:
        self._rules = rules
        self._ledger = ledger
        self._writer = writer
        self._steps = steps
        self._backends = backends
        self._call_limit_s = call_limit_s
        self._settles_ms = int(2 * call_limit_s * 1000) + 5_000  # two calls, and the commit between them
        self._running: set[asyncio.Task[Any]] = set()

    async def issue(self, caller: Caller, ask: CredentialAsk) -> dict[str, Any]:
        """One credential. Raises the TaskpassError that says why not; an authenticated refusal is durable by then.

        Goes on to a recorded end when whoever asked has gone away.
        """
        if not isinstance(caller, AgentCaller):
            raise Forbidden("Only an agent is issued credentials.")
        return await asyncio.shield(self._tracked(self._issue(caller, ask)))

    async def _issue(self, caller: AgentCaller, ask: CredentialAsk) -> dict[str, Any]:
        """The numbered pipeline."""
        with Ahead(patience_s=self._call_limit_s) as ahead:
            case, begun = await self._begin(caller, ask, ahead)  # 1 to 8
            return await self._made(case, begun, ahead)

    async def _made(self, case: _Case, begun: Begun, ahead: Ahead) -> dict[str, Any]:
        """9 to 11."""
        asked, backend = case.asked(), self._backends[begun.issuer]
        assert asked.ask is not None
        order = _order(begun, case)
        try:
            prepared = await self._prepare(backend, order, begun, asked)  # 9a
            minted = await self._make(backend, order, begun, prepared, ahead)  # 9b
            await self._check(minted, order, begun)  # 10
            delivered = await self._deliver(order, begun, asked, minted)  # 11
        except TaskpassError as error:
            error.decision_id = error.decision_id or begun.decision_id
            raise
        ending = _ending(backend.issuer, order.settings)
        renewable = asked.task is not None and renewer_of(backend.issuer, minted.handle) is not None
        more = {"resource": asked.ask.resource, "renewable": renewable, "seq": delivered.seq}
        return {**_answer(begun, order, minted, ending), **more}

    # --- Steps 1 to 8 -------------------------------------------------------------------------------------------------

    async def _begin(self, caller: AgentCaller, ask: CredentialAsk, ahead: Ahead) -> tuple[_Case, Begun]:
        rules = self._rules.current
        for _ in range(_DECIDE_AGAIN):
            case = self._decided(rules, caller, ask)
            if case.result is not None:
                raise case.result
            command = self._command(rules, case)
            if isinstance(command, Begin):
                self._look_ahead(case, ahead)
            try:
                outcome = await self._writer.submit(command)
            except LedgerUnavailable as error:
                raise Unavailable(_LEDGER_DOWN, internal=repr(error)) from error
            match outcome:
                case Begun():
                    return case, outcome
                case Stale():
                    rules = await self._rules.catch_up()
                case Pending():
                    raise approval_needed(outcome, case.gates, case.verdict)
                case Refused():
                    raise self._steps.refused(case, outcome)
        raise Unavailable("The rules kept changing while this request was decided. Nothing was issued.")

    def _decided(self, rules: Rules, caller: AgentCaller, ask: CredentialAsk) -> _Case:
        """3 to 6. What is malformed is the caller's slip; everything else becomes a recorded refusal."""
        agent = rules.registry.agents.get(caller.id)
        if agent is None:
            raise Forbidden(f"{caller.id} is not registered any more.")
        case = _Case(ask.narrowed(rules.registry, traceparent=tracing.current()), workload=caller.workload, agent=agent)
        for step in (self._steps.standing, self._steps.load_task, self._steps.narrow):
            if case.open:
                step(rules, case)
        if case.open:
            self._limit(case, ask)
        if case.open:
            self._steps.decide(rules, [case])
        return case

    def _limit(self, case: _Case, ask: CredentialAsk) -> None:
        """5: no longer than was asked, than the agent's work may take, and than the issuer can take back or bound."""
        assert case.agent is not None
        assert case.resource is not None
        backend = self._backends.get(case.resource.issuer)
        if backend is None:
            case.result = Unavailable(f"No issuer {case.resource.issuer} is configured in this broker.", retry_after=60)
            return
        issuer, limits = backend.issuer, case.agent.limits
        under_no_task = max(limits.token_ttl_s, issuer.min_ttl_s)  # used at once, as a token is
        wanted = ask.ttl_s or (issuer.max_ttl_s if ask.task else under_no_task)
        case.ttl_s = min(wanted, issuer.max_ttl_s, limits.task_ttl_s)
        if case.ttl_s < issuer.min_ttl_s:
            error = Malformed(
                f"{case.resource.id} has credentials of {issuer.min_ttl_s} s at least; {case.ttl_s} s is too short."
            )
            case.refuse(error.code, error)

    def _command(self, rules: Rules, case: _Case) -> Command:
        other = self._steps.without_issuing(rules, case)
        if other is not None:
            return other
        assert case.resource is not None
        assert case.verdict is not None
        issuer = self._backends[case.resource.issuer].issuer
        foreseen: Callable[[Order], Handle | None] = getattr(issuer, "foreseen", lambda _: None)
        return Begin(
            asked=case.asked(),
            verdict=case.verdict,
            audience=case.resource.audience,
            issuer=case.resource.issuer,
            ending=_ending(issuer, case.resource.settings).value,
            ttl_ms=case.ttl_s * 1000,
            min_ttl_ms=issuer.min_ttl_s * 1000,
            settles_ms=self._settles_ms,
            foreseen=lambda begun: foreseen(_order(begun, case)),
        )

    def _look_ahead(self, case: _Case, ahead: Ahead) -> None:
        """Have the backend begin with what it undoes by itself, while the intent is being committed."""
        assert case.ask is not None
        assert case.resource is not None
        backend = self._backends[case.resource.issuer]
        ahead.begin(
            backend.making, backend.issuer, Wish(*split_actions(case.resource, case.ask), case.resource.settings)
        )

    # --- Steps 9 to 11 ------------------------------------------------------------------------------------------------

    async def _prepare(self, backend: Backend, order: Order, begun: Begun, asked: Asked) -> Handle:
        """9a. Raises; what was prepared and not recorded ends by its own short limit."""
        stop = self._stopped(order)
        if stop is not None:
            await self._abandon(Abandon(begun, "killed", happened=False))
            raise stop
        if begun.prepared is not None:
            return begun.prepared
        try:
            prepared = await backend.making.run(backend.issuer.prepare, order)
        except Exception as error:  # noqa: BLE001  (whatever a backend does becomes a recorded end)
            await self._abandon(Abandon(begun, _why(error), happened=False))
            raise _unavailable(error) from None
        refused = await self._commit(Prepared(begun, asked, prepared))
        if isinstance(refused, Stop):
            await self._abandon(Abandon(begun, refused.reason, happened=True))
            raise _refused(refused)
        return prepared

    async def _make(self, backend: Backend, order: Order, begun: Begun, prepared: Handle, ahead: Ahead) -> Minted:
        """9b. Raises; unless the backend certainly did nothing, what it may have done is revoked."""
        stop = self._stopped(order)
        if stop is not None:
            await self._abandon(Abandon(begun, "killed", happened=True))
            raise stop
        try:
            return await ahead.make(backend.making, backend.issuer, order, prepared)
        except StillRunning as late:
            await self._abandon(Abandon(begun, _why(late), happened=True, settled=False))
            self._tracked(self._when_back(late.call, begun))
            raise _unavailable(late) from None
        except Exception as error:  # noqa: BLE001  (whatever a backend does becomes a recorded end)
            certainly_not = isinstance(error, Busy) or (isinstance(error, IssuerError) and error.happened is False)
            await self._abandon(Abandon(begun, _why(error), happened=not certainly_not))
            raise _unavailable(error) from None

    async def _check(self, minted: Minted, order: Order, begun: Begun) -> None:
        """10: what was made is what was committed."""
        if order.iat < minted.exp <= order.exp and minted.values and minted.handle:
            return
        await self._abandon(Abandon(begun, "not what was ordered", happened=True, handle=minted.handle))
        raise Unavailable("The backend made something else than was ordered. It is being revoked.")

    async def _deliver(self, order: Order, begun: Begun, asked: Asked, minted: Minted) -> Delivered:
        """11: the second commit, with every guard read again."""
        outcome = await self._commit(Deliver(begun, asked, minted.handle, minted.exp))
        if isinstance(outcome, Stop):
            raise _refused(outcome)
        assert isinstance(outcome, Delivered)
        stop = self._stopped(order)  # a kill that the ledger could not take may have come during the commit
        if stop is not None:
            await self._abandon(Abandon(begun, "killed", happened=True))
            raise stop
        return outcome

    async def _when_back(self, call: "Future[Any]", begun: Begun) -> None:
        """A call that took too long: what it made, if anything, is known only now."""
        handle = None
        try:
            made = await asyncio.wrap_future(call)
            handle = made.handle if isinstance(made, Minted) else None
        except Exception as error:  # noqa: BLE001  (whoever asked has been answered; the reconciler looks)
            log.info("late_call_failed", jti=begun.jti, why=_why(error))
        await self._abandon(Abandon(begun, "too late", happened=True, handle=handle))

    def _stopped(self, order: Order) -> AccessDenied | None:
        """The refusal, while a kill that the ledger has yet to record covers this grant."""
        return self._steps.stopped(agent=order.agent, audience=order.audience, task=order.task, jti=order.jti)

    async def _commit(self, command: Command) -> Any:  # noqa: ANN401  (each command has its own outcome)
        """Raises Unavailable: then the row stays as it is, and is ended once its calls have settled."""
        try:
            return await self._writer.submit(command)
        except LedgerUnavailable as error:
            raise Unavailable(_LEDGER_DOWN, internal=repr(error)) from error

    async def _abandon(self, command: Abandon) -> None:
        try:
            await self._writer.submit(command)
        except LedgerUnavailable as error:  # the intent has no outcome, so it is ended without this
            log.error("abandoned_unrecorded", jti=command.begun.jti, error=str(error))

    def _tracked(self, work: Any) -> "asyncio.Task[Any]":  # noqa: ANN401  (a coroutine of any result)
        task: asyncio.Task[Any] = asyncio.ensure_future(work)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # looked at: whoever asked may have gone away

    # --- What was issued ----------------------------------------------------------------------------------------------

    def get(self, caller: Caller, grant_id: str) -> dict[str, Any]:
        """One external grant as its agent, or an operator, may see it. Never its secret. Raises NotFound."""
        with self._ledger.read() as r:
            row = external_grant_by_id(r, grant_id)
        if row is None or not may_see(self._rules.current.registry, caller, row.agent):
            raise NotFound(f"There is no credential {grant_id[:80]} of yours.")
        return {"id": grant_id, **external_json(row)}

    async def give_back(self, caller: Caller, grant_id: str) -> dict[str, Any]:
        """Its holder is done with it: from here on it is being revoked. Raises NotFound."""
        if not isinstance(caller, AgentCaller):
            raise Forbidden("An operator ends a credential with `taskpass kill grant`, which gives a receipt.")
        with self._ledger.read() as r:
            row = external_grant_by_id(r, grant_id)
        if row is None or row.agent != caller.id:
            raise NotFound(f"There is no credential {grant_id[:80]} of yours.")
        await self._writer.submit(GiveBack(row.seq, caller.id))
        return self.get(caller, grant_id)


def external_json(row: ExternalRow) -> dict[str, Any]:
    """An external grant on the wire. Times are RFC 3339."""
    body = {
        "task": row.task,
        "agent": row.agent,
        "resource": row.resource,
        "issuer": row.issuer,
        "ending": row.ending,
        "state": row.state.value,
        "handle": dict(row.handle),
        "expires_at": rfc3339(row.expires),
        "ended_seq": row.ended_seq,
        "gone_at": None if row.gone is None or row.gone_seq is None else rfc3339(row.gone),
        "gone_seq": row.gone_seq,
        "tries": row.tries or None,
        "problem": row.problem,
        "note": row.note,
    }
    return {key: value for key, value in body.items() if value is not None}


def rfc3339(ms: int) -> str:
    """A ledger time as people and machines both read it; whole seconds, rounded down."""
    return datetime.fromtimestamp(ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _ending(issuer: SecretIssuer, settings: Mapping[str, Any]) -> Ending:
    """How a credential of this resource ends: an issuer of several kinds tells by the resource's settings."""
    ending_of: Callable[[Mapping[str, Any]], Ending] | None = getattr(issuer, "ending_of", None)
    return issuer.ending if ending_of is None else ending_of(settings)


def _order(begun: Begun, case: Case) -> Order:
    """What the intent fixed, for the issuer."""
    assert case.agent is not None
    assert case.ask is not None
    assert case.resource is not None
    actions, limited = split_actions(case.resource, case.ask)
    return Order(
        seq=begun.seq,
        jti=begun.jti,
        kid=begun.kid,
        agent=case.agent.id,
        task=begun.task,
        audience=case.resource.audience,
        actions=actions,
        limited=limited,
        parameters=case.ask.parameters,
        iat=begun.iat,
        exp=begun.exp,
        settings=case.resource.settings,
        deadline=begun.deadline,
    )


def _answer(begun: Begun, order: Order, minted: Minted, ending: Ending) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "id": begun.jti,
        "task": begun.task,
        "actions": sorted((*order.actions, *order.limited)),
        "parameters": dict(order.parameters),
        "issuer": begun.issuer,
        "ending": ending.value,
        "values": dict(minted.values),
        "handle": dict(minted.handle),
        "decision_id": begun.decision_id,
        "issued_at": rfc3339(begun.iat * 1000),
        "expires_at": rfc3339(minted.exp * 1000),
    }
    if ending is Ending.EXPIRES_ONLY:
        answer["note"] = f"It cannot be taken back: it works until {answer['expires_at']}."
    return answer


def _refused(stop: Stop) -> TaskpassError:
    """A guard stopped it between the commits. The same words as before the first one."""
    return refusal_error(Refused(stop.reason, stop.sentence, "", stop.hold), grant="")


def _unavailable(error: Exception) -> Unavailable:
    """What a caller learns of a backend's failure: never what the backend said."""
    match error:
        case IssuerError():
            return Unavailable(error.sentence, retry_after=max(1, round(error.retry_after_s or 1)))
        case Busy():
            return Unavailable("Too many requests wait for this backend. Nothing was issued.", retry_after=2)
        case StillRunning():
            return Unavailable("The backend does not answer. What it may have made is being revoked.", retry_after=5)
        case _:
            return Unavailable("The credential could not be made.", internal=place_of(error))


def _why(error: Exception) -> str:
    """For the ledger: our own words, or the name of what nobody foresaw, never its text."""
    match error:
        case IssuerError():
            return error.sentence[:200]
        case Busy():
            return "the backend was not asked: too many requests wait for it"
        case StillRunning():
            return "the backend did not answer in time"
        case _:
            return type(error).__name__
