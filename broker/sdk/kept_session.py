"""The session under which a feed connection acknowledges, renewed in good time, so that the stream outlives it.

A session lasts a quarter of an hour, a stream for as long as it can. The broker asks of an acknowledgement that it
comes from the verifier that connected, under whichever session; so a new one, for a fresh assertion, simply takes the
old one's place. Otherwise every stream would end with its session, those of a fleet that began together all at once.
"""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Self

import httpx2

from broker.sdk.clock import Elapsed
from broker.sdk.errors import SdkError
from broker.sdk.view import FeedBroken

RENEW_AFTER, RENEW_WITHIN = 0.6, 0.8
"""A session is renewed at a random moment between these shares of its life: those of a fleet not at once."""

FIRST_RETRY_S, LONGEST_RETRY_S = 1.0, 60.0

logger = logging.getLogger(__name__)
_random = secrets.SystemRandom()


@dataclass(frozen=True, slots=True)
class OpenedSession:
    """A session as the broker gave it. `expires_in` is in seconds from then."""

    token: str = field(repr=False)
    expires_in: int

    @classmethod
    def of(cls, body: Mapping[str, object]) -> Self:
        """From a hello, or from the answer of `/v1/sessions`. Raises FeedBroken for what is neither."""
        token, expires_in = body.get("session_token"), body.get("expires_in")
        if not isinstance(token, str) or type(expires_in) is not int or expires_in <= 0:
            raise FeedBroken("no session, or none with a life")
        return cls(token, expires_in)


class KeptSession:
    """A session that is good for as long as it is tended and the broker grants new ones.

    Enter it to use it. A renewal that fails is tried again, ever less often; the session may end meanwhile: that is for
    whoever uses `token` to find out.
    """

    def __init__(
        self, opened: OpenedSession, *, open_anew: Callable[[], Awaitable[OpenedSession]], elapsed: Elapsed
    ) -> None:
        """`open_anew` proves the identity again, for another session. It may raise whatever it likes."""
        self._open_anew = open_anew
        self._elapsed = elapsed
        self._renewing: asyncio.Task[None] | None = None
        self._take(opened)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)

    def tend(self) -> None:
        """Begin to renew it if that is due. To be called often; returns at once."""
        if self._elapsed() >= self._due and (self._renewing is None or self._renewing.done()):
            self._renewing = asyncio.create_task(self._renew())

    async def _renew(self) -> None:
        try:
            self._take(await self._open_anew())
        except Exception as error:  # whatever it is, the session at hand is still good: try again
            defect = not isinstance(error, httpx2.HTTPError | SdkError | FeedBroken)
            logger.warning("the feed's session was not renewed: %s", type(error).__name__, exc_info=defect)
            self._failures += 1
            longest = min(FIRST_RETRY_S * 2 ** min(self._failures, 10), LONGEST_RETRY_S)
            self._due = self._elapsed() + int(_random.uniform(0, longest) * 1e9)

    def _take(self, opened: OpenedSession) -> None:
        self.token = opened.token
        self._failures = 0
        self._due = self._elapsed() + int(opened.expires_in * _random.uniform(RENEW_AFTER, RENEW_WITHIN) * 1e9)
