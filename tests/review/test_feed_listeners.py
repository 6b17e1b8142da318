"""What the feed keeps for each verifier instance, and for how long."""

import pytest

from broker.errors import Conflict
from broker.web.feed import QUEUE, Feed, Listener
from broker.wire import Cursor
from tests.kit import Broker


def connected(broker: Broker) -> tuple[Feed, Listener]:
    feed = broker.process.feed
    assert feed is not None
    return feed, feed.connect(instance="instance-1", verifier="billing", stamp=0, cursor=None, hello={})


def test_a_listener_that_nobody_reads_is_forgotten(broker: Broker) -> None:
    """Its client may have gone before the stream began, so that nothing else would ever end it."""
    feed, listener = connected(broker)
    for _ in range(QUEUE + 1):
        feed.withdraw("prv_0", None)
    cursor = Cursor(broker.process.ledger.head.epoch, 0)
    with pytest.raises(Conflict):
        feed.acknowledge(verifier="billing", instance="instance-1", cursor=cursor, stamp=1)
    assert listener.events.qsize() == 1


def test_nobody_owes_an_answer_to_the_end_of_a_task(broker: Broker) -> None:
    """It is on the feed, but no receipt waits for it: recording answers would cost a write for each verifier."""
    feed, listener = connected(broker)
    task = broker.open_task()
    broker.granted(task=task)
    broker.post(f"/v1/tasks/{task}/end", {}, by="dispute-bot")
    assert broker.events("task.ended")[0]["live"]
    feed.withdraw("prv_0", None)  # which looks first
    assert b'"matches":[["task"' in b"".join(
        listener.events.get_nowait() or b"" for _ in range(listener.events.qsize())
    )
    assert not listener.owed
