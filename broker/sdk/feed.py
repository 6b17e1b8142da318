"""The follower of the revocation feed: connects, applies, acknowledges, and starts over when anything is wrong.

One connection at a time. What is heard goes through `view.RevocationView`, which decides what it means; an
acknowledgement leaves only after that, from a task of its own, so that a slow answer delays no kill. There is no
"give up": while nothing is heard the view grows old, and a strict verifier refuses by itself.
"""

import asyncio
import contextlib
import json
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

import httpx2

from broker.sdk.clock import Elapsed
from broker.sdk.errors import SdkError
from broker.sdk.identity import Identity
from broker.sdk.kept_session import KeptSession, OpenedSession
from broker.sdk.protocol import Response, answer_of, refusal
from broker.sdk.published import Published
from broker.sdk.view import FeedBroken, RevocationView, Then
from broker.wire import Cursor

MAX_EVENT = 8 * 1024 * 1024
"""Bytes of one event. A snapshot of a hundred thousand kills fits."""

MAX_ANSWER = 16_384
SILENCE_S = 4.0
"""A connection that says nothing for this long is dead: heartbeats come every second."""

ACK_TIMEOUT_S = 2.0
REPORT_AFTER_S, REPORT_WITHIN_S = 0.050, 0.150
"""A report leaves at a random moment between these. Kills that come together share one; and when a kill reaches many
processes at once, all of them refuse before the first of them reports.
"""

FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 5.0

_CONNECT_ANEW = frozenset({401, 403, 404, 409})
"""Answers to an acknowledgement: the session could not be renewed, or the broker does not know the connection."""

logger = logging.getLogger(__name__)
_random = secrets.SystemRandom()


@dataclass(frozen=True, slots=True)
class FeedStatus:
    """For a service's metrics and readiness. `position` is what is applied; `age_s` is None before any heartbeat."""

    connected: bool
    epoch: str | None
    position: int
    kills: int
    age_s: float | None
    reconnects: int
    acknowledged: int
    last_error: str | None


@dataclass(frozen=True, slots=True)
class Registration:
    """What a verifier instance says about itself when it connects."""

    instance: str
    audiences: tuple[str, ...]
    mode: str
    bound_ms: int

    def query(self, stamp: int, cursor: Cursor | None) -> dict[str, str | int | Sequence[str]]:
        """The stream's query parameters."""
        query: dict[str, str | int | Sequence[str]] = {
            "instance": self.instance,
            "audience": self.audiences,
            "mode": self.mode,
            "bound_ms": self.bound_ms,
            "leeway_ms": 0,
            "stamp": stamp,
        }
        return query if cursor is None else query | {"cursor": str(cursor)}


