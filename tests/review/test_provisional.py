"""A kill that the ledger cannot take yet: what it covers, and how it gives way to the durable one."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import orjson
import pytest

from broker.ledger import LedgerUnavailable
from broker.ledger.commands.kills import Kill
from broker.model import Selector, Target
from broker.web.feed import Listener
from tests.kit import ARCHIVE, Broker


@contextmanager
def read_only(broker: Broker) -> Iterator[None]:
    """The ledger can be read, not written."""
    ledger = broker.process.ledger

    def refuse(*_: Any, **__: Any) -> list[Any]:
        raise LedgerUnavailable("no space")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ledger, "commit", refuse)
        yield


def test_a_provisional_kill_of_a_task_covers_what_runs_under_it(broker: Broker) -> None:
    parent = broker.open_task()
    child = broker.open_task(parent=parent)
    token = broker.granted(task=child)["access_token"]
    broker.session("operator")

    with read_only(broker):
        answer = broker.kill("task", parent)
        assert (answer.status_code, answer.json()["durable"]) == (202, False)
        assert not broker.active(token)
        assert broker.kill("task", "tsk_00000000_1").status_code == 404, "what does not exist is not in force"


def test_a_durable_kill_never_overtakes_the_ones_before_it(broker: Broker) -> None:
    """A verifier takes the position of the last kill that it heard of for its cursor."""
    feed, ledger = broker.process.feed, broker.process.ledger
    assert feed is not None
    first = broker.granted()
    broker.session("operator")
    with read_only(broker):
        assert broker.kill("agent", "data-bot").status_code == 202
    listener = feed.connect(instance="instance-1", verifier="invoices", stamp=0, cursor=None, hello={})
    drain(listener)

    async def settle() -> None:
        # Another process commits a kill, and this one makes its own durable before it has looked.
        other = Kill(
            selector=Selector(Target.TASK, first["task"]),
            reason="test",
            actor="operator",
            hold=False,
            registry_hash=ledger.head.registry_hash,
        )
        ledger.commit([other])
        await broker.process.provisional.retry()

    broker.run(settle())
    events = drain(listener)

    kills = [body["seq"] for name, body in events if name == "kill"]
    withdrawn = next(body["kill"]["seq"] for name, body in events if name == "withdrawn")
    before = [body["seq"] for name, body in events[: [name for name, _ in events].index("withdrawn")] if name == "kill"]
    assert all(seq in before for seq in kills if seq < withdrawn)
    assert len(before) >= 1


def test_a_kill_of_a_key_is_not_dropped_because_no_other_is_on_show_yet(broker: Broker) -> None:
    keys = {
        row["state"]: row["kid"] for row in broker.get("/v1/keys", by="operator").json() if row["purpose"] == "token"
    }
    token = broker.granted()["access_token"]
    with read_only(broker):
        assert broker.kill("key", keys["active"]).status_code == 202
    broker.run(broker.process.writer.submit(_HideNext()))
    broker.run(broker.process.provisional.retry())
    assert not broker.active(token), "still in force"
    broker.do("keys")
    broker.run(broker.process.provisional.retry())
    assert broker.events("killed"), "and durable as soon as a key can take over"


class _HideNext:
    """As after a kill of the next key."""

    def apply(self, tx: Any) -> None:
        tx.execute("UPDATE keys SET state = 'killed' WHERE purpose = 'token' AND state = 'next'")


def test_a_kill_with_an_assertion_is_answered_while_a_write_hangs(broker: Broker) -> None:
    ledger = broker.process.ledger
    commit, go_on = ledger.commit, threading.Event()

    def hang(*arguments: Any, **options: Any) -> list[Any]:
        go_on.wait(20)
        return commit(*arguments, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ledger, "commit", hang)
        try:
            asked = broker.ask(
                "POST", "/v1/agents/dispute-bot/pause", bearer=broker.home.operator(), json={"reason": "test"}
            )
            answer = broker.run(asyncio.wait_for(asked, 5))
        finally:
            go_on.set()
    assert answer.status_code == 202, answer.text


def test_a_session_does_not_renew_itself_through_the_stream(broker: Broker) -> None:
    query = {"instance": "instance-1", "audience": ARCHIVE}
    answer = broker.get("/v1/revocations/stream", by="vault-door", params=query)
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


def drain(listener: Listener) -> list[tuple[str, Any]]:
    """The events that wait for a listener."""
    found = []
    while not listener.events.empty():
        lines = (listener.events.get_nowait() or b"").decode().splitlines()
        parts = dict(line.split(": ", 1) for line in lines if line)
        found.append((parts["event"], orjson.loads(parts["data"])))
    return found
