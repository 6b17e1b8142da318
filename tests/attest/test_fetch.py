"""Case 83 of the attack catalogue: fetching keys is not a way to make the broker talk to something else.

Real TLS servers on loopback, with a certificate authority of our own, behind a resolver that answers what a case says.
"""

import asyncio
import gzip
import ssl
from collections.abc import Callable
from contextlib import suppress

import pytest

from broker.attest.fetch import Endpoint, FetchFailed, check_address, fetch
from broker.jose import load_jwks
from tests.jose.forge import dump, jwk
from tests.tls import Tls

HOST = "issuer.test"
JWKS = dump({"keys": [jwk()]})


@pytest.fixture(scope="module")
def tls(tmp_path_factory) -> Tls:
    return Tls(tmp_path_factory.mktemp("tls"))


def answer(body: bytes = JWKS, status: str = "200 OK", headers: str = "content-type: application/json\r\n") -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n{headers}\r\n".encode() + body


async def serve(context: ssl.SSLContext | None, respond, use: Callable):
    """Run `use(port)` against a server that reads one request and gives `respond`: bytes, or a coroutine function."""
    requests: list[bytes] = []
    handlers: set[asyncio.Task] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.add(asyncio.current_task())
        with suppress(OSError, asyncio.IncompleteReadError):
            if context is not None:
                requests.append(await reader.readuntil(b"\r\n\r\n"))
            if isinstance(respond, bytes):
                writer.write(respond)
                await writer.drain()
            else:
                await respond(writer)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
    try:
        return await use(server.sockets[0].getsockname()[1]), requests
    finally:
        server.close()
        for handler in handlers:
            handler.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)


def get(
    tls: Tls, respond, *, context=None, host: str = HOST, addresses=("127.0.0.1",), deadline_s: float = 5.0, **changes
):
    """Fetch https://issuer.test:port/jwks from a server that gives `respond`."""

    async def resolve(asked: str, port: int):
        assert asked == host
        return list(addresses)

    async def use(port: int) -> bytes:
        endpoint = Endpoint(
            f"https://{host}:{port}/jwks?v=1", **{"ca_file": tls.ca_file, "allow_private": True, **changes}
        )
        return await fetch(endpoint, resolve=resolve, deadline_s=deadline_s)

    return asyncio.run(serve(context or tls.context(host), respond, use))


def test_a_key_set_is_fetched_by_its_name_over_a_checked_address(tls: Tls) -> None:
    body, requests = get(tls, answer())
    assert load_jwks(body).find("k1", "ES256")
    head = requests[0].decode().lower()
    assert head.startswith("get /jwks?v=1 http/1.1\r\n")
    assert f"\r\nhost: {HOST}:" in head
    assert "\r\naccept-encoding: identity\r\n" in head
    assert "cookie" not in head
    assert "authorization" not in head


def test_the_next_address_is_tried(tls: Tls) -> None:
    body, _ = get(tls, answer(), addresses=("127.0.0.9", "127.0.0.1"))
    assert body == JWKS


def big(writer):
    async def send() -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")
        while True:  # ten gigabytes, if anyone reads them
            writer.write(b" " * 65_536)
            await writer.drain()

    return send()


def drip(writer):
    async def send() -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
        while True:
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.02)

    return send()


def drip_headers(writer):
    async def send() -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"x: y\r\n")
            await writer.drain()
            await asyncio.sleep(0.02)

    return send()


def silence(writer):
    return asyncio.sleep(30)


def chunked_bomb(writer):
    async def send() -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"10000\r\n" + b"x" * 65_536 + b"\r\n")
            await writer.drain()

    return send()


@pytest.mark.parametrize(
    ("respond", "sentence"),
    [
        *(
            pytest.param(
                answer(b"", f"{code} Moved", f"location: {to}\r\n"),
                "redirects are not",
                id=f"I83-redirect-{code}-{name}",
            )
            for code, name, to in (
                (301, "http", "http://issuer.test/jwks"),
                (302, "private", "https://169.254.169.254/latest/meta-data"),
                (302, "self", "/jwks?v=1"),
                (307, "file", "file:///etc/passwd"),
                (308, "other", "https://evil.example/"),
            )
        ),
        pytest.param(answer(status="404 Not Found"), "answered 404", id="I83-404"),
        pytest.param(answer(status="500 Oops"), "answered 500", id="I83-500"),
        pytest.param(answer(status="206 Partial Content"), "answered 206", id="I83-206"),
        pytest.param(
            answer(gzip.compress(b" " * 10_000_000), headers="content-encoding: gzip\r\n"),
            "compressed",
            id="I83-gzip-bomb",
        ),
        pytest.param(answer(headers="content-encoding: br\r\n"), "compressed", id="I83-brotli"),
        pytest.param(answer(b" " * 262_145), "more than 262144", id="I83-one-byte-too-many"),
        pytest.param(big, "more than 262144", id="I83-10-gigabytes"),
        pytest.param(chunked_bomb, "more than 262144", id="I83-chunked"),
        pytest.param(b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * 200_000 + b"\r\n\r\n", "Error", id="I83-huge-header"),
        pytest.param(b"SSH-2.0-OpenSSH_9.6\r\n", "Error", id="I83-not-http"),
        pytest.param(b"", "Error", id="I83-closed"),
        pytest.param(answer()[:-5], "Error", id="I83-cut-off"),
    ],
)
def test_bad_answers(tls: Tls, respond, sentence: str) -> None:
    with pytest.raises(FetchFailed, match=sentence):
        get(tls, respond)