class Follower:
    """Keeps one `RevocationView` current until it is cancelled."""

    def __init__(
        self,
        *,
        issuer: str,
        identity: Identity,
        registration: Registration,
        view: RevocationView,
        published: Published,
        http: httpx2.AsyncClient,
        forget_tokens: Callable[[], None],
        elapsed: Elapsed,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`forget_tokens` is called when tokens verified so far may no longer count as verified."""
        self._issuer = issuer
        self._identity = identity
        self._registration = registration
        self._view = view
        self._published = published
        self._http = http
        self._forget_tokens = forget_tokens
        self._elapsed = elapsed
        self._sleep = sleep
        self._connected = False
        self._failures = 0  # since the broker last accepted an acknowledgement
        self._reconnects = 0
        self._acknowledged = 0
        self._last_error: str | None = None
        self.heard = asyncio.Event()
        """Set by the first heartbeat."""

    @property
    def status(self) -> FeedStatus:
        """How the feed is doing, at this moment."""
        age = self._view.age_ns()
        return FeedStatus(
            connected=self._connected,
            epoch=self._view.epoch,
            position=self._view.position,
            kills=len(self._view.kills),
            age_s=None if age is None else age / 1e9,
            reconnects=self._reconnects,
            acknowledged=self._acknowledged,
            last_error=self._last_error,
        )

    async def run(self) -> None:
        """Follow for ever."""
        while True:
            try:
                await self._follow()
                self._last_error = "The broker closed the stream."
            except (httpx2.HTTPError, SdkError, FeedBroken) as error:
                self._last_error = f"{type(error).__name__}: {error}"
                self._published.forget_metadata()
            except Exception as error:  # a defect here must not end the following: log it, and connect again
                self._last_error = type(error).__name__
                logger.exception("the feed's follower failed")
            self._connected = False
            self._failures += 1
            self._reconnects += 1
            logger.warning("feed lost: %s", self._last_error)
            # A random share of the whole delay, so that a broker that restarts is not met by everybody at once.
            longest = min(FIRST_DELAY_S * 2 ** min(self._failures, 10), LONGEST_DELAY_S)
            await self._sleep(_random.uniform(0, longest))

    async def _follow(self) -> None:
        control = (await self._published.metadata()).control
        assertion = await asyncio.to_thread(self._identity.assertion, self._issuer)
        cursor = self._view.cursor()
        self._view.connecting(cursor)
        async with self._http.stream(
            "GET",
            f"{control}/v1/revocations/stream",
            params=self._registration.query(self._view.stamp(), cursor),
            headers={"Authorization": f"Bearer {assertion}", "Accept-Encoding": "identity"},
            timeout=httpx2.Timeout(ACK_TIMEOUT_S, read=SILENCE_S),
        ) as stream:
            if stream.status_code != 200:
                raise await _refused(stream)
            await self._listen(stream, control)

    async def _listen(self, stream: httpx2.Response, control: str) -> None:
        due = asyncio.Event()
        acknowledging: asyncio.Task[None] | None = None
        try:
            async for event in httpx2.EventSource(stream, max_event_size=MAX_EVENT):
                body = _object(event.data)
                self._obey(self._view.apply(event.event, body), due)
                if event.event == "hello":  # the view takes one per connection
                    self._connected = True
                    acknowledging = asyncio.create_task(self._acknowledge(control, OpenedSession.of(body), due))
                elif event.event == "heartbeat":
                    self.heard.set()
                if acknowledging is not None and acknowledging.done():
                    raise FeedBroken("acknowledgements are no longer accepted")
        finally:
            if acknowledging is not None:
                acknowledging.cancel()
                await asyncio.gather(acknowledging, return_exceptions=True)

    def _obey(self, then: Then, due: asyncio.Event) -> None:
        if Then.ACKNOWLEDGE in then:
            due.set()
        if Then.FORGET_TOKENS in then:
            self._published.distrust()
            self._forget_tokens()
        if Then.REFETCH_KEYS in then:
            self._published.want()

    async def _acknowledge(self, control: str, opened: OpenedSession, due: asyncio.Event) -> None:
        """Report what is in force whenever that is due; returns when this connection no longer counts.

        Reports are cumulative, so kills that arrive while one is under way share the next.
        """
        open_anew = partial(self._open_session, control)
        async with KeptSession(opened, open_anew=open_anew, elapsed=self._elapsed) as session:
            while True:
                await due.wait()
                await asyncio.sleep(_random.uniform(REPORT_AFTER_S, REPORT_WITHIN_S))
                due.clear()
                session.tend()
                cursor = self._view.applied()
                if cursor is None:
                    continue
                body = {"instance": self._registration.instance, "cursor": str(cursor), "stamp": self._view.stamp()}
                headers = {"Authorization": f"Bearer {session.token}"}
                url = f"{control}/v1/revocations/ack"
                try:
                    answer = await self._http.post(url, json=body, headers=headers, timeout=ACK_TIMEOUT_S)
                except httpx2.HTTPError as error:  # the next heartbeat is due in a second and says the same
                    logger.warning("acknowledgement failed: %s", type(error).__name__)
                    continue
                if answer.status_code in _CONNECT_ANEW:
                    return
                if answer.is_success:
                    self._failures = 0
                    self._acknowledged = max(self._acknowledged, cursor.position)

    async def _open_session(self, control: str) -> OpenedSession:
        """Another session for this verifier. Raises SdkError, httpx2.HTTPError or FeedBroken."""
        assertion = await asyncio.to_thread(self._identity.assertion, self._issuer)
        headers = {"Authorization": f"Bearer {assertion}"}
        url = f"{control}/v1/sessions"
        async with self._http.stream("POST", url, json={}, headers=headers, timeout=ACK_TIMEOUT_S) as stream:
            return OpenedSession.of(answer_of(await _response(stream)))


async def _response(stream: httpx2.Response) -> Response:
    """What was answered, cut off where it is longer than any such answer."""
    body = bytearray()
    async for chunk in stream.aiter_bytes():
        body += chunk
        if len(body) > MAX_ANSWER:
            break
    return Response(stream.status_code, {name.lower(): value for name, value in stream.headers.items()}, bytes(body))


async def _refused(stream: httpx2.Response) -> SdkError:
    response = await _response(stream)
    return refusal(response.status, _object_or_nothing(response.body), response.headers)


def _object_or_nothing(content: bytes) -> dict[str, object]:
    with contextlib.suppress(FeedBroken):
        return _object(content)
    return {}


def _object(text: str | bytes) -> dict[str, object]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FeedBroken("an event that is not JSON") from error
    if type(value) is not dict:
        raise FeedBroken("an event that is not an object")
    return value
