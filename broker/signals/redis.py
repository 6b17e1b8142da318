"""Signals by Redis: one channel for wake-ups, and counters that expire by themselves.

Two tasks of the event loop, one that listens and one that sends, each with its own connection. Whatever goes wrong with
one of them (refused, silent, flooded, answered with garbage) ends that connection; another is tried after a pause that
grows, with jitter, so that brokers do not return all at once. Callers never wait for either.
"""

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from broker.signals import INTERVAL_S, loop_time

log = structlog.get_logger(__name__)

REPLY_S: Final = 1.0
"""A command that is not answered within this has failed, and its connection with it."""
PING_S: Final = 2.0
"""After so long a silence on the channel Redis is asked whether it is there; after another, it is not."""
PAUSE_S: Final = (0.1, 5.0)
"""The shortest and the longest pause before a connection is tried again."""
_GAP_S: Final = 0.005  # between two wake-ups here, however many come in
_FLOOD: Final = 2_000  # messages within a second that no brokers send: whoever sends them is not read any further
_CANCEL_AGAIN_S: Final = 0.2
_NAMES: Final = 1_000  # that wait to be sent; more are not shared
_KNOWN: Final = 10_000  # counts that are remembered
_MOST: Final = 1 << 53


@dataclass(frozen=True, slots=True)
class RedisPlace:
    """Where Redis is. `url` is redis:// or rediss://; the password may be in it or apart."""

    url: str
    password: str | None = None
    ca_file: Path | None = None


