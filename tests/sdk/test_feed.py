"""The follower on a wire that is cut, chopped up, garbled and slow; what it acknowledges, and when."""

import asyncio
import itertools
import json
from contextlib import AsyncExitStack

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.sdk.errors import FeedStale, NotAuthenticated, TokenKilled
from broker.sdk.identity import CallableIdentity
from broker.sdk.testkit import FakeBroker
from broker.sdk.testkit.feed import SESSION_S
from broker.sdk.testkit.http import STREAM, InProcess
from broker.wire import Cursor

from .kit import AUDIENCE, Clock, asynchronous, broker_and_clock, verifier_of

QUICK = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


async def reconnected(broker, before):
    await broker.until(lambda: broker.feed.connections > before and bool(broker.feed.listening))


@asynchronous
async def test_each_kill_is_acknowledged_once_it_is_in_force():
    broker, clock = broker_and_clock()
    async with verifier_of(broker, clock) as verifier:
        for number in range(5):
            bearer = broker.token(audience=AUDIENCE, agent=f"agent-{number}")
            verifier.verify(bearer)
            kill = broker.kill(agent=f"agent-{number}")
            await broker.until(lambda at=kill.seq: cursor_of(broker, verifier) >= at)
            with pytest.raises(TokenKilled):  # no waiting: the acknowledgement said so
                verifier.verify(bearer)
        assert verifier.status.acknowledged >= kill.seq - 1


def cursor_of(broker, verifier):
    cursor = broker.feed.acknowledged.get(verifier.instance, Cursor("", -1))
    return cursor.position


@asynchronous
async def test_each_heartbeat_is_acknowledged_with_a_new_stamp():
    broker, clock = broker_and_clock()
    async with verifier_of(broker, clock) as verifier:
        for _ in range(3):
            clock.sleep(1)
            before = broker.feed.acknowledgements
            broker.feed.heartbeat()
            await broker.until(lambda count=before: broker.feed.acknowledgements > count)
            assert broker.feed._stamps[verifier.instance] == clock.elapsed()


@asynchronous
async def test_a_lost_connection_is_resumed_from_the_cursor_without_a_gap():
    broker, clock = broker_and_clock()
    async with verifier_of(broker, clock) as verifier:
        tokens = {name: broker.token(audience=AUDIENCE, agent=name) for name in ("ada", "bob", "cyd")}
        first = broker.kill(agent="ada")
        await broker.acknowledged(first)
        before = broker.feed.connections
        broker.feed.drop_connections()
        broker.kill(agent="bob")  # nobody is listening
        await reconnected(broker, before)
        assert broker.feed.resumed == [None, f"{broker.feed.epoch}:{first.seq}"]
        await broker.settled()
        for name in ("ada", "bob"):
            with pytest.raises(TokenKilled):
                verifier.verify(tokens[name])
        verifier.verify(tokens["cyd"])
        assert verifier.status.reconnects == 1
        assert verifier.instance in broker.feed.listening


@asynchronous
async def test_below_the_floor_the_broker_sends_a_snapshot_again():
    broker, clock = broker_and_clock()
    async with verifier_of(broker, clock) as verifier:
        before = broker.feed.connections
        broker.feed.drop_connections()
        bearer = [broker.token(audience=AUDIENCE, agent="ada") for _ in range(5)][-1]
        broker.feed.raise_floor(3)
        broker.kill(agent="ada")
        await reconnected(broker, before)
        await broker.settled()
        with pytest.raises(TokenKilled):
            verifier.verify(bearer)


