"""The outcome of one credential request: issued, refused, or waiting for a human.

All three spend the caller's proof and are events. Identifiers, lifetime and signing key are fixed here, inside the
commit: after it, minting only adds the signature, so a token's `seq` claim is the position of its own event.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from broker.ledger import Head, Tx, make_id
from broker.ledger.commands.guards import Stale, holding, task_problem
from broker.ledger.commands.replay import REPLAYED, mark_of, spend
from broker.model import Ask, Proof, Selector, Target, Workload

UNHEARD = "the outcome was not known in time"
"""Why nobody got a credential that is committed: its caller was told that nobody knows."""


class Asked(NamedTuple):
    """Who asks for what, as far as it is known when the request is settled: the head of every outcome's event."""

    agent: str
    owner: str
    workload: Workload
    task: str | None  # None: an implicit one-shot task
    ask: Ask | None  # None when the request was refused before it could be read
    traceparent: str | None = None  # W3C, as the request brought it

    def body(self) -> dict[str, Any]:
        """The members that every outcome's event shares."""
        workload = self.workload
        body: dict[str, Any] = {
            "agent": self.agent,
            "workload": {"trust": workload.trust, "issuer": workload.issuer, "subject": workload.subject},
        }
        if workload.instance is not None:
            body["workload"]["instance"] = workload.instance
        if workload.proof is not None:
            body["proof"] = mark_of(workload.proof).hex()
        if self.traceparent is not None:
            body["traceparent"] = self.traceparent
        if self.task is not None:
            body["task"] = self.task
        if self.ask is not None:
            body["resource"] = self.ask.resource
            body["actions"] = self.ask.actions
            if self.ask.parameters:
                body["parameters"] = self.ask.parameters
        return body


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the policy said, and against which bundle and registry it said it."""

    outcome: str  # automatic | approval | never
    policies: Sequence[str]
    policy_hash: str
    registry_hash: str
    reason: str | None = None

    def stale(self, head: Head) -> Stale | None:
        """The answer to a decision by other rules than those in force; None for one that counts."""
        if (head.registry_hash, head.policy_hash) == (self.registry_hash, self.policy_hash):
            return None
        return Stale(head.registry_hash, head.policy_hash)

    def body(self) -> dict[str, Any]:
        """As recorded in the event."""
        body = {
            "outcome": self.outcome,
            "policies": list(self.policies),
            "bundle": self.policy_hash,
            "registry": self.registry_hash,
        }
        if self.reason is not None:
            body["why"] = self.reason
        return body


class Issued(NamedTuple):
    """A committed issuance: everything that minting needs. Seconds, as in the token."""

    seq: int
    jti: str
    kid: str
    iat: int
    exp: int
    task: str
    decision_id: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A committed refusal."""

    reason: str
    sentence: str
    decision_id: str
    hold: str | None = None


@dataclass(frozen=True, slots=True)
class Pending:
    """A request that waits for a human, recorded."""

    approval_id: str
    decision_id: str
    expires: int


class Issue(NamedTuple):
    """Issue one credential if every guard still holds (DESIGN 2, step 8 of the pipeline).

    `ttl_ms` is the lifetime that agent and configuration allow; the task's deadline can only shorten it.
    """

    asked: Asked
    verdict: Verdict
    audience: str
    ttl_ms: int

    def apply(self, tx: Tx) -> "Issued | Refused | Stale":
        asked = self.asked
        refused = self.verdict.stale(tx.head) or check(tx, asked)
        if refused is not None:
            return refused
        iat, exp = lifetime(tx, asked, self.ttl_ms)
        if exp <= iat:
            return refuse(tx, asked, "too_short", "Less than a second of life is left under this task or identity.")
        return self._record(tx, iat, exp)

    def unheard(self, outcome: object) -> "Fail | None":
        """What must be written when this turns out to be committed after its caller was told that nobody knows."""
        return Fail(outcome, UNHEARD) if isinstance(outcome, Issued) else None

    def _record(self, tx: Tx, iat: int, exp: int) -> Issued:
        asked, ask, seq, kid = self.asked, self.asked.ask, tx.next_seq(), tx.head.active_kid
        assert ask is not None
        issued = Issued(
            seq=seq,
            jti=make_id("grt", tx.epoch, seq),
            kid=kid,
            iat=iat,
            exp=exp,
            task=asked.task or make_id("tsk", tx.epoch, seq),
            decision_id=make_id("dec", tx.epoch, seq),
        )
        body = asked.body()
        if asked.task is None:
            body["task"], body["implicit"] = issued.task, True
        tx.append("issued", {**body, **self.verdict.body(), "jti": issued.jti, "kid": kid, "iat": iat, "exp": exp})
        tx.put(
            "INSERT INTO grants (seq, task, agent, resource, audience, kid, expires) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (seq, issued.task, asked.agent, ask.resource, self.audience, kid, exp * 1000),
        )
        if asked.task is not None:
            tx.put("INSERT INTO task_events (task, seq) VALUES (?, ?)", (asked.task, seq))
            tx.put(
                "UPDATE tasks SET last_expiry = ? WHERE id = ? AND last_expiry < ?",
                (exp * 1000, asked.task, exp * 1000),
            )
        return issued


