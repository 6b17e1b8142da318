"""The life of a task: opened, kept alive, ended, expired. What it leaves unexpired dies with it, through the feed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from broker.ledger import Reader, Tx, make_id
from broker.ledger.commands.credentials import end_of_tasks
from broker.ledger.commands.guards import holding, task_problem
from broker.ledger.commands.replay import REPLAYED, mark_of, spend
from broker.ledger.commands.texts import keep_text
from broker.model import AgentCaller, Selector, Target, TaskState
from broker.wire import Match

SWEEP_LIMIT = 500
"""How many overdue tasks one transaction expires, so that a mass expiry never delays a kill behind it."""


@dataclass(frozen=True, slots=True)
class TaskRefused:
    """Why the task could not be opened or acted on."""

    reason: str
    sentence: str
    decision_id: str | None = None


@dataclass(frozen=True, slots=True)
class TaskOpened:
    """A new task and its caps, fixed in its commit."""

    id: str
    seq: int
    opened: int
    deadline: int


@dataclass(frozen=True, slots=True)
class TaskOver:
    """A task that ended now, or had ended before (`fresh` False)."""

    id: str
    state: TaskState
    seq: int
    at: int
    fresh: bool
    live: bool = False  # unexpired credentials remained, so the ending is on the feed


@dataclass(frozen=True, slots=True)
class OpenTask:
    """Open a task for an agent. The texts are personal: the event holds commitments, the side table the words."""

    caller: AgentCaller
    purpose: str
    trigger: str
    lifetime_ms: int
    trigger_ref: str | None = None
    on_behalf_of: str | None = None
    heartbeat_ms: int | None = None
    parent: str | None = None
    traceparent: str | None = None  # W3C, as the request brought it

    def apply(self, tx: Tx) -> TaskOpened | TaskRefused:
        agent, workload = self.caller.agent, self.caller.workload
        proof = workload.proof if self.caller.session_seq is None else None
        if not spend(tx, proof):
            return self._refuse(tx, "replayed", REPLAYED)
        held = holding(tx, [Selector(Target.AGENT, agent.id), Selector(Target.OWNER, agent.owner)])
        if held is not None:
            return self._refuse(tx, "held", f"{held[0]} is on hold ({held[1]}).")
        deadline = tx.now + self.lifetime_ms
        if self.parent is not None:
            problem = task_problem(tx, self.parent, agent.id)
            if problem is not None:
                return self._refuse(tx, *problem)
            (parent_deadline,) = tx.execute("SELECT deadline FROM tasks WHERE id = ?", (self.parent,)).fetchone()
            deadline = min(deadline, parent_deadline)
        open_tasks = tx.execute(
            "SELECT count(*) FROM tasks WHERE agent = ? AND state = 'active'", (agent.id,)
        ).fetchone()[0]
        if open_tasks >= agent.limits.open_tasks:
            return self._refuse(
                tx, "too_many_tasks", f"{agent.id} has {open_tasks} open tasks, its limit; end some first."
            )
        return self._record(tx, deadline)

    def _record(self, tx: Tx, deadline: int) -> TaskOpened:
        seq = tx.next_seq()
        task = make_id("tsk", tx.epoch, seq)
        body = self._body() | {
            "task": task,
            "trigger": self.trigger,
            "deadline": deadline,
            "heartbeat_ms": self.heartbeat_ms,
            "parent": self.parent,
            "traceparent": self.traceparent,
            "purpose": keep_text(tx, self.purpose, f"{task}/purpose"),
            "trigger_ref": keep_text(tx, self.trigger_ref, f"{task}/trigger_ref"),
            "on_behalf_of": keep_text(tx, self.on_behalf_of, f"{task}/on_behalf_of"),
        }
        tx.append("task.opened", {key: value for key, value in body.items() if value is not None})
        due = deadline if self.heartbeat_ms is None else min(deadline, tx.now + self.heartbeat_ms)
        tx.put(
            "INSERT INTO tasks (id, agent, state, opened_seq, opened, deadline, heartbeat_ms, due, parent, trigger)"
            " VALUES (?, ?, 'active', ?, ?, ?, ?, ?, ?, ?)",
            (task, self.caller.id, seq, tx.now, deadline, self.heartbeat_ms, due, self.parent, self.trigger),
        )
        tx.put("INSERT INTO task_events (task, seq) VALUES (?, ?)", (task, seq))
        return TaskOpened(task, seq, tx.now, deadline)

    def _body(self) -> dict[str, Any]:
        workload = self.caller.workload
        body: dict[str, Any] = {
            "agent": self.caller.id,
            "workload": {"trust": workload.trust, "issuer": workload.issuer, "subject": workload.subject},
        }
        if self.caller.session_seq is None and workload.proof is not None:
            body["proof"] = mark_of(workload.proof).hex()
        return body

    def _refuse(self, tx: Tx, reason: str, sentence: str) -> TaskRefused:
        seq = tx.append("refused", {**self._body(), "reason": reason, "route": "/v1/tasks"})
        return TaskRefused(reason, sentence, make_id("dec", tx.epoch, seq))


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Keep a task alive. A coalesced column, not an event: expiry reads it again in its own transaction."""

    task: str
    agent: str

    def apply(self, tx: Tx) -> TaskRefused | int:
        """The time by which the next heartbeat must arrive, or the deadline where the task needs none."""
        problem = task_problem(tx, self.task, self.agent)
        if problem is not None:
            return TaskRefused(*problem)
        heartbeat_ms, deadline = tx.execute(
            "SELECT heartbeat_ms, deadline FROM tasks WHERE id = ?", (self.task,)
        ).fetchone()
        due = deadline if heartbeat_ms is None else min(deadline, tx.now + heartbeat_ms)
        tx.execute("UPDATE tasks SET last_heartbeat = ?, due = ? WHERE id = ?", (tx.now, due, self.task))
        return int(due)


