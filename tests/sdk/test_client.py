"""The agent's client in both colours: what it asks, what it keeps, how refusals arrive, and how a task ends."""

import asyncio
import threading

import httpx2
import pytest

from broker.sdk.errors import (
    ApprovalNeeded,
    BrokerError,
    Denied,
    Held,
    InvalidRequest,
    Never,
    NotAuthenticated,
    NotFound,
    TaskOver,
    Unavailable,
)
from broker.sdk.protocol import ASSERTION_TYPE

from .kit import AUDIENCE, broker_and_clock

TOKEN = "/oauth2/token"
DETAIL = {"type": "task_action", "actions": ["credits:propose"], "parameters": {"amount": 5}}


class Sync:
    """Drives the synchronous client with the names of the asynchronous one, so that one test serves both."""

    def __init__(self, client):
        self.client = client

    async def obtain(self, *args, **kwargs):
        return self.client.obtain(*args, **kwargs)

    async def whoami(self):
        return self.client.whoami()

    def discard(self, credential):
        self.client.discard(credential)

    async def secret(self, *args, **kwargs):
        return self.client.secret(*args, **kwargs)

    async def secret_state(self, secret_id):
        return self.client.secret_state(secret_id)

    async def renew_secret(self, *args, **kwargs):
        return self.client.renew_secret(*args, **kwargs)

    async def revoke_secret(self, secret_id):
        return self.client.revoke_secret(secret_id)

    def task(self, **wish):
        return SyncTask(self.client.task(**wish))


class SyncTask:
    def __init__(self, task):
        self.task = task

    async def __aenter__(self):
        self.task.__enter__()
        return self

    async def __aexit__(self, *error):
        return self.task.__exit__(*error)

    async def obtain(self, *args, **kwargs):
        return self.task.obtain(*args, **kwargs)

    async def secret(self, *args, **kwargs):
        return self.task.secret(*args, **kwargs)

    @property
    def id(self):
        return self.task.id

    def finish(self, outcome):
        self.task.outcome = outcome


@pytest.fixture(params=["threads", "asyncio"])
def colour(request):
    return request.param


def both(test):
    """Run an asynchronous test against the client of the fixture's colour."""

    def run(colour):
        broker, clock = broker_and_clock()

        async def with_client():
            if colour == "threads":
                with broker.client(elapsed=clock.elapsed) as client:
                    await test(broker, clock, Sync(client))
            else:
                async with broker.async_client(elapsed=clock.elapsed) as client:
                    await test(broker, clock, client)

        asyncio.run(asyncio.wait_for(with_client(), 20))

    run.__name__ = test.__name__
    return run


def asked(broker, path=TOKEN):
    return [seen.body for seen in broker.requests if seen.path == path]


@both
async def test_a_credential_is_asked_for_as_the_standards_say(broker, clock, client):
    details = [DETAIL]
    credential = await client.obtain(
        AUDIENCE, scope=["invoices:read", "invoices:list"], authorization_details=details, task="tsk_1"
    )
    assert asked(broker) == [
        {
            "grant_type": "client_credentials",
            "client_assertion_type": ASSERTION_TYPE,
            "client_assertion": "fake.identity.assertion",
            "resource": AUDIENCE,
            "scope": "invoices:list invoices:read",
            "authorization_details": '[{"actions":["credits:propose"],"parameters":{"amount":5},"type":"task_action"}]',
            "task": "tsk_1",
        }
    ]
    assert credential.task == "tsk_1"
    assert credential.scope == ("credits:propose", "invoices:list", "invoices:read")
    assert credential.authorization_details == tuple(details)
    assert credential.decision_id.startswith("dec_")
    assert credential.token not in repr(credential)


@both
async def test_a_credential_is_kept_for_four_fifths_of_its_life(broker, clock, client):
    first = await client.obtain(AUDIENCE, scope="a b")
    assert await client.obtain(AUDIENCE, scope=["b", "a"]) is first
    clock.sleep(239.9)
    assert await client.obtain(AUDIENCE, scope="a b") is first
    clock.sleep(0.1)
    assert await client.obtain(AUDIENCE, scope="a b") is not first
    assert len(asked(broker)) == 2


@both
async def test_different_asks_get_different_credentials(broker, clock, client):
    asks = [{}, {"scope": "a"}, {"scope": "b"}, {"task": "tsk_1"}, {"authorization_details": [DETAIL]}]
    credentials = [await client.obtain(AUDIENCE, **ask) for ask in asks]
    assert len({credential.token for credential in credentials}) == len(asks)
    assert (await client.obtain("https://payroll.test")).resource == "https://payroll.test"


@both
async def test_while_the_broker_is_away_a_credential_serves_to_its_end_and_not_longer(broker, clock, client):
    first = await client.obtain(AUDIENCE)
    broker.refuse(TOKEN, 503, error="temporarily_unavailable")
    clock.sleep(299)
    assert await client.obtain(AUDIENCE) is first
    clock.sleep(1)
    with pytest.raises(Unavailable):
        await client.obtain(AUDIENCE)


