"""Answers for reviewers and services: explain a decision, a task's receipt, introspection, and the ledger itself.

Everything here is read from the ledger; nothing is kept apart from it that could disagree.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from broker import jose
from broker.errors import Forbidden, NotFound
from broker.keys import Keyring
from broker.ledger import Ledger, Reader, StoredEvent, make_id, parse_id, views
from broker.ledger.epochs import epoch_of, is_here
from broker.ledger.external_views import ExternalRow, external_grant, external_grant_by_id, external_of_task
from broker.ledger.proofs import Proofs
from broker.model import AgentCaller, Caller, OperatorCaller, Right, VerifierCaller
from broker.revocation import claims_of, external_receipt
from broker.rules import RulesInForce
from broker.service.callers import kind_of, may_see, need
from broker.service.credentials import external_json
from broker.stops import Stops
from broker.wire import Match

_OUTCOMES = frozenset({"issued", "issuing", "renewing", "approval.requested", "refused", "failed"})
_MAX_TOKEN_LIFE_S = 86_400


class Evidence:
    """Reads for callers of every kind, each within its own sight."""

    def __init__(
        self,
        *,
        rules: RulesInForce,
        ledger: Ledger,
        proofs: Proofs,
        keyring: Keyring,
        stops: Stops,
        iss: str,
        now: Callable[[], int],
    ) -> None:
        self._rules = rules
        self._ledger = ledger
        self._proofs = proofs
        self._keyring = keyring
        self._stops = stops
        self._iss = iss
        self._now = now

    # --- Decisions and tasks ------------------------------------------------------------------------------------------

    def explain(self, caller: Caller, decision_id: str) -> dict[str, Any]:
        """Everything about one decision: asked, decided, issued, and what happened after. Raises NotFound."""
        missing = NotFound(f"There is no decision {decision_id[:80]} of yours.")
        try:
            address = parse_id(decision_id)
        except ValueError:
            raise missing from None
        if address.kind not in ("dec", "grt"):
            raise missing
        with self._ledger.read() as r:
            if not is_here(r, address):
                raise missing
            event = self._proofs.event(r, address.seq)
            if event.type not in _OUTCOMES or not self._may_explain(caller, event.body):
                raise missing
            return self._explained(r, event)

    def task_receipt(self, caller: Caller, task_id: str) -> dict[str, Any]:
        """The story of a task, explicit or implicit, as evidence. Raises NotFound."""
        missing = NotFound(f"There is no task {task_id[:80]} of yours.")
        with self._ledger.read() as r:
            task = views.task(r, task_id)
            if task is None:
                grant = views.grant_by_id(r, task_id) or external_grant_by_id(r, task_id)
                if (
                    grant is None
                    or grant.task != task_id
                    or not may_see(self._rules.current.registry, caller, grant.agent)
                ):
                    return self._archived_task(r, caller, task_id, missing)
                return self._implicit_receipt(r, grant)
            if not may_see(self._rules.current.registry, caller, task.agent):
                raise missing
            events = [self._proofs.event(r, seq) for seq in views.task_story(r, task_id)]
            return {
                "task": task_id,
                "agent": task.agent,
                "owner": self._owner(task.agent),
                "state": task.state.value,
                "opened": task.opened,
                "deadline": task.deadline,
                "ended": task.ended,
                "trigger": {"kind": task.trigger, "ref": views.text(r, f"{task_id}/trigger_ref")},
                "purpose": views.text(r, f"{task_id}/purpose"),
                "on_behalf_of": views.text(r, f"{task_id}/on_behalf_of"),
                "events": [self._explained(r, event) for event in events],
                "external": external_receipt(external_of_task(r, task_id)),
                "head": _head(r),
            }

    def _implicit_receipt(self, r: Reader, grant: views.GrantRow | ExternalRow) -> dict[str, Any]:
        """A task that exists only inside the event of its one credential."""
        event = self._proofs.event(r, grant.seq)
        return {
            "task": grant.task,
            "agent": grant.agent,
            "state": "implicit",
            "opened": event.t,
            "purpose": None,
            "trigger": "implicit",
            "events": [self._explained(r, event)],
            "external": external_receipt(external_of_task(r, grant.task)),
            "head": _head(r),
        }

    def _archived_task(self, r: Reader, caller: Caller, task_id: str, missing: NotFound) -> dict[str, Any]:
        """How a task began whose rows went with the archived events. Raises InArchive where there is no archive."""
        try:
            address = parse_id(task_id, kind="tsk")
        except ValueError:
            raise missing from None
        if not is_here(r, address) or address.seq >= r.head().archived:
            raise missing
        event = self._proofs.event(r, address.seq)
        agent = str(event.body.get("agent"))
        if event.body.get("task") != task_id or not may_see(self._rules.current.registry, caller, agent):
            raise missing
        return {
            "task": task_id,
            "agent": agent,
            "state": "archived",
            "opened": event.t,
            "purpose": None,
            "trigger": {"kind": event.body["trigger"]} if "trigger" in event.body else "implicit",
            "events": [self._explained(r, event)],
            "complete": event.type == "issued",
            "head": _head(r),
        }

    def _explained(self, r: Reader, event: StoredEvent) -> dict[str, Any]:
        """An event as a reviewer reads it. `after` says how the credential stands now."""
        body = {key: value for key, value in event.body.items() if key != "proof"}
        told: dict[str, Any] = {"position": event.seq, "at": event.t, "type": event.type, **body}
        if event.type in _OUTCOMES:
            told["decision_id"] = make_id("dec", epoch_of(r, event.seq), event.seq)
        if event.type == "issued":
            told["after"] = self._standing(r, event)
        if event.type == "issuing":
            external = external_grant(r, event.seq)
            if external is not None:
                told["after"] = external_json(external)
            else:  # its row went with the event; nothing that may be at a backend is archived
                told["after"] = {"state": "over", "until": event.body["exp"] * 1000}
        return told

    def _standing(self, r: Reader, event: StoredEvent) -> dict[str, Any]:
        seq = event.seq
        grant = views.grant(r, seq)
        if grant is None:
            if seq < r.head().archived:  # its row went with the event; nothing that old is alive
                return {"state": "over", "until": event.body["exp"] * 1000}
            return {"state": "failed"}
        claims = claims_of(grant, make_id("grt", epoch_of(r, seq), 0)[:-1])
        killed_by = views.kill_of(r, claims, grant.kid)
        if killed_by is not None:
            return {
                "state": "revoked",
                "by": killed_by.id,
                "at": killed_by.at,
                "position": killed_by.seq,
                "reason": killed_by.reason,
            }
        expired = grant.expires <= max(r.head().time, self._now())
        return {"state": "expired" if expired else "live", "until": grant.expires}

    # --- OAuth: introspection (RFC 7662) ------------------------------------------------------------------------------

    def introspect(self, caller: Caller, token: str) -> dict[str, Any]:
        """What the token is worth to this caller, now. Everything that is not provably good is just inactive."""
        claims = self._own_token(token)
        if claims is None or not self._may_introspect(caller, claims):
            return {"active": False}
        with self._ledger.read() as r:
            grant = views.grant_by_id(r, str(claims.get("jti")))
            head = r.head()
            if grant is None or grant.seq != claims.get("seq") or grant.seq < head.floor:
                return {"active": False}
            if (self._stops.covering(claims, grant.kid) or views.kill_of(r, claims, grant.kid)) is not None:
                return {"active": False}
            if grant.expires <= max(head.time, self._now()):
                return {"active": False}
        shown = (
            "iss",
            "sub",
            "client_id",
            "aud",
            "iat",
            "exp",
            "jti",
            "scope",
            "authorization_details",
            "act",
            "cnf",
            "task",
            "seq",
        )
        return {"active": True, "token_type": "Bearer", **{name: claims[name] for name in shown if name in claims}}

    def grant_of(self, token: str) -> str | None:
        """The grant id of one of our access tokens, whatever its state; None for anything else."""
        claims = self._own_token(token, even_expired=True)
        return str(claims["jti"]) if claims else None

    def _own_token(self, token: str, *, even_expired: bool = False) -> Mapping[str, Any] | None:
        profile = jose.Profile(
            kind="access token",
            typ=frozenset({"at+jwt"}),
            issuer=self._iss,
            audiences=None,
            required=("sub", "jti", "seq", "aud", "iat"),
            max_lifetime_s=_MAX_TOKEN_LIFE_S,
            leeway_s=_MAX_TOKEN_LIFE_S if even_expired else 0,
        )
        try:
            return jose.verify(token, self._keyring.verifying("token").find, profile, self._now() // 1000)
        except jose.JoseError:
            return None

    def _may_introspect(self, caller: Caller, claims: Mapping[str, Any]) -> bool:
        if isinstance(caller, VerifierCaller):
            return claims.get("aud") in caller.verifier.audiences
        return isinstance(caller, AgentCaller | OperatorCaller) and may_see(
            self._rules.current.registry, caller, str(claims.get("sub"))
        )

    # --- Agents, approvals --------------------------------------------------------------------------------------------

    def agents(self, caller: Caller) -> list[dict[str, Any]]:
        """The registered agents in the operator's scope, with what they hold and what stops them. Counts, so it may
        take a while: call it from a thread.
        """
        names = sorted(self._rules.current.registry.agents)
        return self._agents([name for name in names if may_see(self._rules.current.registry, caller, name)])

    def agent(self, caller: Caller, agent_id: str) -> dict[str, Any]:
        """One agent. Raises NotFound."""
        if agent_id not in self._rules.current.registry.agents or not may_see(
            self._rules.current.registry, caller, agent_id
        ):
            raise NotFound(f"There is no agent {agent_id[:80]}.")
        return self._agents([agent_id])[0]

    def _agents(self, names: Sequence[str]) -> list[dict[str, Any]]:
        with self._ledger.read() as r:
            holds = views.holds(r)
            tasks = views.open_tasks_by_agent(r)
            live = _live_by_agent(r)
        return [self._agent(name, holds, tasks, live) for name in names]

    def _agent(
        self, agent_id: str, holds: list[views.HoldRow], tasks: Mapping[str, int], live: Mapping[str, int]
    ) -> dict[str, Any]:
        registry = self._rules.current.registry
        agent = registry.agents[agent_id]
        standing = [
            row.id
            for row in holds
            if (row.target, row.value) in {("agent", agent_id), ("owner", agent.owner), ("all", "")}
        ]
        problems = [str(problem) for problem in registry.agent_problems(agent, self._now())]
        state = "retired" if agent.retired else "paused" if standing else "blocked" if problems else "active"
        return {
            "id": agent_id,
            "owner": agent.owner,
            "purpose": agent.purpose,
            "workflow": agent.workflow,
            "state": state,
            "holds": standing,
            "problems": problems,
            "boundary": {resource: sorted(actions) for resource, actions in sorted(agent.boundary.items())},
            "review": None
            if agent.review is None
            else {"reviewer": agent.review.reviewer, "expires": agent.review.expires},
            "open_tasks": tasks.get(agent_id, 0),
            "live_tokens": live.get(agent_id, 0),
        }

    def approvals(self, caller: Caller, *, approval_id: str | None = None, limit: int = 100) -> list[dict[str, Any]]:
        """Requests that wait for a human: an agent's own, or those in the operator's scope."""
        with self._ledger.read() as r:
            rows = views.approvals(
                r, approval_id=approval_id, agent=caller.id if isinstance(caller, AgentCaller) else None, limit=limit
            )
            now = max(r.head().time, self._now())
        return [
            {
                "id": row.id,
                "state": "expired" if row.state == "pending" and row.expires <= now else row.state,
                "agent": row.agent,
                "task": row.task,
                "requested": row.requested,
                "position": row.requested_seq,
                "expires": row.expires,
                "digest": row.digest,
                "request": row.request,
                "gates": row.gates,
            }
            for row in rows
            if may_see(self._rules.current.registry, caller, row.agent)
        ]

    def approval(self, caller: Caller, approval_id: str) -> dict[str, Any]:
        """One of them. Raises NotFound."""
        found = self.approvals(caller, approval_id=approval_id)
        if not found:
            raise NotFound(f"There is no approval {approval_id[:80]} of yours.")
        return found[0]

    def whoami(self, caller: Caller) -> dict[str, Any]:
        """How the broker sees this caller."""
        match caller:
            case AgentCaller():
                seen = {**self.agent(caller, caller.id), "kind": "agent"}
                workload = caller.workload
                return seen | {
                    "workload": {"trust": workload.trust, "issuer": workload.issuer, "subject": workload.subject}
                }
            case VerifierCaller():
                return {"kind": "verifier", "id": caller.id, "audiences": sorted(caller.verifier.audiences)}
            case OperatorCaller():
                operator = caller.operator
                owners = "all" if operator.owners is None else sorted(operator.owners)
                return {
                    "kind": "operator",
                    "id": caller.id,
                    "name": operator.name,
                    "rights": sorted(operator.rights),
                    "owners": owners,
                    "break_glass": operator.break_glass,
                }
            case _:
                raise Forbidden("The broker itself is nobody.")

    # --- The ledger ---------------------------------------------------------------------------------------------------

    def events(self, caller: Caller, *, start: int, limit: int) -> list[dict[str, Any]]:
        """Events from a position on, decoded, with the exact bytes that the tree covers."""
        need(caller, Right.READ)
        with self._ledger.read() as r:
            stop = min(start + limit, r.head().size)
            found = [self._proofs.event(r, seq) for seq in range(start, stop)]
        return [{"position": e.seq, "at": e.t, "type": e.type, "body": e.body, "bytes": e.data.decode()} for e in found]

    def checkpoint(self) -> str:
        """A signed checkpoint of the tree as it stands (C2SP signed note)."""
        return self._proofs.checkpoint()

    def inclusion(self, seq: int, size: int | None) -> dict[str, Any]:
        """The proof that an event is in the tree of `size` (default: the newest checkpoint's). Raises NotFound."""
        return self._proofs.inclusion(seq, size)

    def consistency(self, first: int, second: int | None) -> dict[str, Any]:
        """The proof that the tree of size `first` is a prefix of the later one. Raises NotFound, Malformed."""
        return self._proofs.consistency(first, second)

    def _may_explain(self, caller: Caller, body: Mapping[str, Any]) -> bool:
        """A decision on a request is its agent's; one on any other call is its caller's."""
        kind, name = body.get("caller", ("agent", body.get("agent")))
        if kind == "agent" and name is not None:
            return may_see(self._rules.current.registry, caller, name)
        try:
            return (kind, name) == (kind_of(caller), caller.id) or need(caller, Right.READ) is not None
        except Forbidden:
            return False

    def _owner(self, agent_id: str) -> str | None:
        agent = self._rules.current.registry.agents.get(agent_id)
        return agent.owner if agent else None


def _live_by_agent(r: Reader) -> dict[str, int]:
    """Unexpired credentials that no kill covers, by agent."""
    counts: dict[str, int] = {}
    for each in views.live_counts(r, [(Match.ALL, "")]):
        counts[each.agent] = counts.get(each.agent, 0) + each.count
    return counts


def _head(r: Reader) -> dict[str, Any]:
    head = r.head()
    return {"epoch": head.epoch, "size": head.size}