@dataclass(frozen=True, slots=True)
class Refuse:
    """Record a refusal of an authenticated agent: its proof is spent all the same."""

    asked: Asked
    reason: str
    sentence: str
    verdict: Verdict | None = None

    def apply(self, tx: Tx) -> "Refused | Stale":
        stale = None if self.verdict is None else self.verdict.stale(tx.head)
        if stale is not None:
            return stale
        if not spend(tx, self.asked.workload.proof):
            return _replayed(tx, self.asked)
        return refuse(tx, self.asked, self.reason, self.sentence, verdict=self.verdict)


@dataclass(frozen=True, slots=True)
class Pend:
    """Record that a human must decide this exact request. Asking again while it waits gives the same approval."""

    asked: Asked
    verdict: Verdict
    digest: str
    request: bytes  # RFC 8785 JSON: what the digest covers
    gates: Sequence[Mapping[str, Any]]
    lifetime_ms: int

    def apply(self, tx: Tx) -> "Pending | Refused | Stale":
        asked, verdict = self.asked, self.verdict
        refused = verdict.stale(tx.head) or check(tx, asked)
        if refused is not None:
            return refused
        tx.execute(
            "UPDATE approvals SET state = 'expired' WHERE digest = ? AND state = 'pending' AND expires <= ?",
            (self.digest, tx.now),
        )
        known = tx.execute(
            "SELECT id, expires FROM approvals WHERE digest = ? AND state = 'pending'", (self.digest,)
        ).fetchone()
        seq = tx.next_seq()
        approval_id, expires = known or (make_id("apr", tx.epoch, seq), tx.now + self.lifetime_ms)
        tx.append(
            "approval.requested",
            {**asked.body(), **verdict.body(), "approval": approval_id, "digest": self.digest, "expires": expires},
        )
        tell_task(tx, asked, seq)
        if known is None:
            tx.execute(
                "INSERT INTO approvals (id, digest, agent, task, state, requested_seq, requested, expires, request,"
                " gates) VALUES (?, ?, ?, ?, 'pending', ?, ?, ?, ?, ?)",
                (
                    approval_id,
                    self.digest,
                    asked.agent,
                    asked.task,
                    seq,
                    tx.now,
                    expires,
                    self.request.decode(),
                    orjson.dumps(list(self.gates)).decode(),
                ),
            )
        return Pending(approval_id, make_id("dec", tx.epoch, seq), expires)


@dataclass(frozen=True, slots=True)
class Fail:
    """Minting failed after its commit: nothing left, and the ledger says so."""

    issued: Issued
    why: str

    def apply(self, tx: Tx) -> int:
        tx.execute("DELETE FROM grants WHERE seq = ?", (self.issued.seq,))
        return tx.append("failed", {"jti": self.issued.jti, "task": self.issued.task, "why": self.why})


def check(tx: Tx, asked: Asked) -> Refused | None:
    """Spend the proof and look at every guard; the first that fails is recorded as the refusal."""
    if not spend(tx, asked.workload.proof):
        return _replayed(tx, asked)
    stop = stopped(tx, asked)
    return None if stop is None else refuse(tx, asked, stop.reason, stop.sentence, hold=stop.hold)


@dataclass(frozen=True, slots=True)
class Stop:
    """A guard that does not hold: nothing may be issued, and what has been made may not leave."""

    reason: str
    sentence: str
    hold: str | None = None