@both
async def test_a_broker_that_does_not_answer_is_away_too(broker, clock, client):
    first = await client.obtain(AUDIENCE)
    away = away_for(broker, 1)
    clock.sleep(299)
    assert await client.obtain(AUDIENCE) is first
    assert away == []
    async with client.task(purpose="x") as task:
        away = away_for(broker, 2)
    assert broker.tasks[task.id]["outcome"] == "completed", "asked a third time"
    assert away == []


def away_for(broker, requests):
    """The next requests get no answer. What is returned empties as they come."""
    answer, left = broker.answer, list(range(requests))

    def answer_or_not(request):
        if left:
            left.pop()
            raise httpx2.ConnectError("refused")
        return answer(request)

    broker.answer = answer_or_not
    return left


@both
async def test_a_refusal_is_not_papered_over_by_an_old_credential(broker, clock, client):
    await client.obtain(AUDIENCE)
    broker.refuse(TOKEN, 400, error="access_denied", outcome="held", error_description="On hold.")
    clock.sleep(250)
    with pytest.raises(Held):
        await client.obtain(AUDIENCE)


@both
async def test_a_discarded_credential_is_not_used_again(broker, clock, client):
    first = await client.obtain(AUDIENCE)
    client.discard(first)
    second = await client.obtain(AUDIENCE)
    client.discard(first)  # by somebody who is late
    assert await client.obtain(AUDIENCE) is second


APPROVAL = {"id": "apr_1", "approvers": ["finance"], "link": "/v1/approvals/apr_1"}
REFUSALS = [
    (400, {"error": "access_denied", "outcome": "approval", "approval": APPROVAL}, ApprovalNeeded),
    (400, {"error": "access_denied", "outcome": "never", "policies": ["no-payments"]}, Never),
    (400, {"error": "access_denied", "outcome": "held"}, Held),
    (400, {"error": "access_denied", "outcome": "task_over"}, TaskOver),
    (400, {"error": "access_denied"}, Denied),
    (400, {"error": "access_denied", "outcome": "approval"}, Denied),
    (401, {"error": "invalid_client"}, NotAuthenticated),
    (400, {"error": "invalid_client"}, NotAuthenticated),
    (400, {"error": "invalid_target"}, InvalidRequest),
    (400, {"error": "invalid_scope"}, InvalidRequest),
    (400, {"error": "unauthorized_client"}, InvalidRequest),
    (404, {"code": "not_found"}, NotFound),
    (409, {"code": "conflict"}, TaskOver),
    (429, {"error": "slow_down"}, Unavailable),
    (503, {"error": "temporarily_unavailable"}, Unavailable),
    (500, {}, Unavailable),
    (302, {}, InvalidRequest),
]


@pytest.mark.parametrize(("status", "body", "kind"), REFUSALS)
def test_each_refusal_has_its_type_and_says_what_to_do(colour, status, body, kind):
    @both
    async def scenario(broker, clock, client):
        broker.refuse(TOKEN, status, **body, decision_id="dec_1", next="Do that.", error_description="No.")
        with pytest.raises(BrokerError) as refused:
            await client.obtain(AUDIENCE)
        assert type(refused.value) is kind
        assert (refused.value.decision_id, refused.value.next, refused.value.status) == ("dec_1", "Do that.", status)
        assert str(refused.value) == "No."
        assert "fake.identity" not in repr(refused.value)
        if kind is ApprovalNeeded:
            assert refused.value.approval == APPROVAL
        if kind is Never:
            assert refused.value.policies == ("no-payments",)

    scenario(colour)


GOOD = {"access_token": "t", "token_type": "Bearer", "expires_in": 300}


@pytest.mark.parametrize(
    "body",
    [
        {},
        GOOD | {"access_token": None},
        GOOD | {"token_type": "DPoP"},
        GOOD | {"expires_in": "300"},
        GOOD | {"expires_in": True},
        GOOD | {"scope": ["a"]},
        GOOD | {"authorization_details": {}},
    ],
)
def test_an_answer_that_is_not_understood_is_no_credential(colour, body):
    @both
    async def scenario(broker, clock, client):
        broker.refuse(TOKEN, 200, **body)
        with pytest.raises(Unavailable, match="not understood"):
            await client.obtain(AUDIENCE)

    scenario(colour)


@both
async def test_an_answer_without_end_is_not_read(broker, clock, client):
    broker.refuse(TOKEN, 200, **GOOD, padding="x" * (1 << 21))
    with pytest.raises(Unavailable, match="bytes"):
        await client.obtain(AUDIENCE)


@both
async def test_a_task_is_opened_and_ends_itself(broker, clock, client):
    async with client.task(
        purpose="Answer dispute 4711",
        trigger={"kind": "webhook", "ref": "evt_1"},
        on_behalf_of="user:ada",
        deadline=600,
        parent="tsk_0",
    ) as task:
        assert broker.tasks[task.id]["state"] == "active"
        credential = await task.obtain(AUDIENCE, scope="a")
        assert credential.task == task.id
        assert await task.obtain(AUDIENCE, scope="a") is credential
    assert broker.tasks[task.id]["state"] == "ended"
    assert broker.tasks[task.id]["outcome"] == "completed"
    assert asked(broker, "/v1/tasks") == [
        {
            "purpose": "Answer dispute 4711",
            "trigger": {"kind": "webhook", "ref": "evt_1"},
            "on_behalf_of": "user:ada",
            "deadline_seconds": 600,
            "parent": "tsk_0",
        }
    ]
    with pytest.raises(TaskOver):
        await task.obtain(AUDIENCE, scope="a")
    with pytest.raises(TaskOver):
        await client.obtain(AUDIENCE, scope="b", task=task.id)
    assert len(asked(broker)) == 1


