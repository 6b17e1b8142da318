"""One exchange with a Vault or OpenBao server through hvac, bounded in time and size, and what its failure means."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode, urlsplit

import urllib3
from hvac.adapters import RawAdapter
from requests.utils import DEFAULT_CA_BUNDLE_PATH

from issuers import IssuerError

MAX_ANSWER: Final = 4 << 20
"""Bytes of an answer that are read: a listing of leases is the largest."""

_CONNECTIONS: Final = 32
_CHUNK: Final = 64 << 10
_HEADERS: Final = {"Accept-Encoding": "identity", "User-Agent": "taskpass"}
_MAX_RETRY_S: Final = 3_600.0
_REDIRECTS: Final = range(300, 400)


class Refused(IssuerError):
    """The server understood and said no (4xx): nothing was done. `reasons` are its own words, never to be shown."""

    def __init__(
        self, sentence: str, *, status: int, reasons: Sequence[str], retry_after_s: float | None = None
    ) -> None:
        super().__init__(sentence, happened=False, retry_after_s=retry_after_s)
        self.status = status
        self.reasons = tuple(reasons)

    def says(self, words: str) -> bool:
        """Whether the server gave this reason."""
        return any(words in reason for reason in self.reasons)


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole and successful answer, the members that we read. Any of it may be secret."""

    data: Mapping[str, Any] = field(repr=False)
    auth: Mapping[str, Any] = field(repr=False)
    wrap: Mapping[str, Any] = field(repr=False)
    lease_id: str
    lease_s: int
    renewable: bool


def absent_if(words: str, ask: Callable[[], Answer]) -> Answer | None:
    """The answer; None if it is refused for this reason. Any other failure stays one: it proves no absence."""
    try:
        return ask()
    except Refused as refused:
        if not refused.says(words):
            raise
        return None


class Link:
    """A server at one address. Follows no redirect, for it would be shown the token; takes nothing from the
    environment: no proxy, no token, no CA; keeps connections open and may be used by many threads.
    """

    def __init__(
        self, *, address: str, namespace: str | None = None, ca_file: Path | None = None, timeout_s: float = 10.0
    ) -> None:
        """Raises ValueError for an address that is neither https nor on this machine."""
        parts = urlsplit(address)
        local = parts.scheme == "http" and parts.hostname in {"localhost", "127.0.0.1", "::1"}
        if (
            not (parts.scheme == "https" or local)
            or not parts.hostname
            or parts.query
            or parts.fragment
            or "@" in address
        ):
            raise ValueError("the address of Vault must be plain https (http only on loopback)")
        self.address = address.rstrip("/")
        self._timeout_s = timeout_s
        trust = {"cert_reqs": "CERT_REQUIRED", "ca_certs": str(ca_file or DEFAULT_CA_BUNDLE_PATH)}
        pool = urllib3.connection_from_url(
            self.address, maxsize=_CONNECTIONS, **(trust if parts.scheme == "https" else {})
        )
        # An empty token, not None: None has hvac look for one in the environment and in the home directory.
        self._adapter: Any = RawAdapter(
            base_uri=self.address, token="", session=_Session(pool, self.address), namespace=namespace,
            allow_redirects=False, strict_http=True,
        )  # fmt: skip

    def call(
        self, method: str, path: str, *, token: str | None, body: Mapping[str, Any] | None = None, wrap_ttl_s: int = 0
    ) -> Answer:
        """`method` is get, post or list; `path` counts from `/v1/`. Raises IssuerError, whose `happened` is False only
        if nothing was sent, or if the server refused before it did anything.
        """
        try:
            reply = self._adapter.request(
                method,
                f"/v1/{path}",
                headers={"X-Vault-Token": token} if token else {},
                raise_exception=False,
                json=body,
                wrap_ttl=f"{wrap_ttl_s}s" if wrap_ttl_s else None,
                timeout=self._timeout_s,
            )
        except urllib3.exceptions.HTTPError as error:
            raise _unanswered(error, self._timeout_s) from None
        return _judged(reply)


class _Reply(NamedTuple):
    """What came back, whole."""

    status: int
    retry_after: str
    text: bytes
    ok: bool = True  # as far as hvac is concerned: what a status means is judged here