@QUICK
@given(st.lists(st.sampled_from(["kill", "cut", "beat", "mint", "provisional", "confirm"]), max_size=14))
def test_whatever_happens_on_the_way_no_kill_is_missed(steps):
    @asynchronous
    async def scenario():
        broker, clock = broker_and_clock()
        async with verifier_of(broker, clock) as verifier:
            dead, alive, provisional = [], [], []
            for serial, step in enumerate(steps):
                if step == "mint":
                    alive.append((f"agent-{serial}", broker.token(audience=AUDIENCE, agent=f"agent-{serial}")))
                elif step == "kill" and alive:
                    name, bearer = alive.pop()
                    broker.kill(agent=name)
                    dead.append(bearer)
                elif step == "provisional" and alive:
                    name, bearer = alive.pop()
                    provisional.append(broker.kill(provisional=True, agent=name))
                    dead.append(bearer)
                elif step == "confirm" and provisional:
                    broker.feed.withdraw(provisional.pop(), confirm=True)
                elif step == "beat":
                    broker.feed.heartbeat()
                elif step == "cut":
                    broker.feed.drop_connections()
            await broker.until(lambda: bool(broker.feed.listening))
            await broker.beat()
            for bearer in dead:
                with pytest.raises(TokenKilled):
                    verifier.verify(bearer)
            for _, bearer in alive:
                verifier.verify(bearer)

    scenario()


def sessions_asked(broker):
    return sum(seen.path == "/v1/sessions" for seen in broker.requests)


@asynchronous
async def test_a_session_is_renewed_in_good_time_and_the_stream_goes_on():
    broker, clock = broker_and_clock()
    async with verifier_of(broker, clock) as verifier:
        for renewed in range(1, 4):
            clock.sleep(0.6 * SESSION_S - 1)
            await broker.beat()
            assert sessions_asked(broker) == renewed - 1
            clock.sleep(0.2 * SESSION_S + 1)
            broker.feed.heartbeat()
            await broker.until(lambda count=renewed: sessions_asked(broker) == count)
            await broker.settled()
        clock.sleep(0.3 * SESSION_S)  # the one before has ended
        await broker.acknowledged(broker.kill(agent="ada"))
        bearers = {seen.bearer for seen in broker.requests if seen.path.endswith("/ack")}
        assert len(bearers) >= 3
        assert broker.feed.connections == 1
        assert verifier.status.reconnects == 0


@asynchronous
async def test_a_fleet_that_was_started_together_does_not_renew_at_once():
    broker, clock = broker_and_clock()
    async with AsyncExitStack() as running:
        for _ in range(12):
            await running.enter_async_context(verifier_of(broker, clock))
        clock.sleep(0.6 * SESSION_S - 1)
        asked = [0]
        for _ in range(5):
            clock.sleep(0.04 * SESSION_S + 1)
            await broker.beat()
            asked.append(sessions_asked(broker))
        await broker.until(lambda: sessions_asked(broker) == 12)
        assert max(later - earlier for earlier, later in itertools.pairwise(asked)) < 12
        assert broker.feed.connections == 12


@pytest.mark.parametrize(
    "refusal",
    [(503, {}), (401, {"code": "invalid_client"}), (201, {}), (201, {"session_token": "s", "expires_in": "900"})],
    ids=["away", "refused", "no session", "no life"],
)
@asynchronous
async def test_a_renewal_that_fails_is_tried_again_while_the_session_lasts(refusal):
    broker, clock = broker_and_clock()
    status, body = refusal
    broker.refuse("/v1/sessions", status, **body)
    async with verifier_of(broker, clock) as verifier:
        clock.sleep(0.8 * SESSION_S)
        await broker.beat()
        await broker.until(lambda: sessions_asked(broker) == 1)
        await broker.beat()
        await broker.beat()
        assert sessions_asked(broker) == 1  # not at once
        clock.sleep(60)
        await broker.beat()
        await broker.until(lambda: sessions_asked(broker) == 2)
        broker.accept("/v1/sessions")
        await broker.beat()
        clock.sleep(60)
        await broker.beat()
        await broker.until(lambda: sessions_asked(broker) == 3)
        clock.sleep(0.2 * SESSION_S)  # the first one has ended
        await broker.acknowledged(broker.kill(agent="ada"))
        assert verifier.status.reconnects == 0


@asynchronous
async def test_a_defect_in_the_identity_costs_no_connection_before_the_session_ends():
    broker, clock = broker_and_clock()
    asked = []

    def assertion(_):
        asked.append(1)
        if len(asked) > 1:
            raise ZeroDivisionError
        return "fake.identity.assertion"

    async with verifier_of(broker, clock, identity=CallableIdentity(assertion)) as verifier:
        clock.sleep(0.8 * SESSION_S)
        await broker.beat()
        await broker.beat()
        assert len(asked) == 2
        assert verifier.status.connected
        assert verifier.status.reconnects == 0


