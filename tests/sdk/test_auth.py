"""One auth class in three HTTP clients: the credential goes along, and a dead one is replaced once."""

import asyncio
import http.server
import io
import threading

import httpx
import httpx2
import pytest

from broker.sdk.auth import TaskpassAuth
from broker.sdk.errors import Never

from .kit import AUDIENCE, broker_and_clock

requests = pytest.importorskip("requests", reason="requests is not installed")


class Service:
    """Accepts any credential but those it was told are dead; says what body came with it."""

    def __init__(self):
        self.dead = set()
        self.asked = []

    def answer(self, authorization, body):
        self.asked.append(authorization)
        return (401, b"dead") if authorization in self.dead else (200, body)

    def transport(self, library):
        def handle(request):
            status, body = self.answer(request.headers.get("authorization"), request.read())
            return library.Response(status, content=body)

        return library.MockTransport(handle)

    def async_transport(self, library):
        async def handle(request):
            status, body = self.answer(request.headers.get("authorization"), await request.aread())
            return library.Response(status, content=body)

        return library.MockTransport(handle)


@pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])
def test_a_synchronous_client(library):
    broker, _clock = broker_and_clock()
    service = Service()
    with broker.client() as client:
        auth = TaskpassAuth(client, AUDIENCE, scope="invoices:read")
        with library.Client(auth=auth, transport=service.transport(library)) as web:
            assert web.post("https://invoices.test/", content=b"one").content == b"one"
            service.dead.add(service.asked[0])
            assert web.post("https://invoices.test/", content=b"two").content == b"two"
            assert web.post("https://invoices.test/", content=b"three").status_code == 200
    first, again, second, third = service.asked
    assert first == again != second == third
    assert first.startswith("Bearer ey")
    assert sum(seen.path == "/oauth2/token" for seen in broker.requests) == 2


@pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])
@pytest.mark.parametrize("colour", ["threads", "asyncio"])
def test_an_asynchronous_client(library, colour):
    broker, _clock = broker_and_clock()
    service = Service()

    async def scenario():
        client = broker.client() if colour == "threads" else broker.async_client()
        auth = TaskpassAuth(client, AUDIENCE)
        async with library.AsyncClient(auth=auth, transport=service.async_transport(library)) as web:
            assert (await web.post("https://invoices.test/", content=b"one")).content == b"one"
            service.dead.add(service.asked[0])
            assert (await web.post("https://invoices.test/", content=b"two")).content == b"two"

    asyncio.run(scenario())
    assert len(set(service.asked)) == 2


def test_a_service_that_refuses_everything_is_asked_twice_and_no_more():
    broker, _clock = broker_and_clock()
    asked = []

    def handle(request):
        asked.append(request)
        return httpx2.Response(401)

    with broker.client() as client:
        auth = TaskpassAuth(client, AUDIENCE)
        with httpx2.Client(auth=auth, transport=httpx2.MockTransport(handle)) as web:
            assert web.get("https://invoices.test/").status_code == 401
    assert len(asked) == 2


def test_the_brokers_refusal_comes_out_of_the_request():
    broker, _clock = broker_and_clock()
    broker.refuse("/oauth2/token", 400, error="access_denied", outcome="never")
    service = Service()
    with broker.client() as client:
        auth = TaskpassAuth(client, AUDIENCE)
        with httpx2.Client(auth=auth, transport=service.transport(httpx2)) as web, pytest.raises(Never):
            web.get("https://invoices.test/")
    assert service.asked == []


def test_a_synchronous_client_needs_a_synchronous_broker_client():
    broker, _clock = broker_and_clock()
    auth = TaskpassAuth(broker.async_client(), AUDIENCE)
    with httpx2.Client(auth=auth, transport=Service().transport(httpx2)) as web, pytest.raises(TypeError):
        web.get("https://invoices.test/")


@pytest.fixture
def address():
    """A real service on loopback, for requests, which has no transport to put in its place."""
    service = Service()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            status, answer = service.answer(self.headers["authorization"], body)
            self.send_response(status)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield service, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def test_requests(address):
    service, url = address
    broker, _clock = broker_and_clock()
    with broker.client() as client, requests.Session() as web:
        web.auth = TaskpassAuth(client, AUDIENCE)
        assert web.post(url, data=b"one").content == b"one"
        service.dead.add(service.asked[0])
        answer = web.post(url, data=io.BytesIO(b"two"))
        assert answer.content == b"two"
        assert [earlier.status_code for earlier in answer.history] == [401]
        service.dead.add(service.asked[-1])
        broker.refuse("/oauth2/token", 400, error="access_denied", outcome="never")
        with pytest.raises(Never):
            web.post(url, data=b"three")