class RedisSignals:
    """`broker.signals.Signals` by Redis. `ledger` names the ledger, whose brokers alone hear each other."""

    def __init__(self, place: RedisPlace, *, ledger: str) -> None:
        self._place = place
        self._channel = f"taskpass:{ledger}:moved"
        self._prefix = f"taskpass:{ledger}:"
        self._moved: Callable[[], None] = _nobody
        self._tasks: list[asyncio.Task[None]] = []
        self._work = asyncio.Event()
        self._position: int | None = None  # to be told
        self._heard: bytes | None = None  # told by another: repeating it would wake everybody once more
        self._counts: Counter[str] = Counter()  # to be sent
        self._known: dict[str, int] = {}  # what Redis last answered
        self._wake: asyncio.TimerHandle | None = None
        self._woken = 0.0
        self._failing: set[str] = set()  # parts that failed and have not worked since
        self.connected = False
        """Whether the channel is being listened to."""
        self.lost = False
        """See `Signals.lost`. Who only sends learns of it when there is something to send."""

    async def start(self, moved: Callable[[], None] | None) -> None:
        """See `Signals.start`. Does not wait for a connection."""
        parts = [self._send]
        if moved is not None:
            self._moved = moved
            parts.append(self._listen)
        self._tasks = [asyncio.create_task(self._again(part), name=f"signals{part.__name__}") for part in parts]

    def tell(self, position: int) -> None:
        """See `Signals.tell`."""
        if str(position).encode() != self._heard:
            self._position = position
            self._work.set()

    def count(self, name: str) -> int:
        """See `Signals.count`."""
        if name in self._counts or len(self._counts) < _NAMES:
            self._counts[name] += 1
            self._work.set()
        return self._known.get(name, 0)

    async def close(self) -> None:
        """See `Signals.close`."""
        if self._wake is not None:
            self._wake.cancel()
        while self._tasks:  # Python 3.11's wait_for, which the client uses, now and then swallows a cancellation
            for task in self._tasks:
                task.cancel()
            _, pending = await asyncio.wait(self._tasks, timeout=_CANCEL_AGAIN_S)
            self._tasks = list(pending)

    # --- Listening ----------------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        """Hear wake-ups until something is wrong with the connection."""
        async with self._connected() as client, client.pubsub() as channel:
            try:
                async with asyncio.timeout(REPLY_S):
                    await channel.subscribe(self._channel)
                await self._hear(channel)
            finally:
                self.connected = False

    async def _hear(self, channel: Any) -> None:  # noqa: ANN401  (its type has no public name)
        asked, second, messages = False, 0, 0
        while True:
            async with asyncio.timeout(PING_S + REPLY_S):  # however slowly a message comes in
                message = await channel.get_message(timeout=PING_S)
                if message is None and not asked:
                    await channel.ping()
            if message is None and asked:
                raise TimeoutError("Redis is silent")
            asked = message is None
            messages = messages + 1 if int(loop_time()) == second else 1
            second = int(loop_time())
            if messages > _FLOOD:
                raise OverflowError("more messages than brokers can have sent")
            if message is not None and message["type"] == "subscribe":
                self.connected = True
                self._works(self._listen)
                self._wake_soon()  # what was told before was not heard
            elif message is not None and message["type"] == "message":
                self._heard = message["data"] if isinstance(message["data"], bytes) else None
                self._wake_soon()

    def _wake_soon(self) -> None:
        """Wake the one who listens here, once for all that comes in within a moment."""
        if self._wake is None:
            at = max(loop_time(), self._woken + _GAP_S)
            self._wake = asyncio.get_running_loop().call_at(at, self._wake_now)

    def _wake_now(self) -> None:
        self._wake, self._woken = None, loop_time()
        self._moved()

    # --- Sending ------------------------------------------------------------------------------------------------------

    async def _send(self) -> None:
        """Send what has come together, until something is wrong with the connection. What was on its way is lost."""
        async with self._connected() as client:
            async with asyncio.timeout(REPLY_S):
                await client.ping()
            self._works(self._send)
            while True:
                await self._work.wait()
                self._work.clear()
                position, self._position = self._position, None
                counts, self._counts = self._counts, Counter()
                pipeline = client.pipeline(transaction=False)
                if position is not None:
                    pipeline.publish(self._channel, str(position))
                for name, number in counts.items():
                    pipeline.set(self._prefix + name, 0, ex=int(INTERVAL_S), nx=True)
                    pipeline.incrby(self._prefix + name, number)
                async with asyncio.timeout(REPLY_S):
                    answers = await pipeline.execute(raise_on_error=False)
                self._learn(counts, answers[0 if position is None else 1 :])

    def _learn(self, counts: Counter[str], answers: list[Any]) -> None:
        """Remember what everybody has counted. An answer that is no such number (no memory, read-only) says nothing."""
        if len(self._known) > _KNOWN:
            self._known.clear()
        for name, answer in zip(counts, answers[1::2], strict=True):
            if type(answer) is int and 0 < answer < _MOST:
                self._known[name] = answer
            else:
                self._known.pop(name, None)

    async def _again(self, part: Callable[[], Awaitable[None]]) -> None:
        """Run a part for ever. It returns by failing; the first failure in a row is logged."""
        shortest, longest = PAUSE_S
        pause, told = shortest, False
        while True:
            began = loop_time()
            try:
                await part()
            except Exception as error:  # noqa: BLE001  (whatever Redis did, the broker goes on without it)
                self._failing.add(part.__name__)
                self.lost = True
                if not told:
                    log.warning("signals_lost", part=part.__name__, error=type(error).__name__)
            held = loop_time() - began > longest
            pause, told = (shortest, False) if held else (min(pause * 2, longest), True)
            await asyncio.sleep(pause * (0.5 + secrets.randbelow(1000) / 2000))

    def _works(self, part: Callable[[], Awaitable[None]]) -> None:
        """A part has had an answer."""
        if part.__name__ in self._failing:
            self._failing.discard(part.__name__)
            self.lost = bool(self._failing)
            log.info("signals_back", part=part.__name__)

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Redis]:
        """A client, closed at the end whoever is cancelled meanwhile: half closed, it would keep its connection."""
        client = self._client()
        try:
            yield client
        finally:
            closing, cancelled = asyncio.ensure_future(client.aclose()), False
            while not closing.done():
                try:
                    await asyncio.wait([closing])
                except asyncio.CancelledError:
                    cancelled = True
            problem = closing.exception()
            if cancelled:
                raise asyncio.CancelledError
            if problem is not None:
                raise problem

    def _client(self) -> "Redis":
        options: dict[str, Any] = {"ssl_ca_certs": str(self._place.ca_file)} if self._place.ca_file else {}
        if self._place.password is not None:
            options["password"] = self._place.password
        return Redis.from_url(
            self._place.url,
            socket_timeout=REPLY_S,
            socket_connect_timeout=REPLY_S,
            retry=Retry(NoBackoff(), 0),  # every failure is told to `_again`
            protocol=2,
            **options,
        )


def _nobody() -> None:
    """Nobody listens yet."""
