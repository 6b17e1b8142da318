"""One exchange with a Vault or OpenBao server through hvac, bounded in time and size, and what its failure means."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import requests
import urllib3
from hvac.adapters import RawAdapter
from requests.adapters import HTTPAdapter

from issuers import IssuerError

MAX_ANSWER: Final = 4 << 20
"""Bytes of an answer that are read: a listing of leases is the largest."""

_CONNECTIONS: Final = 32
_CHUNK: Final = 64 << 10
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
        session = requests.Session()
        session.trust_env = False
        session.verify = str(ca_file) if ca_file else True
        session.headers["Accept-Encoding"] = "identity"
        pool = HTTPAdapter(pool_connections=1, pool_maxsize=_CONNECTIONS, max_retries=0)
        session.mount("https://", pool)
        session.mount("http://", pool)
        # An empty token, not None: None has hvac look for one in the environment and in the home directory.
        self._adapter: Any = RawAdapter(
            base_uri=self.address, token="", session=session, namespace=namespace, allow_redirects=False,
            verify=session.verify, strict_http=True,
        )  # fmt: skip

    def call(
        self, method: str, path: str, *, token: str | None, body: Mapping[str, Any] | None = None, wrap_ttl_s: int = 0
    ) -> Answer:
        """`method` is get, post or list; `path` counts from `/v1/`. Raises IssuerError, whose `happened` is False only
        if nothing was sent, or if the server refused before it did anything.
        """
        until = time.monotonic() + self._timeout_s
        try:
            with self._adapter.request(
                method,
                f"/v1/{path}",
                headers={"X-Vault-Token": token} if token else {},
                raise_exception=False,
                json=body,
                wrap_ttl=f"{wrap_ttl_s}s" if wrap_ttl_s else None,
                timeout=(self._timeout_s / 2, self._timeout_s),
                stream=True,
            ) as response:
                text = _read(response, until)
        except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as error:
            raise _unanswered(error, self._timeout_s) from None
        return _judged(response.status_code, response.headers.get("Retry-After", ""), text)


def _read(response: requests.Response, until: float) -> bytes:
    """The body. The bound is on the whole: a server that sends a byte at a time never times out by itself."""
    text = bytearray()
    while chunk := response.raw.read1(_CHUNK):
        text += chunk
        if len(text) > MAX_ANSWER:
            raise IssuerError(f"Vault sent an answer of more than {MAX_ANSWER} bytes.")
        if time.monotonic() > until:
            raise requests.exceptions.ReadTimeout
    return bytes(text)


def _unanswered(error: Exception, timeout_s: float) -> IssuerError:
    """Failures to connect are told from failures after that: only the former are certain to have done nothing."""
    if isinstance(error, requests.exceptions.ConnectTimeout | requests.exceptions.SSLError) or _never_connected(error):
        return IssuerError("Vault cannot be reached.", happened=False)
    if isinstance(error, requests.exceptions.Timeout | urllib3.exceptions.TimeoutError):
        return IssuerError(f"Vault did not answer within {timeout_s:g} seconds.")
    return IssuerError("The connection to Vault broke before its answer was whole.")


def _never_connected(error: Exception) -> bool:
    cause = error.args[0] if error.args else None
    return type(getattr(cause, "reason", None)).__name__ in {"NewConnectionError", "NameResolutionError"}


def _judged(status: int, retry_after: str, text: bytes) -> Answer:
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
