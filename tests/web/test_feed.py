"""The feed and the SDK verifier end to end, over a real socket: what is delivered, who acknowledges it, who may not."""

import asyncio
import contextlib
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, cast

import httpx2
import orjson
import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.app import running
from broker.config import ServeSection
from broker.sdk.clock import elapsed_ns
from broker.sdk.errors import InvalidToken, TokenKilled
from broker.sdk.verifier import Verifier
from broker.stores import wall_clock
from broker.web import feed as feeds
from broker.web.exchange import TokenConnection
from broker.wire import FeedKill, Match
from tests.kit import ARCHIVE, CREDITS, INVOICES, Home

Test = Callable[["Site"], Coroutine[Any, Any, None]]


class Said:
    """An identity of the SDK: signs for one verifier."""

    def __init__(self, home: Home, subject: str) -> None:
        self.home, self.subject = home, subject

    def assertion(self, audience: str) -> str:
        return self.home.assertion(self.subject, aud=audience)


class Site:
    """A broker on a loopback port, its clock the host's."""

    def __init__(self, home: Home, process: Any, http: httpx2.AsyncClient) -> None:
        self.home, self.process, self.http = home, process, http

    async def post(self, path: str, who: str, **options: Any) -> httpx2.Response:
        return await self.http.post(path, headers={"authorization": f"Bearer {self.home.proof(who)}"}, **options)

    async def token(self, agent: str = "dispute-bot", resource: str = INVOICES) -> str:
        form = {"grant_type": "client_credentials", "client_assertion": self.home.proof(agent), "resource": resource}
        form["client_assertion_type"] = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
        answer = await self.http.post("/oauth2/token", data=form)
        return str(answer.json()["access_token"])

    async def kill(self, target: str = "agent", value: str = "dispute-bot") -> dict[str, Any]:
        body = {"target": target, "value": value, "reason": "x", "hold": False}
        return dict((await self.post("/v1/kills", "operator", json=body)).json())

    async def receipt(self, kill: dict[str, Any], wait_ms: int = 5_000) -> dict[str, Any]:
        answer = await self.http.get(
            f"/v1/kills/{kill['id']}?wait_ms={wait_ms}",
            headers={"authorization": f"Bearer {self.home.operator()}"},
        )
        return dict(answer.json())

    @contextlib.asynccontextmanager
    async def stream(self, who: str = "billing", **query: Any) -> AsyncIterator[Any]:
        """The raw answer of the stream route, and an iterator over its events."""
        params = {"instance": secrets.token_hex(8), "audience": INVOICES, **query}
        headers = {"authorization": f"Bearer {query.pop('proof', None) or self.home.proof(who)}"}
        params.pop("proof", None)
        async with self.http.stream("GET", "/v1/revocations/stream", params=params, headers=headers) as answer:
            yield answer, events_of(answer)


async def events_of(answer: httpx2.Response) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    async for event in httpx2.EventSource(answer):
        yield event.event, orjson.loads(event.data)


async def until(events: AsyncIterator[tuple[str, dict[str, Any]]], name: str) -> dict[str, Any]:
    async with asyncio.timeout(5):
        async for kind, data in events:
            if kind == name:
                return data
    raise AssertionError(f"the stream ended before {name}")


def run(path: Path, test: Test, *, clock: Callable[[], int] = wall_clock) -> None:
    """Run `test` against a real server."""

    async def served() -> None:
        listening = socket.create_server(("127.0.0.1", 0))
        issuer = f"http://127.0.0.1:{listening.getsockname()[1]}"
        home = Home(path / "broker", clock=clock, issuer=issuer)
        text = home.text("taskpass.toml")
        home.write("taskpass.toml", "\n".join(x for x in text.splitlines() if not x.startswith("control_url")))
        async with running(home.config.model_copy(update={"serve": ServeSection()}), now=clock) as process:
            options = uvicorn.Config(
                process.app,
                http=cast("type[asyncio.Protocol]", partial(TokenConnection, head_limit=16_384, connections=100)),
                log_config=None,
                lifespan="off",
                ws="none",
                timeout_graceful_shutdown=2,
            )
            server = uvicorn.Server(options)
            serving = asyncio.create_task(server.serve([listening]))
            while not server.started:  # noqa: ASYNC110  (uvicorn has no event for it)
                await asyncio.sleep(0.01)
            try:
                async with httpx2.AsyncClient(base_url=issuer, timeout=10) as http:
                    await test(Site(home, process, http))
            finally:
                await process.feed.stop()
                server.should_exit = True
                await serving

    asyncio.run(served())