@both
async def test_a_task_ends_when_its_work_fails(broker, clock, client):
    with pytest.raises(ZeroDivisionError):
        async with client.task(purpose="x") as task:
            raise ZeroDivisionError
    assert broker.tasks[task.id]["outcome"] == "failed"


@both
async def test_a_task_that_cannot_be_ended_says_so_without_hiding_what_went_wrong(broker, clock, client):
    with pytest.raises(ZeroDivisionError) as failed:  # noqa: PT012
        async with client.task(purpose="x") as task:
            broker.refuse(f"/v1/tasks/{task.id}/end", 503)
            raise ZeroDivisionError
    assert "could not be ended" in failed.value.__notes__[0]
    assert len(asked(broker, f"/v1/tasks/{task.id}/end")) == 3
    with pytest.raises(Unavailable):
        async with client.task(purpose="x") as task:
            broker.refuse(f"/v1/tasks/{task.id}/end", 503)


@both
async def test_a_task_that_was_killed_meanwhile_ends_quietly(broker, clock, client):
    async with client.task(purpose="x") as task:
        broker.tasks[task.id]["state"] = "killed"
    assert broker.tasks[task.id]["state"] == "killed"


@both
async def test_one_proof_of_identity_serves_many_calls_until_its_session_ends(broker, clock, client):
    async with client.task(purpose="x"):
        assert await client.whoami() == {"kind": "agent", "id": "agent"}
        assert len(asked(broker, "/v1/sessions")) == 1
        broker.expire_sessions()
    assert len(asked(broker, "/v1/sessions")) == 2
    broker.refuse("/v1/whoami", 401, code="invalid_client")
    with pytest.raises(NotAuthenticated):
        await client.whoami()
    assert len(asked(broker, "/v1/sessions")) == 3


@both
async def test_a_task_with_a_heartbeat_stays_alive_until_the_broker_says_it_is_over(broker, clock, client):
    async with client.task(purpose="x", heartbeat=1) as task:
        path = f"/v1/tasks/{task.id}/heartbeat"
        await broker.until(lambda: len(asked(broker, path)) >= 1)
        broker.tasks[task.id]["state"] = "expired"
        beats = len(asked(broker, path))
        await broker.until(lambda: len(asked(broker, path)) > beats)
        for _ in range(100):  # the answer is under way
            if task_is_over(client, task):
                break
            await asyncio.sleep(0.01)
        with pytest.raises(TaskOver):
            await task.obtain(AUDIENCE)
    assert asked(broker) == []


def task_is_over(client, task):
    wallet = (client.client if isinstance(client, Sync) else client)._wallet
    return task.id in wallet._over


def test_threads_that_want_the_same_share_one_request():
    broker, clock = broker_and_clock()
    with broker.client(elapsed=clock.elapsed) as client:
        found = []
        threads = [threading.Thread(target=lambda: found.append(client.obtain(AUDIENCE))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len({id(credential) for credential in found}) == 1
    assert len(asked(broker)) == 1


def test_coroutines_that_want_the_same_share_one_request():
    broker, clock = broker_and_clock()

    async def scenario():
        async with broker.async_client(elapsed=clock.elapsed) as client:
            found = await asyncio.gather(*(client.obtain(AUDIENCE) for _ in range(8)))
        assert len({id(credential) for credential in found}) == 1

    asyncio.run(scenario())
    assert len(asked(broker)) == 1


def test_a_cancelled_task_ends_too():
    broker, _clock = broker_and_clock()

    async def scenario():
        opened = asyncio.Event()

        async def work(client):
            async with client.task(purpose="x", heartbeat=60):
                opened.set()
                await asyncio.Event().wait()

        async with broker.async_client() as client:
            working = asyncio.create_task(work(client))
            await opened.wait()
            working.cancel()
            with pytest.raises(asyncio.CancelledError):
                await working

    asyncio.run(scenario())
    (task,) = broker.tasks.values()
    assert (task["state"], task["outcome"]) == ("ended", "failed")


def test_a_task_has_no_id_before_it_is_open():
    broker, _clock = broker_and_clock()
    with broker.client() as client, pytest.raises(RuntimeError):
        _ = client.task(purpose="x").id


@pytest.mark.parametrize("issuer", ["http://taskpass.test", "https://taskpass.test/", "ftp://x", "https://", ""])
def test_an_issuer_that_would_be_sent_secrets_in_the_clear_is_refused(issuer):
    broker, _clock = broker_and_clock()
    with pytest.raises(ValueError, match="issuer"):
        broker.client(issuer=issuer)
