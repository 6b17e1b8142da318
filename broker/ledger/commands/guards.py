"""The guards that every command re-checks inside its transaction: standing holds, a task's state."""

from collections.abc import Iterable
from dataclasses import dataclass

from broker.ledger import Tx
from broker.model import Selector, Target, TaskState


@dataclass(frozen=True, slots=True)
class Stale:
    """The decision was made against another registry or policy bundle: decide again. Nothing was recorded."""

    registry_hash: str
    policy_hash: str


def standing_holds(tx: Tx) -> dict[tuple[str, str], str]:
    """(target, value) -> hold id, read once per transaction."""
    holds: dict[tuple[str, str], str] | None = tx.scratch.get("holds")
    if holds is None:
        rows = tx.execute("SELECT target, value, id FROM holds WHERE lifted_seq IS NULL")
        holds = tx.scratch["holds"] = {(target, value): hold for target, value, hold in rows.fetchall()}
    return holds


def holding(tx: Tx, selectors: Iterable[Selector]) -> tuple[Selector, str] | None:
    """The first of `selectors`, or everything, that is on hold: (what, hold id)."""
    holds = standing_holds(tx)
    if not holds:
        return None
    for selector in (Selector(Target.ALL), *selectors):
        hold = holds.get((selector.target.value, selector.value))
        if hold is not None:
            return selector, hold
    return None


def forget_holds(tx: Tx) -> None:
    """After placing or lifting one: later commands of the same batch must see it, other processes must decide again."""
    tx.scratch.pop("holds", None)
    tx.head.guard_version += 1


def task_problem(tx: Tx, task_id: str, agent: str) -> tuple[str, str] | None:
    """Why `agent` cannot act under this task now, as (reason, sentence); None while it can. Another agent's task does
    not exist.
    """
    row = tx.execute("SELECT agent, state, due, deadline FROM tasks WHERE id = ?", (task_id,)).fetchone()
    if row is None or row[0] != agent:
        return "task_not_found", f"There is no task {task_id} of yours."
    _, state, due, deadline = row
    if state != TaskState.ACTIVE:
        return "task_over", f"Task {task_id} is {state}; open a new one."
    if due <= tx.now:
        missed = "its deadline" if deadline <= tx.now else "a heartbeat"
        return "task_over", f"Task {task_id} has passed {missed}; open a new one."
    return None