def test_a_kill_reaches_a_strict_verifier_and_the_receipt_says_when(tmp_path: Path):
    async def story(site: Site) -> None:
        token, other = await site.token(), await site.token("data-bot", ARCHIVE)
        async with Verifier(
            issuer=site.home.issuer, audience=INVOICES, identity=Said(site.home, "billing")
        ) as verifier:
            assert verifier.verify(token).agent == "dispute-bot"
            with pytest.raises(InvalidToken):  # of another audience
                verifier.verify(other)
            kill = await site.kill()
            receipt = await site.receipt(kill)
            with pytest.raises(InvalidToken):
                verifier.verify(token)
            assert receipt["complete"]
            assert receipt["verifiers"]["expected"] == receipt["verifiers"]["applied"] == 1
            (instance,) = receipt["verifiers"]["instances"]
            assert instance["state"] == "reported applied"
            assert 0 <= instance["applied_ms"] == receipt["verifiers"]["slowest_ms"] < 1_000
            assert receipt["ended"]["tokens"] == 1
            assert verifier.verify(await site.token()).agent == "dispute-bot"  # no hold: a fresh one is good
            (event,) = [e for e in await ledger(site) if e["type"] == "acknowledged"]
            assert event["body"]["acks"][0]["kill"] == kill["position"]

    run(tmp_path, story)


def test_a_stream_outlives_the_session_that_opened_it(tmp_path: Path):
    later_s = 0

    def clock() -> int:
        return wall_clock() + later_s * 1000

    def elapsed() -> int:
        return elapsed_ns() + later_s * 1_000_000_000

    async def story(site: Site) -> None:
        nonlocal later_s
        said, acks = Said(site.home, "billing"), asyncio.Queue[tuple[str, int]]()

        async def answered(answer: httpx2.Response) -> None:
            if answer.request.url.path == "/v1/revocations/ack":
                acks.put_nowait((answer.request.headers["authorization"], answer.status_code))

        def http() -> httpx2.AsyncClient:
            return httpx2.AsyncClient(event_hooks={"response": [answered]})

        async with (
            asyncio.timeout(15),
            Verifier(
                issuer=site.home.issuer, audience=INVOICES, identity=said, http=http, now=clock, elapsed=elapsed
            ) as verifier,
        ):
            first, _ = await acks.get()
            later_s += 800  # of 900
            while (await acks.get())[0] == first:
                pass
            later_s += 200
            refused = await site.http.get("/v1/whoami", headers={"authorization": first})
            assert refused.status_code == 401
            while not verifier.fresh:  # it was far away for a moment
                await acks.get()
            token = await site.token()
            kill = await site.kill()
            receipt = await site.receipt(kill)
            assert receipt["complete"]
            with pytest.raises(TokenKilled):
                verifier.verify(token)
            assert verifier.status is not None
            assert verifier.status.reconnects == 0
            types = [e["type"] for e in await ledger(site) if e["body"].get("caller") == ["verifier", "billing"]]
            assert types == ["session.opened"]

    run(tmp_path, story, clock=clock)


async def ledger(site: Site) -> list[dict[str, Any]]:
    headers = {"authorization": f"Bearer {site.home.operator()}"}
    return list((await site.http.get("/v1/ledger?limit=1000", headers=headers)).json())


def test_a_stream_begins_with_all_that_counts_and_goes_on_from_a_cursor(tmp_path: Path):
    async def story(site: Site) -> None:
        await site.token()
        first = await site.kill()
        async with site.stream(stamp=7) as (answer, events):
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert answer.headers["cache-control"] == "no-store"
            hello = await until(events, "hello")
            snapshot = await until(events, "snapshot")
            assert [kill["id"] for kill in snapshot["kills"]] == [first["id"]]
            assert (await until(events, "heartbeat"))["stamp"] == 7
            second = await site.kill()
            assert (await until(events, "kill"))["id"] == second["id"]
            ack = {"instance": hello["instance"], "cursor": f"{hello['epoch']}:{second['position']}", "stamp": 99}
            headers = {"authorization": f"Bearer {hello['session_token']}"}
            assert (await site.http.post("/v1/revocations/ack", json=ack, headers=headers)).status_code == 204
            assert (await site.receipt(second))["complete"]
            assert (await until(events, "heartbeat"))["stamp"] == 99
            for wrong, status in (
                ({"instance": "x" * 16}, 409),
                ({"cursor": "00000000:1"}, 409),
                ({"cursor": f"{hello['epoch']}:{10**15}"}, 400),  # reports what nobody has said yet
                ({"cursor": "x"}, 400),
                ({"stamp": -1}, 400),
            ):
                odd = await site.http.post("/v1/revocations/ack", json={**ack, **wrong}, headers=headers)
                assert odd.status_code == status, wrong
            # 63: somebody else's session does not acknowledge for this instance.
            other = await site.post("/v1/revocations/ack", "vault-door", json=ack)
            assert other.status_code == 409
        third = await site.kill()
        cursor = f"{hello['epoch']}:{second['position']}"
        async with site.stream(cursor=cursor) as (_, events):
            names = []
            async for kind, data in events:
                names.append(kind)
                if kind == "kill":
                    assert data["id"] == third["id"]
                if kind == "heartbeat":
                    break
            assert names == ["hello", "kill", "heartbeat"]
        for odd in (f"00000000:{third['position']}", f"{hello['epoch']}:{10**12}"):
            async with site.stream(cursor=odd) as (_, events):
                assert len((await until(events, "snapshot"))["kills"]) == 3

    run(tmp_path, story)


