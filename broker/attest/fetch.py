"""Getting a key set over https from a host that a trust row names, without being led anywhere else.

The name is resolved here, every address is checked, and the connection goes to a checked address: between the check and
the connection there is no second look-up that could answer differently. TLS still verifies the name. No redirects, no
proxies from the environment, no decompression, 256 KiB at most, and one deadline for everything.
"""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import httpx2

from broker.jose.keys import MAX_JWKS_BYTES

DEADLINE_S = 5.0
_MAX_ADDRESSES = 8

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""From a host and port to the textual addresses it has now; raises OSError."""

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64 = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "64:ff9b:1::/48")))
_METADATA = frozenset(map(ipaddress.ip_address, ("fd00:ec2::254", "100.100.100.200", "192.0.0.192")))
"""Clouds' instance metadata services outside 169.254.0.0/16: they hand out credentials to whoever asks."""


class FetchFailed(Exception):
    """No usable answer. The sentence is for the operator's log; it names the host, never the content."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One https URL from a trust row, and how far its host is trusted."""

    url: str
    ca_file: str | None = None
    allow_private: bool = False


Fetch = Callable[[Endpoint], Awaitable[bytes]]


async def resolve(host: str, port: int) -> Sequence[str]:
    """The system's answer for `host`."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def check_address(text: str, *, allow_private: bool) -> None:
    """Raise FetchFailed unless `text` is an address that keys may be fetched from.

    Link-local, multicast, unspecified and reserved addresses and metadata services never are; private ones and those
    that embed another address only with `allow_private`, and then the embedded one is judged too.
    """
    try:
        address: _Address = ipaddress.ip_address(text)
    except ValueError:
        raise FetchFailed(f"{text[:60]!r} is not an address") from None
    embedded = _embedded(address)
    if embedded is not None:
        if not allow_private:
            raise FetchFailed(f"{text} embeds another address")
        check_address(str(embedded), allow_private=allow_private)
        return
    # An IPv6 scope id ("fe80::1%eth0") survives parsing and means link-local or trouble.
    if (
        address.is_link_local
        or address.is_multicast
        or address.is_unspecified
        or (address.is_reserved and not address.is_loopback)
        or address in _METADATA
        or getattr(address, "scope_id", None)
    ):
        raise FetchFailed(f"{text} is an address that keys are never fetched from")
    if not address.is_global and not allow_private:
        raise FetchFailed(f"{text} is a private address, and the trust row does not set allow_private")


def _embedded(address: _Address) -> _Address | None:
    """The IPv4 address that an IPv6 one stands for: mapped, translated (NAT64), 6to4 or Teredo."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if any(address in network for network in _NAT64):
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    if address.teredo is not None:
        return address.teredo[1]
    return address.ipv4_mapped or address.sixtofour


async def fetch(endpoint: Endpoint, *, resolve: Resolve = resolve, deadline_s: float = DEADLINE_S) -> bytes:
    """The body behind the endpoint. Raises FetchFailed for anything but a plain 200 within the bounds."""
    try:
        async with asyncio.timeout(deadline_s):
            return await _fetch(endpoint, resolve, deadline_s / 3)  # a dead address leaves time for the next
    except TimeoutError:
        raise FetchFailed(f"no complete answer from {endpoint.url} within {deadline_s:g} s") from None
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, UnicodeError) as error:  # ssl.SSLError is an OSError
        raise FetchFailed(f"{endpoint.url}: {type(error).__name__}: {str(error)[:200]}") from error


async def _fetch(endpoint: Endpoint, resolve: Resolve, connect_s: float) -> bytes:
    url = httpx2.URL(endpoint.url)
    if url.scheme != "https" or not url.host or url.userinfo:
        raise FetchFailed(f"{endpoint.url} is not a plain https URL")
    addresses = (await resolve(url.host, url.port or 443))[:_MAX_ADDRESSES]
    for address in addresses:  # all of them: a name that also points inside is not a name to trust
        check_address(address, allow_private=endpoint.allow_private)
    context = await asyncio.to_thread(_tls, endpoint.ca_file)
    failure: Exception = FetchFailed(f"{url.host} has no address")
    timeout = httpx2.Timeout(None, connect=connect_s)
    async with httpx2.AsyncClient(verify=context, trust_env=False, follow_redirects=False, timeout=timeout) as client:
        for address in addresses:
            try:
                return await _get(client, url, address)
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                failure = error
    raise failure


def _tls(ca_file: str | None) -> ssl.SSLContext:
    if ca_file is None:
        return httpx2.create_ssl_context(trust_env=False)
    return ssl.create_default_context(cafile=ca_file)


async def _get(client: httpx2.AsyncClient, url: httpx2.URL, address: str) -> bytes:
    request = client.build_request(
        "GET",
        url.copy_with(host=address),
        headers={"host": url.netloc.decode(), "accept": "application/json", "accept-encoding": "identity"},
        extensions={"sni_hostname": url.host},  # also the name that the certificate must have
    )
    response = await client.send(request, stream=True)
    try:
        if response.status_code != 200:
            raise FetchFailed(f"{url} answered {response.status_code}; redirects are not followed")
        if response.headers.get("content-encoding", "identity") != "identity":
            raise FetchFailed(f"{url} answered with a compressed body, which nobody asked for")
        body = bytearray()
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > MAX_JWKS_BYTES:
                raise FetchFailed(f"{url} answered with more than {MAX_JWKS_BYTES} bytes")
        return bytes(body)
    finally:
        await response.aclose()