class _Session:
    """The part of a `requests.Session` that hvac uses: one exchange on a kept connection. What requests does beside
    that (cookies, redirects, hooks, proxies) took two thirds of its time.
    """

    verify = cert = proxies = None  # hvac looks at these: the pool has its own

    def __init__(self, pool: urllib3.HTTPConnectionPool, address: str) -> None:
        self._pool = pool
        parts = urlsplit(address)
        self._origin = f"{parts.scheme}://{parts.netloc}"

    def request(
        self,
        *,
        method: str,
        url: str,
        headers: Mapping[str, str],
        timeout: float,
        json: Mapping[str, Any] | None = None,
        params: Mapping[str, str] | None = None,
        **_: object,
    ) -> _Reply:
        """Raises IssuerError, urllib3.exceptions.HTTPError."""
        until = time.monotonic() + timeout
        target = url.removeprefix(self._origin) + (f"?{urlencode(params)}" if params else "")
        with self._pool.request(
            method.upper(),
            target,
            headers={**_HEADERS, **headers},
            json=json,
            timeout=urllib3.Timeout(connect=timeout / 2, read=timeout),
            retries=False,
            redirect=False,
            preload_content=False,
        ) as response:
            return _Reply(response.status, response.headers.get("Retry-After", ""), _read(response, until))


def _read(response: urllib3.BaseHTTPResponse, until: float) -> bytes:
    """The body. The bound is on the whole: a server that sends a byte at a time never times out by itself."""
    text = bytearray()
    try:
        while chunk := response.read1(_CHUNK):
            text += chunk
            if len(text) > MAX_ANSWER:
                raise IssuerError(f"Vault sent an answer of more than {MAX_ANSWER} bytes.")
            if time.monotonic() > until:
                raise urllib3.exceptions.TimeoutError
    except urllib3.exceptions.SSLError as error:  # not one of connecting, at which nothing would have been sent
        raise urllib3.exceptions.ProtocolError from error
    return bytes(text)


def _unanswered(error: Exception, timeout_s: float) -> IssuerError:
    """Failures to connect are told from failures after that: only the former are certain to have done nothing."""
    if isinstance(error, urllib3.exceptions.ConnectTimeoutError | urllib3.exceptions.SSLError):
        return IssuerError("Vault cannot be reached.", happened=False)
    if isinstance(error, urllib3.exceptions.TimeoutError):
        return IssuerError(f"Vault did not answer within {timeout_s:g} seconds.")
    return IssuerError("The connection to Vault broke before its answer was whole.")


def _judged(reply: _Reply) -> Answer:
    status, retry_after, text, _ = reply
    if status in {200, 204}:
        return _answer(text)
    reasons = _reasons(text)
    wait = min(float(retry_after), _MAX_RETRY_S) if retry_after.isascii() and retry_after.isdigit() else None
    if status in _REDIRECTS:
        raise IssuerError("Vault answered with a redirect: give the address that answers itself.", happened=False)
    if status == 429:
        raise Refused("Vault asks for fewer requests.", status=status, reasons=reasons, retry_after_s=wait)
    if 400 <= status < 500:
        raise Refused(_REFUSALS.get(status, _REFUSED), status=status, reasons=reasons)
    if any("sealed" in reason.lower() for reason in reasons):
        # Sealed can also befall a request that is half done, so not even this says that nothing happened.
        raise IssuerError("Vault is sealed.", retry_after_s=wait)
    raise IssuerError(f"Vault failed (status {status}).", retry_after_s=wait)


_REFUSED = "Vault refused the request as invalid."
_REFUSALS = {
    403: "Vault does not permit it.",
    404: "Vault has nothing at this path.",
    405: "Vault does not support this operation at this path.",
}


def _answer(text: bytes) -> Answer:
    if not text:
        return Answer({}, {}, {}, "", 0, renewable=False)
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        raise IssuerError("Vault's answer was not whole.") from None
    if not isinstance(body, dict):
        raise IssuerError("Vault's answer was not an object.")
    data, auth, wrap = (body.get(name) or {} for name in ("data", "auth", "wrap_info"))
    lease_id, lease_s = body.get("lease_id") or "", body.get("lease_duration") or 0
    objects = isinstance(data, dict) and isinstance(auth, dict) and isinstance(wrap, dict)
    if not objects or not isinstance(lease_id, str) or not isinstance(lease_s, int):
        raise IssuerError("Vault's answer has another form than it should.")
    return Answer(data, auth, wrap, lease_id, lease_s, renewable=body.get("renewable") is True)


def _reasons(text: bytes) -> list[str]:
    try:
        errors = json.loads(text).get("errors")
    except (ValueError, AttributeError, RecursionError):
        return []
    return [reason for reason in errors if isinstance(reason, str)] if isinstance(errors, list) else []