@asynchronous
async def test_a_session_that_could_not_be_renewed_ends_the_connection():
    clock = Clock()
    broker = FakeBroker(now=clock.now, heartbeat_s=0.05)
    broker.refuse("/v1/sessions", 401, code="invalid_client")
    async with verifier_of(broker, clock) as verifier:
        clock.sleep(0.8 * SESSION_S)
        await broker.until(lambda: sessions_asked(broker) == 1)
        clock.sleep(0.2 * SESSION_S)
        await reconnected(broker, 1)
        await broker.settled()
        assert verifier.status.connected
        assert verifier.status.reconnects == 1


@asynchronous
async def test_a_session_that_the_broker_takes_no_more_is_replaced_by_connecting_again():
    broker, clock = broker_and_clock()
    async with verifier_of(broker, clock) as verifier:
        before = broker.feed.connections
        broker.feed.expire_sessions()
        broker.kill(agent="ada")
        broker.feed.heartbeat()
        await broker.until(lambda: any(seen.path.endswith("/ack") for seen in broker.requests[-1:]))
        broker.feed.heartbeat()
        await reconnected(broker, before)
        await broker.settled()
        assert verifier.status.connected


@asynchronous
async def test_a_broker_that_takes_no_acknowledgement_is_not_hammered():
    broker, clock = broker_and_clock()
    delays = []

    async def sleep(seconds):
        delays.append(seconds)
        if len(delays) == 30:
            broker.accept("/v1/revocations/ack")
        broker.feed.heartbeat()
        await asyncio.sleep(0)

    async with verifier_of(broker, clock, sleep=sleep):
        await broker.settled()
        broker.refuse("/v1/revocations/ack", 409)
        while len(delays) < 30:
            seen = len(broker.requests)
            broker.feed.heartbeat()
            await broker.until(lambda count=seen: len(broker.requests) > count or len(delays) >= 30)
            broker.feed.heartbeat()
        await broker.settled()
    assert max(delays) > 1


@pytest.mark.parametrize(
    "garbage",
    [
        "event: kill\ndata: not json\n\n",
        "event: kill\ndata: []\n\n",
        'event: heartbeat\ndata: {"epoch": 1}\n\n',
        'event: hello\ndata: {"epoch": "00000000", "session_token": "x"}\n\n',
        "event: kill\ndata: " + "[" * 100_000 + "\n\n",
        "event: kill\ndata: " + "x" * (9 << 20) + "\n\n",
        "data: " + "x" * (9 << 20),
    ],
    ids=["not JSON", "not an object", "malformed", "second hello", "deep", "too large", "endless"],
)
@asynchronous
async def test_garbage_ends_the_connection_and_the_next_one_is_good(garbage):
    broker, clock = broker_and_clock()
    async with verifier_of(broker, clock) as verifier:
        bearer = broker.token(audience=AUDIENCE)
        before = broker.feed.connections
        broker.feed.send_raw(garbage)
        await reconnected(broker, before)
        kill = broker.kill(agent="agent")
        await broker.acknowledged(kill)
        with pytest.raises(TokenKilled):
            verifier.verify(bearer)
        assert verifier.status.reconnects == 1


class Chopped(InProcess):
    """Gives one stream, already recorded, in pieces, and then keeps the connection open and silent."""

    def __init__(self, broker, pieces):
        super().__init__(broker)
        self.pieces = pieces

    async def handle_async_request(self, request):
        if request.url.path != STREAM:
            return await super().handle_async_request(request)
        stamp = int(request.url.params["stamp"])
        pieces = self.pieces

        class Stream(httpx2.AsyncByteStream):
            async def __aiter__(self):
                for piece in pieces(stamp):
                    yield piece
                await asyncio.Event().wait()

        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=Stream())


