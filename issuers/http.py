"""One exchange with a backend's HTTP API, bounded in time and size, and what its failure means for an issuance."""

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httpx2

from issuers import IssuerError

MAX_ANSWER: Final = 256 * 1024
"""Bytes of an answer that are read."""

TIMEOUT_S: Final = 10.0
"""How long one exchange may take, from resolving the name to the last byte."""

_MAX_RETRY_S: Final = 3_600.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer, whatever its status. Header names in lower case; the body may hold a secret."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


class Backend:
    """An API at one base URL. Follows no redirects, uses no proxy of the environment, keeps no connection."""

    def __init__(self, *, name: str, url: str, ca_file: Path | None = None, timeout_s: float = TIMEOUT_S) -> None:
        """`name` is what sentences call it. Raises ValueError for a URL that is neither https nor on this machine."""
        parts = urlsplit(url)
        local = parts.scheme == "http" and parts.hostname in {"localhost", "127.0.0.1", "::1"}
        if not (parts.scheme == "https" or local) or not parts.hostname or parts.query or parts.fragment or "@" in url:
            raise ValueError(f"the URL of {name} must be plain https (http only on loopback)")
        self.name = name
        self._url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._tls: ssl.SSLContext | bool = False
        if parts.scheme == "https":
            self._tls = (
                httpx2.create_ssl_context(trust_env=False)
                if ca_file is None
                else ssl.create_default_context(cafile=ca_file)
            )

    def send(self, method: str, path: str, *, headers: Mapping[str, str], content: bytes | None = None) -> Answer:
        """Raises IssuerError when there is no whole answer: `happened` is False only if nothing was ever sent.

        Blocks, and needs a thread without a running event loop: the loop of its own is what bounds the time as a whole,
        against a backend that answers one byte at a time too.
        """
        return asyncio.run(self._bounded(method, path, headers, content))

    async def _bounded(self, method: str, path: str, headers: Mapping[str, str], content: bytes | None) -> Answer:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._exchange(method, path, headers, content)
        except (httpx2.ConnectError, httpx2.ConnectTimeout):
            raise IssuerError(f"{self.name} cannot be reached.", happened=False) from None
        except TimeoutError:
            raise IssuerError(f"{self.name} did not answer within {self._timeout_s:g} seconds.") from None
        except httpx2.HTTPError as error:
            raise IssuerError(f"{self.name} did not answer: {type(error).__name__}.") from None

    async def _exchange(self, method: str, path: str, headers: Mapping[str, str], content: bytes | None) -> Answer:
        timeout = httpx2.Timeout(None, connect=self._timeout_s / 2)
        plain = {"Accept-Encoding": "identity", "User-Agent": "taskpass", **headers}
        async with (
            httpx2.AsyncClient(verify=self._tls, trust_env=False, follow_redirects=False, timeout=timeout) as client,
            client.stream(method, self._url + path, headers=plain, content=content) as answer,
        ):
            body = bytearray()
            async for chunk in answer.aiter_raw():
                body += chunk
                if len(body) > MAX_ANSWER:
                    raise IssuerError(f"{self.name} sent an answer of more than {MAX_ANSWER} bytes.")
            return Answer(answer.status_code, {k.lower(): v for k, v in answer.headers.items()}, bytes(body))


def retry_after(answer: Answer) -> float | None:
    """The seconds that the backend asks to wait; None when it does not say, or says no number."""
    raw = answer.headers.get("retry-after", "")
    return min(float(raw), _MAX_RETRY_S) if raw.isascii() and raw.isdigit() else None