def test_who_may_not_listen(tmp_path: Path):
    async def story(site: Site) -> None:
        proof = site.home.assertion("billing")
        for query, status in (
            ({"audience": ARCHIVE}, 403),
            ({"audience": [INVOICES, ARCHIVE]}, 403),
            ({"instance": "short"}, 400),
            ({"instance": "x" * 65}, 400),
            ({"instance": "x\r\nx" * 4}, 400),
            ({"bound_ms": 10}, 400),
            ({"bound_ms": 10**9}, 400),
            ({"mode": "lenient"}, 400),
            ({"stamp": -1}, 400),
            ({"cursor": "x"}, 400),
        ):
            async with site.stream(proof=site.home.assertion("billing"), **query) as (answer, _):
                assert answer.status_code == status, query
        async with site.stream(proof=proof, audience=ARCHIVE) as (answer, _):
            assert answer.status_code == 403
        async with site.stream(proof=proof) as (answer, _):
            assert answer.status_code == 401  # 25: spent by the refusal
        mine = secrets.token_hex(8)
        async with site.stream(instance=mine, audience=[INVOICES, CREDITS]) as (_, events):
            await until(events, "heartbeat")
            async with site.stream("vault-door", instance=mine, audience=ARCHIVE) as (answer, _):
                assert answer.status_code == 403  # 92: another's instance
            kill = await site.kill()
            assert (await until(events, "kill"))["id"] == kill["id"]  # and it was not cut off by the attempt
        refused = [e["body"] for e in await ledger(site) if e["type"] == "refused"]
        assert {body["reason"] for body in refused} >= {"forbidden", "instance_taken", "replayed", "invalid_request"}

    run(tmp_path, story)


def test_a_reconnect_replaces_the_earlier_connection(tmp_path: Path):
    async def story(site: Site) -> None:
        mine = secrets.token_hex(8)
        async with site.stream(instance=mine) as (_, old):
            await until(old, "heartbeat")
            async with site.stream(instance=mine) as (_, new):
                await until(new, "heartbeat")
                async with asyncio.timeout(5):
                    assert [kind async for kind, _ in old if kind == "kill"] == []  # it ended
                kill = await site.kill()
                assert (await until(new, "kill"))["id"] == kill["id"]

    run(tmp_path, story)


def test_63_a_slow_listener_is_cut_off_without_a_gap():
    listener = feeds.Listener("instance", "billing", None)
    got = []
    for n in range(5):
        listener.send(b"%d" % n)
    got += [listener.events.get_nowait() for _ in range(3)]
    for n in range(5, feeds.QUEUE + 50):
        listener.send(b"%d" % n)
    while (event := listener.events.get_nowait()) is not None:
        got.append(event)
    assert got == [b"%d" % n for n in range(len(got))]  # a beginning, whole


@settings(max_examples=200, deadline=None)
@given(steps=st.lists(st.sampled_from(["event", "event", "turn", "full", "free"]), max_size=60))
def test_what_is_written_past_the_stream_keeps_its_place(steps: list[str]):
    """`full` and `free`: whether the connection takes what is pushed."""
    sent, got, free = 0, [], True

    def push(event: bytes) -> bool:
        if free:
            got.append(event)
        return free

    async def story() -> None:
        nonlocal sent, free
        listener = feeds.Listener("instance", "billing", None, push)

        async def streamed() -> None:
            async for event in listener.queued():
                got.append(event)
                await asyncio.sleep(0)

        streaming = asyncio.create_task(streamed())
        for step in steps:
            if step == "event":
                listener.send(b"%d" % sent)
                sent += 1
            elif step == "turn":
                await asyncio.sleep(0)
            else:
                free = step == "free"
        listener.close()
        listener.send(b"after the end")
        await streaming

    asyncio.run(story())
    assert got == [b"%d" % n for n in range(sent)]


def test_a_client_that_reads_late_gets_everything_in_order(tmp_path: Path):
    async def story(site: Site) -> None:
        def put(n: int, matches: int) -> None:
            owners = tuple((Match.AGENT, f"agent-{n}-{match}") for match in range(matches))
            site.process.feed.put_provisional(FeedKill(id=f"prv_{n}", seq=-1, matches=owners, provisional=True))

        async with site.stream() as (_, events):
            await until(events, "heartbeat")
            put(0, 1)
            assert (await until(events, "kill"))["id"] == "prv_0"
            for n in range(1, 100):  # more than sockets hold: some is written, some waits
                put(n, 5_000)
                await asyncio.sleep(0)
            assert [(await until(events, "kill"))["id"] for _ in range(1, 100)] == [f"prv_{n}" for n in range(1, 100)]

    run(tmp_path, story)


def test_a_silent_verifier_is_missing_with_its_bound(tmp_path: Path):
    async def story(site: Site) -> None:
        await site.token()
        async with site.stream(bound_ms=300) as (_, events):
            await until(events, "heartbeat")
            kill = await site.kill()
            receipt = await site.receipt(kill, wait_ms=200)
            assert not receipt["complete"]
            (instance,) = receipt["verifiers"]["instances"]
            assert instance["state"] == "missing"
            assert instance["refuses_by"] == kill["at"] + 300
            assert receipt["worst_case"]["silent_until"] == kill["at"] + 300

    run(tmp_path, story)
