"""The main path: a workload's assertion in, one short-lived credential out, or a recorded refusal.

Requests that have come together are one batch, because the stages evict each other's caches: verify all, decide
all, commit all in one transaction, mint all. A failing request fails alone. The steps, and what each of them stops:

 1. bound and parse        oversized, repeated and ambiguous parameters (`asks.read_token_request`, before this module)
 2. authenticate           forged, cross-used, expired and mis-addressed assertions
 3. map to one agent       a valid workload that nobody registered, or that two registrations claim
 4. load the task          another agent's task
 5. narrow                 unknown actions, mistyped parameters
 6. decide                 what no policy permits, what lies outside the reviewed boundary, any error in a policy
 7. approval               what needs a human first
 8. commit                 a kill, hold, reload or task's end that came first; a proof spent twice; an unwritable ledger
                           (before it, a signing key out of reach: of what could not be signed nothing is written)
 9. mint                   a credential that the ledger does not know
10. check what was minted  a credential that differs from its commit
11. answer                 (`web.token`)
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import structlog

from broker.attest import AttestationFailed, KeysNeeded
from broker.errors import InvalidGrant, NotAuthenticated, TaskpassError, Unavailable
from broker.ledger import Command, LedgerUnavailable
from broker.ledger.commands.guards import Stale
from broker.ledger.commands.issue import Fail, Issue, Issued, Pending, Refused
from broker.ledger.writer import Writer
from broker.rules import Rules, RulesInForce
from broker.service.asks import TokenRequest
from broker.service.batching import Batcher
from broker.service.outcomes import approval_needed
from broker.service.refusals import Refusals
from broker.service.steps import Case, Steps, split_actions
from issuers import Order, TokenIssuer

log = structlog.get_logger(__name__)

_DECIDE_AGAIN = 8
"""How often one batch may find newer rules at its commit. More means that reloads never pause: give up, visibly."""


class TokenAnswer(NamedTuple):
    """A granted request: the credential, and what was granted."""

    token: str
    order: Order
    decision_id: str


Tell = Callable[[TokenAnswer | Exception], None]
"""Takes the answer to one request, on the event loop. Must not raise."""


@dataclass(slots=True)
class TokenCase(Case):
    """One token request on its way."""

    issued: Issued | None = None


class Issuance:
    """Takes credential requests through the pipeline, in batches."""

    def __init__(
        self,
        *,
        rules: RulesInForce,
        writer: Writer,
        steps: Steps,
        issuer: TokenIssuer,
        prepare: Callable[[], Awaitable[None]],
        refusals: Refusals,
        iss: str,
        token_endpoint: str,
        ttl_ms: int,
        now: Callable[[], int],
        observe: Callable[[Sequence[TokenRequest], Sequence[TokenAnswer | Exception], float], None] | None = None,
    ) -> None:
        """`prepare` raises Unavailable when what is committed now could not be signed."""
        self._rules = rules
        self._writer = writer
        self._steps = steps
        self._issuer = issuer
        self._prepare = prepare
        self._refusals = refusals
        # rfc7523bis: a client assertion names the issuer and nothing else; a grant may name the endpoint instead.
        self._audiences = {"client_credentials": frozenset({iss}), "jwt_bearer": frozenset({iss, token_endpoint})}
        self._iss = iss
        self._ttl_ms = ttl_ms
        self._now = now
        self._batcher = Batcher(self.issue_batch, observe=observe, overlap=lambda: writer.on_slow_disk)
        self._fetching: set[asyncio.Task[None]] = set()

    async def issue(self, request: TokenRequest) -> TokenAnswer:
        """One credential. Raises the TaskpassError that says why not; an authenticated refusal is durable by then."""
        answer: asyncio.Future[TokenAnswer] = asyncio.get_running_loop().create_future()
        self.submit(request, partial(_settle, answer))
        return await answer

    def submit(self, request: TokenRequest, tell: Tell) -> None:
        """As `issue`, for a caller that has nothing to wait with: `tell` gets the answer, or what `issue` raises."""
        self._batcher.submit(request, partial(self._tell, request, tell))

    def _tell(self, request: TokenRequest, tell: Tell, answer: TokenAnswer | Exception) -> None:
        if isinstance(answer, KeysNeeded):
            again = asyncio.ensure_future(self._with_fetched_keys(request, answer.source, tell))
            self._fetching.add(again)
            again.add_done_callback(self._fetching.discard)
        else:
            tell(answer)

    async def _with_fetched_keys(self, request: TokenRequest, source: str, tell: Tell) -> None:
        """Fetch outside the batch, then stand in line again, once: whoever invents key ids waits on nobody else."""

        def tell_last(answer: TokenAnswer | Exception) -> None:
            if isinstance(answer, KeysNeeded):
                self._refusals.count("unknown_key")
                answer = _unauthenticated(request, "The assertion's key is not among its issuer's published keys.")
            tell(answer)

        await self._rules.current.attesters.refresh(source)
        self._batcher.submit(request, tell_last)

    async def issue_batch(self, requests: Sequence[TokenRequest]) -> Sequence[TokenAnswer | Exception]:
        """The numbered pipeline."""
        cases = [TokenCase(request) for request in requests]
        for _ in range(_DECIDE_AGAIN):
            waiting = [case for case in cases if case.result is None and case.issued is None]
            if not waiting:
                break
            rules = self._rules.current
            for case in waiting:
                case.start_over()
            self._identify(rules, waiting)  # 2, 3
            self._evaluate(rules, [case for case in waiting if case.open])  # 4, 5, 6
            await self._see_to_the_key(waiting)
            if await self._commit(rules, [case for case in waiting if case.result is None]):  # 7, 8
                await self._rules.catch_up()
        await self._mint([case for case in cases if case.issued is not None])  # 9, 10
        return [case.result or _UNSETTLED for case in cases]

    def _identify(self, rules: Rules, cases: Sequence[TokenCase]) -> None:
        _each(partial(self._authenticate, now_ms=self._now()), rules, cases)
        _each(self._map, rules, cases)

    def _evaluate(self, rules: Rules, cases: Sequence[TokenCase]) -> None:
        _each(self._steps.load_task, rules, cases)
        _each(self._steps.narrow, rules, cases)
        self._steps.decide(rules, [case for case in cases if case.open])

    def _authenticate(self, rules: Rules, case: TokenCase, *, now_ms: int) -> None:
        """2: every claim of the assertion checked by the one attester that its issuer names."""
        request = case.request
        try:
            case.workload = rules.attesters.attest(
                request.assertion, audiences=self._audiences[request.grant], sole=True, now_ms=now_ms
            )
        except KeysNeeded as needed:
            case.result = needed
        except AttestationFailed as failed:
            self._refusals.count(failed.reason)
            if failed.retry_after_s is not None:
                case.result = Unavailable(failed.sentence, retry_after=failed.retry_after_s)
                return
            case.result = _unauthenticated(request, failed.sentence, presented=failed.presented)

    def _map(self, rules: Rules, case: TokenCase) -> None:
        """3: exactly one registered agent, in good standing."""
        assert case.workload is not None
        match = rules.match(case.workload)
        if match.kind != "agent":
            self._refusals.count("not_registered")
            case.result = _unauthenticated(case.request, match.sentence, presented=dict(case.workload.claims))
            return
        agent = case.agent = rules.registry.agents[match.id]
        self._steps.standing(rules, case)
        if case.open and case.request.client_id not in (None, agent.id, case.workload.subject):
            case.refuse(
                "client_id_differs",
                NotAuthenticated(
                    f"client_id names another client than the assertion, which is {agent.id}'s.",
                    next="Send no client_id.",
                ),
            )

    async def _see_to_the_key(self, cases: Sequence[TokenCase]) -> None:
        """Before 8: refuse what could not be signed while no proof is spent for it."""
        try:
            await self._prepare()
        except Unavailable as error:
            for case in cases:
                if case.open and not case.gates:
                    case.result = error

    async def _commit(self, rules: Rules, cases: Sequence[TokenCase]) -> bool:
        """7, 8: one ledger batch; every guard is read again inside it. True when some must be decided again."""
        commands = [self._command(rules, case) for case in cases]
        try:
            outcomes = await self._writer.submit_many(commands)
        except LedgerUnavailable as error:
            outcomes = [error] * len(cases)
        stale = False
        for case, outcome in zip(cases, outcomes, strict=True):
            match outcome:
                case Stale():
                    stale = True
                case Issued():
                    case.issued = outcome
                case Pending():
                    case.result = approval_needed(outcome, case.gates, case.verdict)
                case Refused():
                    case.result = self._steps.refused(case, outcome)
                case _:
                    log.error("commit_failed", error=repr(outcome))
                    case.result = Unavailable(
                        "The ledger cannot be written, so nothing is issued.", internal=repr(outcome)
                    )
        return stale

    def _command(self, rules: Rules, case: TokenCase) -> Command:
        other = self._steps.without_issuing(rules, case)
        if other is not None:
            return other
        assert case.agent is not None
        assert case.verdict is not None
        assert case.resource is not None
        ttl_ms = min(self._ttl_ms, case.agent.limits.token_ttl_s * 1000)
        return Issue(case.asked(), case.verdict, case.resource.audience, ttl_ms)

    async def _mint(self, cases: Sequence[TokenCase]) -> None:
        """9, 10: sign what was committed. A failure is recorded; the position stays spent."""
        orders = [_order(case) for case in cases]
        tokens: Sequence[str | Exception]
        try:
            tokens = await self._issuer.issue_all(orders)
        except Exception as error:
            log.exception("minting_failed")
            tokens = [error] * len(orders)
        for case, order, token in zip(cases, orders, tokens, strict=True):
            assert case.issued is not None
            case.result = self._steps.stopped(  # again: a kill may have come meanwhile
                agent=order.agent, audience=order.audience, task=order.task, jti=order.jti, kid=order.kid
            )
            if case.result is not None:
                await self._fail(case.issued, "killed")
            elif isinstance(token, Exception):
                log.error("not_minted", seq=order.seq, error=repr(token), internal=getattr(token, "internal", None))
                case.result = Unavailable(
                    "The credential could not be minted. Nothing was issued.", internal=repr(token)
                )
                await self._fail(case.issued, type(token).__name__)
            else:
                case.result = TokenAnswer(token, order, case.issued.decision_id)

    async def _fail(self, issued: Issued, why: str) -> None:
        """Record that no credential ever left, though its position says "issued"."""
        with suppress(LedgerUnavailable):
            await self._writer.submit(Fail(issued, why))


_UNSETTLED = Unavailable("The rules kept changing while this request was decided. Nothing was issued.")


def _settle(future: "asyncio.Future[TokenAnswer]", answer: TokenAnswer | Exception) -> None:
    if future.done():  # the caller gave up
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)


def _each(step: Callable[[Rules, Any], None], rules: Rules, cases: Sequence[TokenCase]) -> None:
    """Take every open case through one step. What nobody foresaw fails its own request, not the batch."""
    for case in cases:
        if case.open:
            try:
                step(rules, case)
            except Exception as error:  # noqa: BLE001  (becomes the answer to this request: a 500 that leaks nothing)
                case.result = error


def _order(case: TokenCase) -> Order:
    """What the commit fixed, for the issuer."""
    issued, agent, resource, ask = case.issued, case.agent, case.resource, case.ask
    assert issued is not None
    assert agent is not None
    assert resource is not None
    assert ask is not None
    actions, limited = split_actions(resource, ask)
    return Order(
        seq=issued.seq,
        jti=issued.jti,
        kid=issued.kid,
        agent=agent.id,
        task=issued.task,
        audience=resource.audience,
        actions=actions,
        limited=limited,
        parameters=ask.parameters,
        iat=issued.iat,
        exp=issued.exp,
    )


def _unauthenticated(request: TokenRequest, sentence: str, **members: Any) -> TaskpassError:  # noqa: ANN401
    """The code that the grant prescribes: the assertion is the client authentication, or it is the grant itself."""
    error = InvalidGrant if request.grant == "jwt_bearer" else NotAuthenticated
    return error(sentence, **members)
