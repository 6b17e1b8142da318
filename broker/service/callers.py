"""Who is asking: a bearer's assertion or session token becomes a `Caller`, or an error that says what was missing.

Sessions are credentials whose audience is the broker itself. They spare a caller from signing an assertion for every
heartbeat, and die like any other credential: by expiry, by a kill that covers them, or with their registration.
"""

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

from broker import jose
from broker.attest import AttestationFailed, KeysNeeded
from broker.errors import (
    AccessDenied,
    Forbidden,
    NotAuthenticated,
    NotFound,
    TaskpassError,
    UnauthorizedClient,
    Unavailable,
)
from broker.keys import Keyring
from broker.ledger import Ledger, LedgerUnavailable, views
from broker.ledger.commands.admin import OpenSession, RegisterInstance, SessionOpened, SessionRefused
from broker.ledger.commands.issue import Authenticate, RefuseCall
from broker.ledger.commands.replay import REPLAYED, mark_of
from broker.ledger.writer import Writer
from broker.model import AgentCaller, Caller, OperatorCaller, Proof, Right, SystemCaller, VerifierCaller, Workload
from broker.registry import Registry
from broker.rules import Rules, RulesInForce
from broker.service.refusals import Refusals

log = structlog.get_logger(__name__)

SESSION_TYP = "session+jwt"
SESSION_TTL_MS = {"agent": 900_000, "verifier": 900_000, "operator": 900_000}
_ASSERTION_NEEDED = "A session cannot open another: present an assertion."
_SESSIONS = 10_000
_KEYS_LAST_MS = 100
"""How long the keys of sessions are used before they are read again: the reports of a kill come by the hundred at once,
and a key is on show long before it signs.
"""
_MARK_WITHIN_S = 0.5
"""How long a kill waits for its proof to be marked as spent: a disk that hangs must not hold it up."""
_REFUSALS = (Forbidden, NotFound, AccessDenied, UnauthorizedClient, NotAuthenticated)


@dataclass(frozen=True, slots=True)
class Session:
    """A short session, as answered. Times in seconds."""

    token: str
    kind: str
    id: str
    expires_in: int