@QUICK
@given(
    cuts=st.lists(st.integers(0, 3000), max_size=40),
    newline=st.sampled_from(["\n", "\r\n", "\r"]),
    noise=st.sampled_from(["", ": comment", "retry: 1", "unknown: field", "event: later\ndata: {}\n"]),
)
def test_events_survive_any_chopping(cuts, newline, noise):
    @asynchronous
    async def scenario():
        broker, clock = broker_and_clock()
        broker.refuse("/v1/revocations/ack", 204)
        bearer = broker.token(audience=AUDIENCE, agent="ädä")
        kill = broker.kill(agent="ädä")
        epoch = broker.feed.epoch

        def pieces(stamp):
            snapshot = {"epoch": epoch, "position": 0, "floor": 0, "time": clock.now(), "kills": []}
            beat = {"epoch": epoch, "position": 0, "floor": 0, "time": clock.now(), "stamp": stamp}
            events = [
                ("hello", {"epoch": epoch, "session_token": "s", "expires_in": 900}),
                ("snapshot", snapshot),
                ("heartbeat", beat),
                ("kill", kill.to_wire()),
            ]
            text = "".join(
                f"{noise}\nevent: {name}\ndata: {json.dumps(body, ensure_ascii=False)}\n\n" for name, body in events
            )
            # A carriage return may be half of a line's end: only what follows tells.
            raw = (text + ": end\n").replace("\n", newline).encode()
            edges = sorted({0, len(raw), *(cut for cut in cuts if cut < len(raw))})
            return [raw[start:end] for start, end in itertools.pairwise(edges)]

        transport = Chopped(broker, pieces)
        async with verifier_of(
            broker, clock, http=lambda: httpx2.AsyncClient(transport=transport), start_timeout_s=5
        ) as verifier:
            await broker.until(
                lambda: any(seen.body.get("cursor") == f"{epoch}:{kill.seq}" for seen in broker.requests)
            )
            with pytest.raises(TokenKilled):
                verifier.verify(bearer)

    scenario()


@asynchronous
async def test_a_refused_identity_is_told_and_tried_again():
    broker, clock = broker_and_clock()
    answers = iter([NotAuthenticated("No identity yet.", code="no_identity")] * 3)

    def assertion(_audience):
        error = next(answers, None)
        if error is not None:
            raise error
        return "a.b.c"

    async with verifier_of(broker, clock, identity=CallableIdentity(assertion)) as verifier:
        assert verifier.status.connected
        assert verifier.status.reconnects == 3
        assert "No identity yet" in verifier.status.last_error


@asynchronous
async def test_a_broker_that_is_away_is_waited_for_ever_longer_and_never_given_up():
    broker, clock = broker_and_clock()
    delays = []

    async def sleep(seconds):
        delays.append(seconds)
        if len(delays) == 40:
            broker.feed.accepting = True
        await asyncio.sleep(0)

    broker.feed.accepting = False
    async with verifier_of(broker, clock, sleep=sleep) as verifier:
        verifier.verify(broker.token(audience=AUDIENCE))
    assert all(0 <= delay <= 5 for delay in delays)
    assert max(delays[:3]) <= 0.8
    assert len(set(delays)) > 30  # each waits its own time


@asynchronous
async def test_a_lost_acknowledgement_is_made_up_for_by_the_next_heartbeat():
    broker, clock = broker_and_clock()
    async with verifier_of(broker, clock) as verifier:
        broker.refuse("/v1/revocations/ack", 503)
        seen = len(broker.requests)
        kill = broker.kill(agent="ada")
        await broker.until(lambda: len(broker.requests) > seen)
        broker.accept("/v1/revocations/ack")
        broker.feed.heartbeat()
        await broker.until(lambda: cursor_of(broker, verifier) == kill.seq)
        assert broker.feed.connections == 1


@asynchronous
async def test_leaving_stops_everything_and_a_strict_verifier_ends_with_its_bound():
    broker, clock = broker_and_clock()
    before = asyncio.all_tasks()
    verifier = verifier_of(broker, clock)
    async with verifier:
        bearer = broker.token(audience=AUDIENCE)
        verifier.verify(bearer)
    assert broker.feed.listening == []
    assert verifier.status is None
    assert asyncio.all_tasks() == before
    clock.sleep(5.1)
    with pytest.raises(FeedStale):
        verifier.verify(bearer)
