"""An event has a greatest length: nothing a broker must be able to do may run into it, and no caller can fill it."""

import asyncio
from collections.abc import Callable

import pytest

from broker.ledger.commands.admin import RegisterInstance
from broker.web.feed import Listener
from broker.wire import Cursor
from tests.kit import Broker, Home


def test_a_large_registry_loads_and_its_event_says_how_much_it_does_not_list(
    home: Home, start: Callable[..., Broker]
) -> None:
    more = "".join(
        f"\n  owner-with-a-name-{n:04}:\n    name: N\n    contact: c\n    backup: b\n    escalation: e\n"
        for n in range(3_000)
    )
    home.append("registry/owners.yaml", more)

    broker = start()

    event = broker.events("registry.loaded")[0]
    assert len(event["diff"]) + event["more"] > 3_000
    assert broker.token().status_code == 200


@pytest.mark.parametrize("members", [{"reason": "x" * 60_000}, {"reason": "line\nbreak"}, {"reason": ""}])
def test_a_reason_is_bounded_on_every_route_that_takes_one(broker: Broker, members: dict[str, str]) -> None:
    hold = broker.kill("agent", "dispute-bot").json()["issuance"]["hold"]
    routes = ["reload", "keys/rotate", "kills", "agents/dispute-bot/pause", f"holds/{hold}/lift"]
    for route in routes:
        body = {"target": "all", **members} if route == "kills" else members
        answer = broker.post(f"/v1/{route}", body, by="operator")
        assert answer.status_code == 400, (route, answer.text)


def test_problems_of_any_length_are_recorded(broker: Broker, home: Home) -> None:
    home.append("policies/permits/data.cedar", "\n" + "x" * 200_000)

    answer = broker.post("/v1/reload", {}, by="operator")

    assert answer.status_code == 422, answer.text[:500]
    assert broker.events("reload.failed")


def test_acknowledgements_of_any_number_are_recorded(broker: Broker) -> None:
    """As when many verifiers report a burst of kills at once."""
    instances = [f"instance-of-a-verifier-with-a-rather-long-name-{n:04}" for n in range(1_200)]
    listeners = follow(broker, instances)
    kill = broker.kill("agent", "dispute-bot").json()
    feed, epoch = broker.process.feed, broker.process.ledger.head.epoch
    assert feed is not None

    async def report() -> None:
        await asyncio.sleep(0.05)  # until the feed has told everyone
        for each in listeners:
            feed.acknowledge(
                verifier="invoices", instance=each.instance, cursor=Cursor(epoch, kill["position"]), stamp=1
            )

    broker.run(report())
    receipt = broker.get(f"/v1/kills/{kill['id']}", by="operator", params={"wait_ms": 5_000}).json()

    assert (receipt["verifiers"]["expected"], receipt["verifiers"]["applied"]) == (1_200, 1_200)


def test_nothing_that_goes_wrong_once_ends_a_part_of_the_feed(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, feed = broker.process.ledger, broker.process.feed
    assert feed is not None
    (listener,) = follow(broker, ["instance-one"])
    with monkeypatch.context() as patched:
        patched.setattr(ledger, "data_version", lambda: 1 // 0)
        broker.run(asyncio.sleep(0.05))

    kill = broker.kill("agent", "dispute-bot").json()
    broker.run(asyncio.sleep(0.2))  # less than the second after which a heartbeat would bring it

    sent = b"".join(listener.events.get_nowait() or b"" for _ in range(listener.events.qsize()))
    assert kill["id"].encode() in sent


def follow(broker: Broker, instances: list[str]) -> list[Listener]:
    """Verifier instances that are registered and connected."""
    feed = broker.process.feed
    assert feed is not None
    commands = [
        RegisterInstance(
            instance=each,
            verifier="invoices",
            audiences=["https://invoices.example.com"],
            mode="strict",
            bound_ms=5_000,
            leeway_ms=0,
            position=-1,
        )
        for each in instances
    ]

    async def connect() -> list[Listener]:
        await broker.process.writer.submit_many(commands)
        return [feed.connect(instance=each, verifier="invoices", stamp=0, cursor=None, hello={}) for each in instances]

    return broker.run(connect())