class Callers:
    """Authenticates callers of every route but the token endpoint."""

    def __init__(
        self,
        *,
        rules: RulesInForce,
        ledger: Ledger,
        writer: Writer,
        keyring: Keyring,
        refusals: Refusals,
        iss: str,
        now: Callable[[], int],
        host_now: Callable[[], int],
    ) -> None:
        """`now` is the ledger's time; `host_now` is the host's clock alone, which may be behind it."""
        self._rules = rules
        self._ledger = ledger
        self._writer = writer
        self._keyring = keyring
        self._refusals = refusals
        self._iss = iss
        self._now = now
        self._host_now = host_now
        self._session_profile = jose.Profile(
            typ=frozenset({SESSION_TYP}),
            algs=frozenset({"ES256"}),
            issuer=iss,
            audiences=frozenset({iss}),
            sole_audience=True,
            kind="session token",
            required=("sub", "kind", "seq", "iat"),
            max_lifetime_s=max(SESSION_TTL_MS.values()) // 1000,
        )
        self._session_keys: tuple[int, jose.KeySet] | None = None  # when they were read, and they
        self._sessions: dict[bytes, tuple[jose.KeySet, jose.Claims]] = {}  # verified: digest -> with which keys, what
        self._unrecorded: dict[bytes, int] = {}  # proofs of kills that the ledger could not mark: mark -> expiry

    async def authenticate(self, token: str | None, *, even_late: bool = False) -> Caller:
        """The caller, its single-use proof not yet spent. Raises NotAuthenticated.

        `even_late`, for kills, judges an assertion by the host's clock: while that is behind the ledger's time, whoever
        signs by the same clock would always be late, and a kill cannot wait. A session's times are the ledger's own.
        """
        if token is None:
            self._refusals.count("no_credential")
            raise NotAuthenticated("Send an assertion or a session token as `Authorization: Bearer`.")
        known = self._known_session(token)
        if known is not None:
            return self._by_session(known)
        try:
            unverified = jose.parse(token)
        except jose.JoseError as error:
            self._refusals.count(error.reason)
            raise NotAuthenticated(f"The bearer token is not acceptable: {error}.") from None
        if unverified.header.typ == SESSION_TYP:
            return self._by_session(self._verified_session(token))
        return await self._by_assertion(token, self._host_now() if even_late else self._now())

    async def spend(self, caller: Caller, route: str, *, even_unrecorded: bool = False) -> None:
        """Spend the caller's single-use proof for one request of `route`. Raises NotAuthenticated when it was spent
        before, Unavailable when that cannot be recorded; `even_unrecorded`, for kills, remembers it here instead, and
        takes one that is late because the ledger's time has run ahead of the host's clock.
        """
        proof = unspent_proof(caller)
        if proof is None:
            return
        command = Authenticate(kind_of(caller), caller.id, proof, route, even_late=even_unrecorded)
        submit = self._writer.submit_priority if even_unrecorded else self._writer.submit
        try:
            async with asyncio.timeout(_MARK_WITHIN_S if even_unrecorded else None):
                refusal = await submit(command)
        except (LedgerUnavailable, TimeoutError) as error:
            if not even_unrecorded:
                raise Unavailable("The ledger cannot be written, so this proof cannot be accepted.") from error
            now = self._now()
            self._unrecorded = {mark: expires for mark, expires in self._unrecorded.items() if expires > now}
            self._unrecorded[mark_of(proof)] = proof.expires
            return
        if refusal is not None:
            raise NotAuthenticated(REPLAYED, decision_id=refusal)

    async def refuse(self, caller: Caller, route: str, error: TaskpassError) -> str | None:
        """Record that an authenticated caller was refused, and spend its proof. The decision's id; None for what is no
        refusal (a slip in a request whose proof is spent, a fault), and when it cannot be recorded.
        """
        proof = unspent_proof(caller)
        if error.status >= 500 or (proof is None and not isinstance(error, _REFUSALS)):
            return None
        try:
            return str(await self._writer.submit(RefuseCall(kind_of(caller), caller.id, proof, route, error.code)))
        except LedgerUnavailable:
            log.error("refusal_not_recorded", caller=caller.id, route=route, code=error.code)
            return None

    async def open_session(self, caller: Caller) -> Session:
        """A session for a caller who proved its identity with an assertion. Raises NotAuthenticated, AccessDenied."""
        if isinstance(caller, SystemCaller) or caller.session_seq is not None:
            raise Forbidden(_ASSERTION_NEEDED)
        kind = kind_of(caller)
        owner = caller.agent.owner if isinstance(caller, AgentCaller) else None
        opened = await self._writer.submit(
            OpenSession(kind, caller.id, owner, unspent_proof(caller), SESSION_TTL_MS[kind])
        )
        return self._session(caller, opened)

    async def register_instance(self, caller: VerifierCaller, command: RegisterInstance) -> Session:
        """Register a verifier's process for the feed; its session is for acknowledgements. Raises NotAuthenticated for
        a spent proof, Forbidden for the id of another verifier's instance.
        """
        if caller.session_seq is not None:
            raise Forbidden(_ASSERTION_NEEDED)
        return self._session(caller, await self._writer.submit(command))

    def _session(
        self, caller: AgentCaller | VerifierCaller | OperatorCaller, opened: SessionOpened | SessionRefused
    ) -> Session:
        if isinstance(opened, SessionRefused):
            error = {"replayed": NotAuthenticated, "held": AccessDenied}.get(opened.reason, Forbidden)
            raise error(opened.sentence, decision_id=opened.decision_id)
        kind = kind_of(caller)
        claims: dict[str, Any] = {
            "iss": self._iss,
            "aud": self._iss,
            "sub": caller.id,
            "kind": kind,
            "iat": opened.opened // 1000,
            "exp": opened.expires // 1000,
            "seq": opened.seq,
        }
        if isinstance(caller, AgentCaller):
            workload = caller.workload
            claims["workload"] = [workload.trust, workload.kind, workload.issuer, workload.subject]
        token = self._keyring.session_signer().sign(SESSION_TYP, claims)
        return Session(token, kind, caller.id, claims["exp"] - claims["iat"])

    async def _by_assertion(self, token: str, now: int) -> Caller:
        rules = self._rules.current
        try:
            workload = await self._attest(rules, token, now)
        except (AttestationFailed, KeysNeeded) as error:
            self._refusals.count(error.reason if isinstance(error, AttestationFailed) else "unknown_key")
            if isinstance(error, AttestationFailed) and error.retry_after_s is not None:
                raise Unavailable(error.sentence, retry_after=error.retry_after_s) from None
            sentence = (
                error.sentence if isinstance(error, AttestationFailed) else "Its key is not among its issuer's keys."
            )
            raise NotAuthenticated(sentence) from None
        if workload.proof is not None and mark_of(workload.proof) in self._unrecorded:
            self._refusals.count("replayed")
            raise NotAuthenticated(REPLAYED)
        matched = rules.match(workload)
        match matched.kind:
            case "agent":
                return AgentCaller(rules.registry.agents[matched.id], workload)
            case "verifier":
                return VerifierCaller(rules.registry.verifiers[matched.id], workload.proof)
            case "operator":
                return OperatorCaller(rules.registry.operators[matched.id], workload.proof)
        self._refusals.count("not_registered")
        raise NotAuthenticated(matched.sentence, presented=dict(workload.claims))

    async def _attest(self, rules: Rules, token: str, now: int) -> Workload:
        audiences = frozenset({self._iss})
        try:
            return rules.attesters.attest(token, audiences=audiences, sole=True, now_ms=now)
        except KeysNeeded as needed:
            await rules.attesters.refresh(needed.source)
            return rules.attesters.attest(token, audiences=audiences, sole=True, now_ms=now)

    def _by_session(self, claims: jose.Claims) -> Caller:
        registry, seq, name = self._rules.current.registry, claims["seq"], claims["sub"]
        if claims["kind"] == "operator" and name in registry.operators:
            return OperatorCaller(registry.operators[name], session_seq=seq)
        if claims["kind"] == "verifier" and name in registry.verifiers:
            return VerifierCaller(registry.verifiers[name], session_seq=seq)
        if claims["kind"] == "agent" and name in registry.agents and not registry.agents[name].retired:
            with self._ledger.read() as r:  # kills are about agents: an operator's session must outlive them
                if views.kill_of(r, claims, "") is not None:
                    raise NotAuthenticated("This session has been killed; authenticate anew.")
            trust, kind, issuer, subject = claims["workload"]
            workload = Workload(
                trust=trust, kind=kind, issuer=issuer, subject=subject, claims={}, expires=claims["exp"] * 1000
            )
            return AgentCaller(registry.agents[name], workload, session_seq=seq)
        raise NotAuthenticated(f"{name} is not registered any more.")

    def _known_session(self, token: str) -> jose.Claims | None:
        """The claims of a session that was verified with the keys of today: since then it has only grown older."""
        known = self._sessions.get(hashlib.sha256(token.encode(errors="replace")).digest())
        if known is None or known[0] is not self._keys_of_sessions() or self._now() // 1000 >= known[1].expires_s:
            return None
        return known[1]

    def _verified_session(self, token: str) -> jose.Claims:
        """The session's claims, remembered."""
        keys = self._keys_of_sessions()
        digest = hashlib.sha256(token.encode()).digest()
        try:
            claims = jose.verify(token, keys.find, self._session_profile, self._now() // 1000)
        except jose.JoseError as error:
            self._sessions.pop(digest, None)
            self._refusals.count(error.reason)
            raise NotAuthenticated(f"The session token does not hold: {error}.", next="Authenticate anew.") from None
        if len(self._sessions) >= _SESSIONS:
            self._sessions.clear()
        self._sessions[digest] = (keys, claims)
        return claims

    def _keys_of_sessions(self) -> jose.KeySet:
        now = self._host_now()
        if self._session_keys is None or not 0 <= now - self._session_keys[0] <= _KEYS_LAST_MS:
            self._session_keys = now, self._keyring.verifying("session")
        return self._session_keys[1]


def unspent_proof(caller: Caller) -> Proof | None:
    """The single-use proof that this caller came with, if it must still be spent."""
    if isinstance(caller, SystemCaller) or caller.session_seq is not None:
        return None
    return caller.workload.proof if isinstance(caller, AgentCaller) else caller.proof


def kind_of(caller: Caller) -> str:
    """The caller's kind, as the guard table and the ledger write it."""
    match caller:
        case AgentCaller():
            return "agent"
        case VerifierCaller():
            return "verifier"
        case OperatorCaller():
            return "operator"
        case SystemCaller():
            return "system"


def need(caller: Caller, right: Right, *, owners: frozenset[str] | None = None) -> OperatorCaller:
    """The operator behind the caller, if it has this right over all of `owners` (None: over everything). Raises
    Forbidden, which says what is missing.
    """
    if not isinstance(caller, OperatorCaller):
        raise Forbidden(f"This needs an operator; you are {kind_of(caller)} {caller.id}. No workload can do it.")
    operator = caller.operator
    allowed = {Right.KILL, Right.READ} if operator.break_glass else operator.rights | {Right.READ}
    if right not in allowed:
        raise Forbidden(f"Operator {operator.id} has no right to {right.value}.", next="Ask an operator who has it.")
    if operator.owners is not None and (owners is None or not owners <= operator.owners):
        scope = ", ".join(sorted(operator.owners))
        raise Forbidden(
            f"Operator {operator.id} may {right.value} only what {scope} own.",
            next="Ask an operator with a wider scope.",
        )
    return caller


def may_see(registry: Registry, caller: Caller, agent_id: str) -> bool:
    """Whether what belongs to this agent exists for the caller: for itself, and for operators in whose scope it is."""
    if isinstance(caller, AgentCaller):
        return caller.id == agent_id
    agent = registry.agents.get(agent_id)
    try:
        need(caller, Right.READ, owners=frozenset({agent.owner}) if agent else None)
    except Forbidden:
        return False
    return True