def _selectors(asked: Asked) -> Iterator[Selector]:
    yield Selector(Target.AGENT, asked.agent)
    yield Selector(Target.OWNER, asked.owner)
    if asked.ask is not None:
        yield Selector(Target.RESOURCE, asked.ask.resource)


def stopped(tx: Tx, asked: Asked) -> Stop | None:
    """The first guard of issuance that does not hold now: issuance itself, holds, the task."""
    if tx.head.issuance_stopped:
        return Stop("issuance_stopped", f"Issuance is stopped: {tx.head.issuance_stopped}")
    held = holding(tx, _selectors(asked))
    if held is not None:
        what, hold = held
        return Stop("held", f"Issuance for {what} is on hold ({hold}).", hold)
    if asked.task is not None:
        problem = task_problem(tx, asked.task, asked.agent)
        if problem is not None:
            return Stop(*problem)
    return None


def lifetime(tx: Tx, asked: Asked, ttl_ms: int) -> tuple[int, int]:
    """(iat, exp) in seconds of a credential that may live this long: the task's deadline can only shorten it."""
    expires = tx.now + ttl_ms
    if asked.task is not None:
        expires = min(expires, deadline_of(tx, asked.task))
    # Whole seconds on the wire: iat rounds down, never into the future; so does exp, never outliving a cap.
    return tx.now // 1000, expires // 1000


def deadline_of(tx: Tx, task: str) -> int:
    """When an explicit task ends."""
    (deadline,) = tx.execute("SELECT deadline FROM tasks WHERE id = ?", (task,)).fetchone()
    return int(deadline)


def refuse(
    tx: Tx, asked: Asked, reason: str, sentence: str, *, verdict: Verdict | None = None, hold: str | None = None
) -> Refused:
    """Append the refusal's event and return it."""
    seq = tx.next_seq()
    body = {**asked.body(), "reason": reason}
    if verdict is not None:
        body |= verdict.body()
    if hold is not None:
        body["hold"] = hold
    tx.append("refused", body)
    tell_task(tx, asked, seq)
    return Refused(reason, sentence, make_id("dec", tx.epoch, seq), hold)


def _replayed(tx: Tx, asked: Asked) -> Refused:
    return refuse(tx, asked, "replayed", REPLAYED)


def tell_task(tx: Tx, asked: Asked, seq: int) -> None:
    """Make the event part of the story of the caller's own task: another agent's is none of its business."""
    if asked.task is not None:
        tx.put(
            "INSERT INTO task_events (task, seq) SELECT id, ? FROM tasks WHERE id = ? AND agent = ?",
            (seq, asked.task, asked.agent),
        )


@dataclass(frozen=True, slots=True)
class Authenticate:
    """Spend the single-use proof of a caller of any other route, so that no assertion opens two of them."""

    kind: str  # agent | verifier | operator
    id: str
    proof: Proof
    route: str
    even_late: bool = False  # also with a proof that has expired by ledger time

    def apply(self, tx: Tx) -> str | None:
        """The refusal's decision id when the proof was spent before, else None."""
        if not spend(tx, self.proof, even_late=self.even_late):
            return refuse_call(tx, (self.kind, self.id), self.proof, self.route, "replayed")
        tx.append(
            "authenticated", {"caller": [self.kind, self.id], "route": self.route, "proof": mark_of(self.proof).hex()}
        )
        return None


@dataclass(frozen=True, slots=True)
class RefuseCall:
    """Record that a caller of any other route was refused. Its proof, if it still has one, is spent all the same."""

    kind: str  # agent | verifier | operator
    id: str
    proof: Proof | None
    route: str
    reason: str

    def apply(self, tx: Tx) -> str:
        """The refusal's decision id."""
        spend(tx, self.proof)
        return refuse_call(tx, (self.kind, self.id), self.proof, self.route, self.reason)


def refuse_call(tx: Tx, caller: tuple[str, str], proof: Proof | None, route: str, reason: str) -> str:
    """Append the refusal of a call and return its decision id."""
    body: dict[str, Any] = {"caller": caller, "reason": reason, "route": route}
    if proof is not None:
        body["proof"] = mark_of(proof).hex()
    return make_id("dec", tx.epoch, tx.append("refused", body))
