"""What policy may know of a task. It never changes after opening, so it is read once; whether the task is still active
is a guard of the commit.
"""

from collections import OrderedDict
from dataclasses import dataclass

from broker.ledger import Ledger, views
from broker.rules import IMPLICIT_TRIGGER

_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """Facts about the task a request runs under. Never the agent's own words."""

    trigger: str
    on_behalf: bool
    depth: int


IMPLICIT = TaskFacts(trigger=IMPLICIT_TRIGGER, on_behalf=False, depth=0)
"""A client that sends no task works under a one-shot task that exists only inside its token's event."""


class TaskFactsReader:
    """Facts of explicit tasks, from the ledger, remembered."""

    def __init__(self, *, ledger: Ledger) -> None:
        self._ledger = ledger
        self._known: OrderedDict[str, tuple[str, TaskFacts]] = OrderedDict()

    def of(self, task_id: str | None, agent: str) -> TaskFacts | None:
        """The facts of this agent's task; None when it has no such task."""
        if task_id is None:
            return IMPLICIT
        known = self._known.get(task_id)
        if known is None:
            known = self._read(task_id)
            if known is None:
                return None
            self._known[task_id] = known
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        owner, facts = known
        return facts if owner == agent else None

    def _read(self, task_id: str) -> tuple[str, TaskFacts] | None:
        with self._ledger.read() as r:
            task = views.task(r, task_id)
            if task is None:
                return None
            depth, parent = 0, task.parent
            while parent is not None and depth < 16:
                above = views.task(r, parent)
                depth, parent = depth + 1, above.parent if above else None
            on_behalf = views.text(r, f"{task_id}/on_behalf_of") is not None
        return task.agent, TaskFacts(trigger=task.trigger, on_behalf=on_behalf, depth=depth)
