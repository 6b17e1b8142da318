"""What a kill costs is for nobody to choose: an agent must not be able to make its own kill slow, or impossible."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from broker.ledger.commands.tasks import descendants
from tests.kit import Broker


class _Forest:
    """A `Reader` that knows the children of each task, and counts how often it is asked."""

    def __init__(self, children: dict[str, list[str]]) -> None:
        self.children, self.asked = children, 0

    def execute(self, _: str, params: Sequence[Any] = ()) -> "_Forest":
        self.asked += 1
        self._rows = [(child,) for child in self.children.get(params[0], [])]
        return self

    def fetchall(self) -> list[tuple[str]]:
        return self._rows


def test_every_task_is_looked_at_once_however_deep_they_are_nested() -> None:
    chain = [f"tsk_{n}" for n in range(500)]
    forest = _Forest({above: [below] for above, below in pairwise(chain)})

    assert descendants(forest, chain) == [], "the roots are not below themselves"
    assert forest.asked == len(chain)
    assert descendants(forest, chain[:1]) == chain[1:]


def test_killing_an_agent_counts_each_of_its_nested_tasks_once(broker: Broker) -> None:
    parent = broker.open_task()
    child = broker.open_task(parent=parent)
    broker.open_task(parent=child)

    receipt = broker.kill("agent", "dispute-bot").json()

    assert receipt["ended"]["tasks"] == 3
    assert receipt["matches"] == [["agent", "dispute-bot"]]
