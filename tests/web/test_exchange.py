"""The token endpoint on the wire: however a request is sent, it gets the answer that the ASGI route gives."""

import asyncio
import json
from collections.abc import Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, NamedTuple
from urllib.parse import urlencode

import pytest
import uvicorn
from uvicorn.server import ServerState

from broker.signals import INTERVAL_S
from broker.signals.attempts import Attempts
from broker.signals.memory import Hub, MemorySignals
from broker.web import exchange
from broker.web.connections import SlowClients
from tests.kit import FORM, Broker

PATH = "/oauth2/token"
HEAD, MOST = 16_384, 20
STRANGER = "203.0.113.7"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: dict[str, Any]


class Wire:
    """Connections of `taskpass serve` to a broker's application."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.state = ServerState()
        config = uvicorn.Config(
            broker.process.app, lifespan="off", log_config=None, limit_concurrency=MOST, forwarded_allow_ips="127.0.0.1"
        )
        config.load()
        self._make = lambda: exchange.TokenConnection(
            config=config, server_state=self.state, app_state={}, head_limit=HEAD, connections=MOST
        )

    @asynccontextmanager
    async def connected(self) -> Any:
        """A client's two ends of one connection."""
        server = await asyncio.get_running_loop().create_server(self._make, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
        try:
            yield reader, writer
        finally:
            writer.close()
            server.close()
            await asyncio.gather(*self.state.tasks)

    def send(self, *parts: bytes, answers: int = 1) -> list[Answer]:
        """What comes back when `parts` are written, each after the server has had its turn with the last."""

        async def exchanged() -> list[Answer]:
            async with self.connected() as (reader, writer):
                for part in parts:
                    writer.write(part)
                    await writer.drain()
                    for _ in range(3):
                        await asyncio.sleep(0)
                return [await _read(reader) for _ in range(answers)]

        return self.broker.run(exchanged())


async def _until(done: Callable[[], bool]) -> None:
    for _ in range(100_000):
        if done():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came")


async def _read(reader: asyncio.StreamReader) -> Answer:
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).decode().split("\r\n")
    while head[0].split()[1] == "100":
        head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in head[1:] if line)
    body = await reader.readexactly(int(headers["content-length"]))
    return Answer(int(head[0].split()[1]), headers, json.loads(body))


def request(
    fields: dict[str, str] | list[tuple[str, str]] | bytes,
    *lines: str,
    path: str = PATH,
    method: str = "POST",
    version: str = "1.1",
    form: bool = True,
) -> bytes:
    body = fields if isinstance(fields, bytes) else urlencode(fields).encode()
    head = [f"{method} {path} HTTP/{version}", "Host: broker", f"Content-Length: {len(body)}", *lines]
    if form:
        head.append(f"Content-Type: {FORM['content-type']}")
    return "\r\n".join([*head, "", ""]).encode() + body