@pytest.mark.parametrize(
    "respond", [drip, drip_headers, silence], ids=["I83-slow-body", "I83-slow-header", "I83-silence"]
)
def test_one_deadline_for_everything(tls: Tls, respond) -> None:
    with pytest.raises(FetchFailed, match="no complete answer"):
        get(tls, respond, deadline_s=0.3)


def test_a_resolver_that_hangs_is_under_the_same_deadline(tls: Tls) -> None:
    async def never(host: str, port: int):
        await asyncio.sleep(30)

    with pytest.raises(FetchFailed, match="no complete answer"):
        asyncio.run(fetch(Endpoint("https://issuer.test/"), resolve=never, deadline_s=0.05))


def test_the_certificate_must_be_for_the_name(tls: Tls) -> None:
    with pytest.raises(FetchFailed, match="ConnectError"):
        get(tls, answer(), context=tls.context("other.test"))


def test_the_certificate_must_be_from_the_row_s_authority(tls: Tls, tmp_path) -> None:
    with pytest.raises(FetchFailed, match="ConnectError"):
        get(tls, answer(), context=Tls(tmp_path).context(HOST))
    with pytest.raises(FetchFailed, match="ConnectError"):  # nor do the system's authorities know ours
        get(tls, answer(), ca_file=None)


def test_a_missing_ca_file_is_said(tls: Tls) -> None:
    with pytest.raises(FetchFailed, match="FileNotFoundError"):
        get(tls, answer(), ca_file="/nowhere/ca.pem")


def test_no_plain_http_server_is_spoken_to(tls: Tls) -> None:
    async def use(port: int) -> bytes:
        async def resolve(asked: str, port: int):
            return ["127.0.0.1"]

        return await fetch(Endpoint(f"https://{HOST}:{port}/", tls.ca_file, allow_private=True), resolve=resolve)

    with pytest.raises(FetchFailed):
        asyncio.run(serve(None, answer(), use))


@pytest.mark.parametrize(
    "url",
    [
        "http://issuer.test/",
        "gopher://issuer.test/",
        "file:///etc/passwd",
        "https://user:pw@issuer.test/",
        "https:///x",
        "ftp://issuer.test",
    ],
)
def test_i83_other_urls(url: str) -> None:
    with pytest.raises(FetchFailed):
        asyncio.run(fetch(Endpoint(url)))


def test_loopback_needs_allow_private(tls: Tls) -> None:
    with pytest.raises(FetchFailed, match="allow_private"):
        get(tls, answer(), allow_private=False)


def test_i83_dns_rebinding_has_no_second_look_up(tls: Tls) -> None:
    """The first answer is checked and connected to; a name that also points inside is refused whole."""
    answers = iter([["127.0.0.1"], ["169.254.169.254"]])
    asked = []

    async def resolve(host: str, port: int):
        asked.append(host)
        return next(answers)

    async def use(port: int) -> bytes:
        return await fetch(Endpoint(f"https://{HOST}:{port}/", tls.ca_file, allow_private=True), resolve=resolve)

    body, _ = asyncio.run(serve(tls.context(HOST), answer(), use))
    assert (body, asked) == (JWKS, [HOST])
    with pytest.raises(FetchFailed, match="never fetched"):
        get(tls, answer(), addresses=("127.0.0.1", "169.254.169.254"))


def test_no_address_and_no_name(tls: Tls) -> None:
    with pytest.raises(FetchFailed, match="no address"):
        get(tls, answer(), addresses=())

    async def fails(host: str, port: int):
        raise OSError("no such name")

    with pytest.raises(FetchFailed, match="no such name"):
        asyncio.run(fetch(Endpoint("https://issuer.test/"), resolve=fails))


@pytest.mark.parametrize(
    "host", ["2130706433", "0x7f000001", "017700000001", "127.1", "0", "localhost", "[::1]", "127.0.0.1"]
)
def test_i83_spellings_of_loopback(host: str) -> None:
    """The system's own resolver reads decimal, octal and short forms; what it makes of them is what is checked."""
    with pytest.raises(FetchFailed):
        asyncio.run(fetch(Endpoint(f"https://{host}:1/"), deadline_s=2))


ALWAYS = [
    "169.254.169.254",
    "169.254.0.1",
    "fe80::1",
    "fe80::1%eth0",
    "0.0.0.0",
    "::",
    "224.0.0.1",
    "ff02::1",
    "255.255.255.255",
    "240.0.0.1",
    "fd00:ec2::254",
    "100.100.100.200",
    "::ffff:169.254.169.254",
    "::ffff:0.0.0.0",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::a9fe:a9fe",
    "2002:a9fe:a9fe::1",
    "::7f00:1",
    "issuer.test",
    "",
]
UNLESS_ALLOWED = [
    "127.0.0.1",
    "127.8.9.10",
    "::1",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "fd00::1",
    "192.0.2.1",
    "198.18.0.1",
    "2001:db8::1",
    "::ffff:127.0.0.1",
    "::ffff:8.8.8.8",
    "64:ff9b::808:808",
    "64:ff9b::7f00:1",
    "2002:808:808::1",
]
PUBLIC = ["8.8.8.8", "1.1.1.1", "2606:4700::1111"]


@pytest.mark.parametrize("address", ALWAYS)
@pytest.mark.parametrize("allow_private", [False, True])
def test_i83_addresses_that_are_always_refused(address: str, allow_private: bool) -> None:
    with pytest.raises(FetchFailed):
        check_address(address, allow_private=allow_private)


@pytest.mark.parametrize("address", UNLESS_ALLOWED)
def test_i83_addresses_that_a_row_may_allow(address: str) -> None:
    check_address(address, allow_private=True)
    with pytest.raises(FetchFailed):
        check_address(address, allow_private=False)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address: str) -> None:
    check_address(address, allow_private=False)
