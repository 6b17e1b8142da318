"""What the issuer publishes for verifiers: where its parts are (RFC 8414) and which keys it signs with.

Keys are fetched at the start, every few minutes, when a token names a key that is not known (at most every half minute,
or strangers could make this process hammer the broker), and at once when the feed says that a key died or that the
ledger was restored.
"""

import asyncio
import contextlib
import json
import logging
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx2

from broker.jose import JoseError, KeySet, UnknownKey, VerifyingKey, load_jwks
from broker.sdk.clock import Elapsed
from broker.sdk.errors import FeedStale, SdkError, Unavailable

MAX_METADATA = 65_536
MAX_JWKS = 262_144
REFRESH_S = 300.0
RETRY_S = 1.0
COOLDOWN_S = 30.0
MAX_AGE_S = 3600.0
"""Keys that could not be fetched again for this long are no longer used: they may have been withdrawn long ago."""

_NS = 1_000_000_000

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Metadata:
    """The members of the metadata document that a verifier needs."""

    jwks_uri: str
    control: str


class Published:
    """The issuer's documents, fetched with care. One event loop writes; `find` may be asked from any thread."""

    def __init__(self, *, issuer: str, http: httpx2.AsyncClient, elapsed: Elapsed) -> None:
        self._issuer = issuer
        self._http = http
        self._elapsed = elapsed
        self._metadata: Metadata | None = None
        self._keys: tuple[KeySet, int] | None = None  # with the moment they were fetched
        self._asked_at: int | None = None
        self._wanted = asyncio.Event()
        self._fetching = asyncio.Lock()
        self.loaded = asyncio.Event()
        """Set once there are keys."""

    def find(self, kid: str | None, alg: str) -> VerifyingKey:
        """The issuer's key for a header. Raises UnknownKey, or FeedStale while there are no keys to judge by."""
        if self._keys is None or self._elapsed() - self._keys[1] > MAX_AGE_S * _NS:
            raise FeedStale("The issuer's keys are not known at the moment.")
        if kid is None:
            raise UnknownKey("The token names no key.", reason="kid_missing")
        return self._keys[0].find(kid, alg)

    async def metadata(self) -> Metadata:
        """The metadata document, fetched once and again after anything failed. Raises Unavailable."""
        if self._metadata is None:
            self._metadata = _metadata(await self._get(metadata_url(self._issuer), MAX_METADATA), self._issuer)
        return self._metadata

    def forget_metadata(self) -> None:
        """Look again where things are: something was not there."""
        self._metadata = None

    def distrust(self) -> None:
        """A new ledger epoch has new keys. Until they are here nothing verifies."""
        self._keys = None

    def want(self) -> None:
        """Fetch the keys now, and again for the next unknown one: what was learnt before does not count."""
        self._asked_at = None
        self._wanted.set()

    async def refresh_for_unknown_key(self) -> bool:
        """Whether the keys are newer now than when the caller looked. Waits for one fetch, unless it is too soon."""
        before = self._keys
        async with self._fetching:
            if self._keys is not before:
                return True
            now = self._elapsed()
            if self._asked_at is not None and now - self._asked_at < COOLDOWN_S * _NS:
                return False
            self._asked_at = now
            return await self._fetch()

    async def keep(self) -> None:
        """Keep the keys current, for as long as this process runs."""
        while True:
            self._wanted.clear()
            async with self._fetching:
                fetched = await self._fetch()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REFRESH_S if fetched else RETRY_S):
                    await self._wanted.wait()

    async def _fetch(self) -> bool:
        asked_at = self._elapsed()
        try:
            metadata = await self.metadata()
            keys = load_jwks(await self._get(metadata.jwks_uri, MAX_JWKS), algs={"ES256"})
        except (SdkError, JoseError) as error:
            logger.warning("could not fetch the issuer's keys: %s", error)
            self.forget_metadata()
            return False
        self._keys = keys, asked_at
        self.loaded.set()
        return True

    async def _get(self, url: str, limit: int) -> bytes:
        body = bytearray()
        try:
            async with self._http.stream("GET", url, headers={"Accept": "application/json"}) as answer:
                if answer.status_code != 200:
                    raise Unavailable(f"{url} answered {answer.status_code}.")
                async for chunk in answer.aiter_bytes():
                    body += chunk
                    if len(body) > limit:
                        raise Unavailable(f"{url} has more than {limit} bytes.")
        except httpx2.HTTPError as error:
            raise Unavailable(f"{url} did not answer: {type(error).__name__}.") from error
        return bytes(body)


def metadata_url(issuer: str) -> str:
    """Where an issuer's metadata is: the well-known part goes before its path (RFC 8414 section 3.1)."""
    url = urlsplit(issuer)
    return f"{url.scheme}://{url.netloc}/.well-known/oauth-authorization-server{url.path}"


def _metadata(content: bytes, issuer: str) -> Metadata:
    try:
        document = json.loads(content)
        stated, jwks_uri = document["issuer"], document["jwks_uri"]
        control = document.get("taskpass_control", issuer)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Unavailable("The issuer's metadata was not understood.") from error
    if stated != issuer:  # another issuer's document, whose keys would verify another issuer's tokens
        raise Unavailable(f"The metadata at {issuer} is of another issuer.")
    for url in (jwks_uri, control):
        if type(url) is not str or urlsplit(url).scheme not in {"https", urlsplit(issuer).scheme}:
            raise Unavailable("The issuer's metadata names an address that is not https.")
    return Metadata(jwks_uri=jwks_uri, control=control.rstrip("/"))
