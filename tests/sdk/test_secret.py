"""Secrets through the agent's client, in both colours."""

import functools

import httpx2
import pytest

from broker.sdk import light
from broker.sdk.errors import ApprovalNeeded, BrokerError, Never, NotFound, Unavailable
from broker.sdk.protocol import Session
from broker.sdk.secret import obtain_secret, wish
from tests.sdk.kit import broker_and_clock
from tests.sdk.test_client import both, colour  # noqa: F401  (a fixture)

PATH, RESOURCE = "/v1/credentials", "orders-db"


@both
async def test_a_secret_is_asked_for_with_what_it_is_for(broker, clock, client):
    secret = await client.secret(RESOURCE, actions=["orders:read"], parameters={"shop": "x"}, task="tsk_1", ttl=60)
    (asked,) = [seen.body for seen in broker.requests if seen.path == PATH]
    assert asked == {
        "resource": RESOURCE,
        "actions": ["orders:read"],
        "parameters": {"shop": "x"},
        "task": "tsk_1",
        "ttl_seconds": 60,
    }
    assert secret.values["username"] == secret.handle["name"]
    assert secret.expires == clock.now() // 1000 + 60
    assert secret.values["password"] not in repr(secret)


@both
async def test_each_secret_is_a_new_one_and_can_be_given_back(broker, clock, client):
    first, second = await client.secret(RESOURCE), await client.secret(RESOURCE)
    assert first.values != second.values
    assert (await client.revoke_secret(first.id))["state"] == "revoked"
    assert (await client.secret_state(first.id))["state"] == "revoked"
    state = await client.secret_state(second.id)
    assert state["state"] == "live"
    assert "values" not in state
    with pytest.raises(NotFound):
        await client.secret_state("grt_0_0")


@both
async def test_refusals_are_the_same_types_as_for_tokens(broker, clock, client):
    broker.refuse(PATH, 403, code="access_denied", outcome="never", detail="Never.", policies=["p"])
    with pytest.raises(Never) as never:
        await client.secret(RESOURCE)
    assert never.value.policies == ("p",)
    broker.refuse(PATH, 403, code="access_denied", outcome="approval", detail="Ask.", approval={"id": "apr_1"})
    with pytest.raises(ApprovalNeeded):
        await client.secret(RESOURCE)


@both
async def test_a_secret_is_renewed(broker, clock, client):
    secret = await client.secret(RESOURCE, ttl=60)
    assert secret.renewable
    told = await client.renew_secret(secret.id, ttl=120)
    assert told["expires_at"] > secret.expires_at
    assert broker.requests[-1].body == {"ttl_seconds": 120}
    assert "values" not in told
    await client.revoke_secret(secret.id)
    with pytest.raises(BrokerError):
        await client.renew_secret(secret.id)


WRONG = [
    {"values": {}},
    {"values": None},
    {"values": {"password": 1}},
    {"expires_at": "soon"},
    {"expires_at": 5},
    {"handle": []},
    {"id": None},
]


@both
async def test_an_answer_that_is_none_is_not_taken_for_one(broker, clock, client):
    good = {"id": "grt_1", "resource": RESOURCE, "values": {"p": "hush"}, "expires_at": "2026-11-21T12:00:00Z"}
    for change in WRONG:
        broker.refuse(PATH, 201, **good | change)
        with pytest.raises(Unavailable) as garbled:
            await client.secret(RESOURCE)
        assert "hush" not in str(garbled.value)


@both
async def test_a_task_asks_in_its_own_name(broker, clock, client):
    async with client.task(purpose="p") as task:
        assert (await task.secret(RESOURCE, actions=["a"])).task == task.id


def test_the_light_client_waits_longer_for_a_secret_than_for_a_token(monkeypatch):
    broker, _ = broker_and_clock()
    waits = []
    connect = light.HTTPConnection

    def noting(*args, timeout, **known):
        waits.append(timeout)
        return connect(*args, timeout=timeout, **known)

    monkeypatch.setattr(light, "HTTPConnection", noting)
    with broker.serve() as url:
        light.run(obtain_secret(url, Session(), wish(RESOURCE)), identity=broker.identity)
    assert waits == [10.0, 40.0]


def test_a_client_that_was_brought_along_waits_for_a_secret_too():
    broker, _ = broker_and_clock()
    seen = []
    with broker.client() as client:
        send = client._http.stream
        client._http.stream = functools.partial(_noted, seen, send)
        client.secret(RESOURCE)
    assert seen == [httpx2.USE_CLIENT_DEFAULT, 40.0]


def _noted(seen, send, *args, timeout, **known):
    seen.append(timeout)
    return send(*args, timeout=timeout, **known)