@pytest.fixture(scope="module")
def wire(shared: Broker) -> Wire:
    return Wire(shared)


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What was answered without ASGI."""
    seen: list[object] = []
    real = exchange.Exchange._answer

    def spy(self: exchange.Exchange, answer: Any) -> None:
        seen.append(answer)
        real(self, answer)

    monkeypatch.setattr(exchange.Exchange, "_answer", spy)
    return seen


def test_a_plain_request_is_answered_on_its_connection(wire: Wire, answered: list[object]):
    sent = request(wire.broker.token_fields())
    answer = wire.send(sent)[0]
    assert answer.status == 200
    assert wire.broker.active(answer.body["access_token"])
    plain = wire.broker.token()
    assert answer.body.keys() == plain.json().keys()
    assert answer.headers == {**dict(plain.headers), "content-length": answer.headers["content-length"]}
    assert len(answered) == 1


@pytest.mark.parametrize("given", ["0b9c7d5e-trace.1", "a" * 64, "a" * 65, "a/b", '"', "-a", ""])
def test_both_ways_repeat_a_sane_request_id(wire: Wire, answered: list[object], given: str):
    repeated = given if given.startswith(("0b9c", "a" * 64)) and len(given) <= 64 else None
    for fields in ({}, {"scope": "invoices:burn"}):
        line = f"X-Request-Id: {given}"
        here = wire.send(request(wire.broker.token_fields(**fields), line))[0]
        there = wire.broker.form("/oauth2/token", wire.broker.token_fields(**fields), headers={"x-request-id": given})
        assert here.headers.keys() == there.headers.keys()
        if repeated is not None:
            assert here.headers["x-request-id"] == there.headers["x-request-id"] == repeated
        if fields:
            assert here.body["request_id"] == here.headers["x-request-id"]
            assert (here.body["request_id"] == given) == (repeated is not None)
        elif repeated is None:
            assert "x-request-id" not in here.headers
    assert len(answered) == 2


def test_two_request_ids_are_none(wire: Wire):
    twice = ("X-Request-Id: one", "X-Request-Id: two")
    assert "x-request-id" not in wire.send(request(wire.broker.token_fields(), *twice))[0].headers


def test_a_connection_serves_many_requests(wire: Wire, answered: list[object]):
    async def several() -> list[int]:
        async with wire.connected() as (reader, writer):
            found = []
            for _ in range(3):
                writer.write(request(wire.broker.token_fields()))
                found.append((await _read(reader)).status)
            writer.write(request(b"", path="/livez", method="GET"))
            found.append((await _read(reader)).status)
            writer.write(request(wire.broker.token_fields()))
            found.append((await _read(reader)).status)
            return found

    assert wire.broker.run(several()) == [200] * 5
    assert len(answered) == 4


@pytest.mark.parametrize("cut", [1, 40, 200, 900])
def test_a_request_may_come_in_pieces(wire: Wire, answered: list[object], cut: int):
    sent = request(wire.broker.token_fields())
    assert wire.send(sent[:cut], sent[cut:])[0].status == 200
    assert len(answered) == 1


def _long(broker: Broker) -> bytes:
    return request({**broker.token_fields(), "client_id": "a" * 100_000})


def _as_sent(*lines: str, **how: Any) -> Callable[[Broker], bytes]:
    return lambda broker: request(broker.token_fields(), *lines, **how)


REFUSED: dict[str, Callable[[Broker], bytes]] = {
    "a body that is too long": _long,
    "no content type": _as_sent(form=False),
    "another content type": _as_sent("Content-Type: application/json", form=False),
    "two content types": _as_sent("Content-Type: application/json"),
    "an Authorization header": _as_sent("Authorization: Bearer x"),
    "a query": _as_sent(path=f"{PATH}?a=b"),
    "an escaped path": _as_sent(path="/oauth2/%74oken%0a"),
    "another method": _as_sent(method="PUT"),
    "an empty body": lambda _: request(b""),
    "a body of noise": lambda _: request(b"\xff\x00=&&"),
    "a forged assertion": lambda broker: request(broker.token_fields(assertion="a.b.c")),
    "an unknown action": lambda broker: request(broker.token_fields(scope="invoices:burn")),
    "a replay": lambda broker: request(broker.token_fields(assertion=_spent(broker))),
}


def _spent(broker: Broker) -> str:
    proof = broker.home.proof("dispute-bot")
    assert broker.token(assertion=proof).status_code == 200
    return proof


@pytest.mark.parametrize("what", REFUSED)
def test_refuses_as_the_asgi_route_does(wire: Wire, what: str):
    answer = wire.send(REFUSED[what](wire.broker))[0]
    head, _, body = REFUSED[what](wire.broker).partition(b"\r\n\r\n")  # another: the first has spent its assertion
    method, path, _ = head.split(b"\r\n")[0].decode().split()
    pairs = [line.split(b": ", 1) for line in head.split(b"\r\n")[2:]]
    other = wire.broker.run(
        wire.broker.http.request(method, path, content=body, headers=[(name, value) for name, value in pairs])
    )
    varying = {"request_id", "decision_id", "instance"}
    assert answer.status == other.status_code
    assert 400 <= answer.status < 500
    assert {k: v for k, v in answer.body.items() if k not in varying} == {
        k: v for k, v in other.json().items() if k not in varying
    }
    assert answer.headers.keys() == other.headers.keys()


def test_what_is_not_plain_goes_the_long_way(wire: Wire, answered: list[object]):
    assert wire.send(request(wire.broker.token_fields(), "Expect: 100-continue"))[0].status == 200
    assert answered == []


def test_pipelined_requests_are_answered_in_order(wire: Wire, answered: list[object]):
    fields = [wire.broker.token_fields(scope=scope) for scope in ("invoices:read", "invoices:burn", "invoices:read")]
    answers = wire.send(b"".join(request(each) for each in fields), answers=3)
    assert [answer.status for answer in answers] == [200, 400, 200]
    assert len(answered) == 1  # the first; the others wait in Uvicorn's own queue


@pytest.mark.parametrize("how", [{"version": "1.0"}, {"lines": ("Connection: close",)}])
def test_closes_when_the_client_wants_it(wire: Wire, how: dict[str, Any]):
    async def closed() -> tuple[Answer, bytes]:
        async with wire.connected() as (reader, writer):
            lines = how.get("lines", ())
            writer.write(request(wire.broker.token_fields(), *lines, version=how.get("version", "1.1")))
            return await _read(reader), await asyncio.wait_for(reader.read(), 10)

    answer, rest = wire.broker.run(closed())
    assert answer.status == 200
    assert answer.headers["connection"] == "close"
    assert rest == b""


def test_a_client_that_leaves_costs_nobody_else_anything(wire: Wire, answered: list[object]):
    async def leave() -> None:
        async with wire.connected() as (_, writer):
            writer.write(request(wire.broker.token_fields()))
            await writer.drain()
        await _until(lambda: bool(answered))

    wire.broker.run(leave())
    assert wire.send(request(wire.broker.token_fields()))[0].status == 200


def test_the_requests_trace_is_kept(wire: Wire, answered: list[object]):
    size = wire.broker.size
    assert wire.send(request(wire.broker.token_fields(), f"Traceparent: {TRACE}"))[0].status == 200
    assert wire.broker.events("issued", start=size)[0]["traceparent"] == TRACE
    assert len(answered) == 1


@pytest.mark.parametrize("line", [(), ("Expect: 100-continue",)], ids=["at once", "the long way"])
def test_both_ways_count_an_address_that_proves_nothing(wire: Wire, monkeypatch: pytest.MonkeyPatch, line: tuple[str]):
    clock = [0.0]
    attempts = Attempts(limit=3, signals=MemorySignals(hub=Hub(clock=lambda: clock[0])), clock=lambda: clock[0])
    endpoint = wire.broker.process.app.token_endpoint
    monkeypatch.setattr(endpoint, "_attempts", attempts)

    def status(assertion: str | None = None, *, address: str = STRANGER) -> int:
        fields = wire.broker.token_fields(**({"assertion": assertion} if assertion else {}))
        return wire.send(request(fields, f"X-Forwarded-For: {address}", *line))[0].status

    assert status() == 200
    assert {status("a.b.c") for _ in range(3)} <= {400, 401}
    assert wire.send(request(b"", f"X-Forwarded-For: {STRANGER}"))[0].status == 429
    refused = wire.send(request(wire.broker.token_fields(), f"X-Forwarded-For: {STRANGER}", *line))[0]
    assert refused.status == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert status(address="203.0.113.8") == 200
    clock[0] += INTERVAL_S
    assert status() == 200


def test_one_connection_too_many_is_refused_for_tokens_too(wire: Wire, answered: list[object]):
    async def crowd() -> bytes:
        async with AsyncExitStack() as stack:
            others = [await stack.enter_async_context(wire.connected()) for _ in range(MOST)]
            await _until(lambda: len(wire.state.connections) == MOST)
            reader, writer = others[-1]
            writer.write(request(wire.broker.token_fields()))
            return await asyncio.wait_for(reader.readline(), 10)

    assert b" 503 " in wire.broker.run(crowd())
    assert answered == []


def test_a_head_without_an_end_is_refused_after_a_token_too(wire: Wire, answered: list[object]):
    async def endless() -> bytes:
        async with wire.connected() as (reader, writer):
            writer.write(request(wire.broker.token_fields()))
            assert (await _read(reader)).status == 200
            writer.write(b"POST /oauth2/token HTTP/1.1\r\n" + b"x: " + b"a" * 2 * HEAD)
            return await asyncio.wait_for(reader.read(), 10)

    assert wire.broker.run(endless()).startswith(b"HTTP/1.1 431 ")
    assert len(answered) == 1


def test_a_body_that_does_not_come_is_a_slow_clients(wire: Wire):
    async def cut() -> int:
        slow = SlowClients(limit_s=10)
        async with wire.connected() as (reader, writer):
            writer.write(request(wire.broker.token_fields())[:-1])
            await _until(lambda: any(each.cycle for each in wire.state.connections))
            for now in (0, 5, 10):
                slow.look(wire.state.connections, now)
            waiting = len(wire.state.connections)
            slow.look(wire.state.connections, 11)
            with suppress(ConnectionResetError):
                assert await asyncio.wait_for(reader.read(), 10) == b""
            return waiting

    assert wire.broker.run(cut()) == 1


def test_a_server_that_stops_answers_what_it_has_begun(wire: Wire, answered: list[object]):
    async def stop() -> tuple[Answer, bytes]:
        async with wire.connected() as (reader, writer):
            writer.write(request(wire.broker.token_fields()))
            await _until(lambda: any(each.cycle for each in wire.state.connections))
            for connection in list(wire.state.connections):
                connection.shutdown()
            return await _read(reader), await asyncio.wait_for(reader.read(), 10)

    answer, rest = wire.broker.run(stop())
    assert answer.status == 200
    assert answer.headers["connection"] == "close"
    assert rest == b""
    assert len(answered) == 1


def test_a_bug_is_a_500_that_says_nothing(wire: Wire, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object) -> None:
        raise RuntimeError("secret inside")

    monkeypatch.setattr(wire.broker.process.broker.issuance, "submit", broken)
    answer = wire.send(request(wire.broker.token_fields()))[0]
    assert answer.status == 500
    assert "secret" not in json.dumps(answer.body)


def test_keys_are_fetched_outside_the_batch(wire: Wire, monkeypatch: pytest.MonkeyPatch):
    from broker.attest import KeysNeeded

    pool = wire.broker.process.broker.issuance._rules.current.attesters
    real, asked = pool.attest, []

    def attest(token: str, **more: Any) -> Any:
        if not asked:
            raise KeysNeeded("idp")
        return real(token, **more)

    async def refresh(source: str) -> None:
        asked.append(source)

    monkeypatch.setattr(pool, "attest", attest)
    monkeypatch.setattr(pool, "refresh", refresh)
    assert wire.send(request(wire.broker.token_fields()))[0].status == 200
    assert asked == ["idp"]