@dataclass(frozen=True, slots=True)
class EndTask:
    """End a task and everything under it: its child tasks, and every credential they left unexpired."""

    task: str
    agent: str | None  # None: the broker or an operator, for whom every task exists
    outcome: str

    def apply(self, tx: Tx) -> TaskOver | TaskRefused:
        row = tx.execute("SELECT agent, state, ended_seq, ended FROM tasks WHERE id = ?", (self.task,)).fetchone()
        if row is None or (self.agent is not None and row[0] != self.agent):
            return TaskRefused("task_not_found", f"There is no task {self.task} of yours.")
        if row[1] != TaskState.ACTIVE:
            return TaskOver(self.task, TaskState(row[1]), row[2], row[3], fresh=False)
        return finish(tx, self.task, row[0], TaskState.ENDED, self.outcome)


@dataclass(frozen=True, slots=True)
class ExpireTasks:
    """End every task whose deadline or heartbeat has passed by ledger time. Reads the columns again, here."""

    def apply(self, tx: Tx) -> list[TaskOver]:
        rows = tx.execute(
            "SELECT id, agent, deadline FROM tasks WHERE state = 'active' AND due <= ? LIMIT ?", (tx.now, SWEEP_LIMIT)
        ).fetchall()
        over = []
        for task, agent, deadline in rows:
            # A parent earlier in this sweep may have taken the child with it.
            (state,) = tx.execute("SELECT state FROM tasks WHERE id = ?", (task,)).fetchone()
            if state == TaskState.ACTIVE:
                reason = "deadline" if deadline <= tx.now else "heartbeat"
                over.append(finish(tx, task, agent, TaskState.EXPIRED, reason))
        return over


def descendants(tx: Tx | Reader, roots: Sequence[str]) -> list[str]:
    """The active tasks below `roots`, at any depth, `roots` not included. Looks at each once: how deep an agent nests
    its tasks must not decide how long it takes to kill it.
    """
    found: list[str] = []
    known, frontier = set(roots), list(roots)
    while frontier:
        parent = frontier.pop()
        rows = tx.execute("SELECT id FROM tasks WHERE parent = ? AND state = 'active'", (parent,)).fetchall()
        children = [row[0] for row in rows if row[0] not in known]
        known.update(children)
        found += children
        frontier += children
    return found


def close_rows(tx: Tx, tasks: Sequence[str], state: TaskState, seq: int, reason: str) -> None:
    """Move active tasks to a final state, at position `seq`, and with them what they hold at backends."""
    for task in tasks:
        tx.put(
            "UPDATE tasks SET state = ?, ended_seq = ?, ended = ?, end_reason = ? WHERE id = ? AND state = 'active'",
            (state.value, seq, tx.now, reason, task),
        )
        tx.put("INSERT INTO task_events (task, seq) VALUES (?, ?) ON CONFLICT DO NOTHING", (task, seq))
    end_of_tasks(tx, tasks, seq)


def finish(tx: Tx, task: str, agent: str, state: TaskState, reason: str) -> TaskOver:
    """End one active task and its descendants; on the feed only if something under them is still unexpired."""
    family = [task, *descendants(tx, [task])]
    latest = max(_last_expiry(tx, member) for member in family)
    live = latest > tx.now
    event = "task.ended" if state is TaskState.ENDED else "task.expired"
    body: dict[str, Any] = {"task": task, "agent": agent, "reason": reason, "live": live}
    if len(family) > 1:
        body["children"] = family[1:]
    seq = tx.append(event, body)
    close_rows(tx, family, state, seq, reason)
    if live:
        tx.put(
            "INSERT INTO kills (seq, id, target, value, at, actor, reason, tasks, floor)"
            " VALUES (?, ?, 'task', ?, ?, ?, ?, ?, ?)",
            (seq, make_id("end", tx.epoch, seq), task, tx.now, agent, reason, len(family), tx.head.floor),
        )
        for member in family:
            tx.put("INSERT INTO kill_matches (seq, kind, value) VALUES (?, ?, ?)", (seq, Match.TASK.value, member))
    return TaskOver(task, state, seq, tx.now, fresh=True, live=live)


def _last_expiry(tx: Tx, task: str) -> int:
    return int(tx.execute("SELECT last_expiry FROM tasks WHERE id = ?", (task,)).fetchone()[0])
