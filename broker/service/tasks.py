"""The task's life, as its agent drives it: open, heartbeat, end. Expiry is the broker's (`broker.upkeep`)."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from broker.errors import AccessDenied, Conflict, Forbidden, Malformed, NotAuthenticated, NotFound, UnauthorizedClient
from broker.jose.encoding import printable
from broker.ledger import Ledger, views
from broker.ledger.commands.tasks import EndTask, Heartbeat, OpenTask, TaskOpened, TaskOver, TaskRefused
from broker.ledger.writer import Writer
from broker.model import AgentCaller, Caller, OperatorCaller, Task, TaskState
from broker.rules import RulesInForce
from broker.service.callers import may_see
from broker.telemetry import tracing

TRIGGERS = ("user", "schedule", "webhook", "agent", "manual")
_MAX_TEXT = 2_000
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # direction marks stay: some scripts need them
_MAX_OUTCOME = 100
MIN_HEARTBEAT_S, MAX_HEARTBEAT_S = 1, 3_600


@dataclass(frozen=True, slots=True)
class TaskAsk:
    """What an agent says when it opens a task. Its words are stored erasably; policy never sees them."""

    purpose: str
    trigger: str = "manual"
    trigger_ref: str | None = None
    on_behalf_of: str | None = None
    deadline_s: int | None = None
    heartbeat_s: int | None = None
    parent: str | None = None

    def checked(self) -> "TaskAsk":
        """Itself, if every member is within bounds. Raises Malformed."""
        for name in ("purpose", "trigger_ref", "on_behalf_of"):
            value = getattr(self, name)
            if value is not None and (len(value) > _MAX_TEXT or _CONTROL.search(value)):
                raise Malformed(f"{name} must be at most {_MAX_TEXT} characters without control characters.")
        if not self.purpose.strip():
            raise Malformed("purpose is empty: say in a sentence what the task is for.")
        if self.trigger not in TRIGGERS:
            raise Malformed(f"trigger must be one of {', '.join(TRIGGERS)}.")
        if self.deadline_s is not None and self.deadline_s < 1:
            raise Malformed("deadline_seconds must be at least 1.")
        if self.heartbeat_s is not None and not MIN_HEARTBEAT_S <= self.heartbeat_s <= MAX_HEARTBEAT_S:
            raise Malformed(f"heartbeat_seconds must be from {MIN_HEARTBEAT_S} to {MAX_HEARTBEAT_S}.")
        return self


class Tasks:
    """Verbs on tasks. Another agent's task does not exist; an operator sees all in its scope."""

    def __init__(
        self,
        *,
        rules: RulesInForce,
        ledger: Ledger,
        writer: Writer,
        default_ttl_ms: int,
        max_ttl_ms: int,
        now: Callable[[], int],
    ) -> None:
        self._rules = rules
        self._ledger = ledger
        self._writer = writer
        self._default_ttl_ms = default_ttl_ms
        self._max_ttl_ms = max_ttl_ms
        self._now = now

    async def open(self, caller: Caller, ask: TaskAsk) -> dict[str, Any]:
        """Open a task. Raises AccessDenied while a hold stands, UnauthorizedClient for a blocked agent."""
        agent = self._agent(caller)
        ask.checked()
        problems = self._rules.current.registry.agent_problems(agent.agent, self._now())
        if problems:
            raise UnauthorizedClient(
                f"Agent {agent.id} gets nothing until its registration is mended.",
                problems=[str(each) for each in problems],
            )
        wanted = self._default_ttl_ms if ask.deadline_s is None else ask.deadline_s * 1000
        lifetime_ms = min(wanted, self._max_ttl_ms, agent.agent.limits.task_ttl_s * 1000)
        opened = await self._writer.submit(
            OpenTask(
                caller=agent,
                purpose=ask.purpose,
                trigger=ask.trigger,
                lifetime_ms=lifetime_ms,
                trigger_ref=ask.trigger_ref,
                on_behalf_of=ask.on_behalf_of,
                heartbeat_ms=None if ask.heartbeat_s is None else ask.heartbeat_s * 1000,
                parent=ask.parent,
                traceparent=tracing.current(),
            )
        )
        if isinstance(opened, TaskRefused):
            raise _refused(opened)
        assert isinstance(opened, TaskOpened)
        return self.get(caller, opened.id)

    async def heartbeat(self, caller: Caller, task_id: str) -> dict[str, Any]:
        """Keep the task alive. Raises NotFound, or Conflict when it is over."""
        due = await self._writer.submit(Heartbeat(task_id, self._agent(caller).id))
        if isinstance(due, TaskRefused):
            raise _refused(due)
        return {"id": task_id, "state": TaskState.ACTIVE.value, "next_before": due}

    async def end(self, caller: Caller, task_id: str, outcome: str) -> dict[str, Any]:
        """End the task and everything under it. Ending one that is over answers with how it ended."""
        if isinstance(caller, OperatorCaller):
            raise Forbidden("An operator ends a task with `taskpass kill task`, which gives a receipt.")
        if not printable(outcome, limit=_MAX_OUTCOME):  # not the place for anything personal: it stays in the ledger
            raise Malformed(f"outcome must be 1 to {_MAX_OUTCOME} characters without control characters.")
        over = await self._writer.submit(EndTask(task_id, self._agent(caller).id, outcome))
        if isinstance(over, TaskRefused):
            raise _refused(over)
        assert isinstance(over, TaskOver)
        return self.get(caller, task_id)

    def get(self, caller: Caller, task_id: str) -> dict[str, Any]:
        """One task as its agent, or an operator, may see it. Raises NotFound."""
        with self._ledger.read() as r:
            task = views.task(r, task_id)
            if task is None or not may_see(self._rules.current.registry, caller, task.agent):
                raise NotFound(f"There is no task {task_id[:80]} of yours.")
            return task_json(
                task, purpose=views.text(r, f"{task_id}/purpose"), on_behalf_of=views.text(r, f"{task_id}/on_behalf_of")
            )

    def list(self, caller: Caller, *, agent: str | None, state: TaskState | None, limit: int) -> list[dict[str, Any]]:
        """Tasks, newest first: an agent's own, or those in an operator's scope."""
        if isinstance(caller, AgentCaller):
            agent = caller.id
        with self._ledger.read() as r:
            found = views.tasks(r, agent=agent, state=state, limit=limit)
            return [
                task_json(task, purpose=views.text(r, f"{task.id}/purpose"), on_behalf_of=None)
                for task in found
                if may_see(self._rules.current.registry, caller, task.agent)
            ]

    def _agent(self, caller: Caller) -> AgentCaller:
        if not isinstance(caller, AgentCaller):
            raise Forbidden("Only an agent has tasks.")
        return caller


def task_json(task: Task, *, purpose: str | None, on_behalf_of: str | None) -> dict[str, Any]:
    """A task on the wire. Times are ledger milliseconds; `purpose` is the agent's own words."""
    body = {
        "id": task.id,
        "agent": task.agent,
        "state": task.state.value,
        "purpose": purpose,
        "trigger": task.trigger,
        "on_behalf_of": on_behalf_of,
        "parent": task.parent,
        "opened": task.opened,
        "opened_seq": task.opened_seq,
        "deadline": task.deadline,
        "heartbeat_seconds": None if task.heartbeat_ms is None else task.heartbeat_ms // 1000,
        "last_heartbeat": task.last_heartbeat,
        "ended": task.ended,
        "ended_seq": task.ended_seq,
    }
    return {key: value for key, value in body.items() if value is not None}


def _refused(refused: TaskRefused) -> Exception:
    match refused.reason:
        case "task_not_found":
            return NotFound(refused.sentence)
        case "replayed":
            return NotAuthenticated(refused.sentence, decision_id=refused.decision_id)
        case "held":
            return AccessDenied(refused.sentence, outcome="held", decision_id=refused.decision_id, retry=False)
        case _:
            return Conflict(refused.sentence, decision_id=refused.decision_id)
