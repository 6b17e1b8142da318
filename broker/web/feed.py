"""The revocation feed: a snapshot, a stream of server-sent events, and the verifiers' acknowledgements.

The feed lives in the control process, so that no kill queues behind tokens. It follows the ledger, not the act: whoever
commits a kill, in whichever process, the feed finds it in the store. Positions only grow; applying a kill twice changes
nothing; so there is no gap and no order to get wrong.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import orjson
import structlog

from broker.errors import Conflict, Malformed
from broker.ledger import Ledger, LedgerUnavailable, Reader, views
from broker.ledger.commands.admin import TouchInstances
from broker.ledger.commands.kills import Ack, Acknowledge
from broker.ledger.writer import Writer
from broker.wire import Cursor, FeedKill

log = structlog.get_logger(__name__)

HEARTBEAT_S = 1.0
"""How often each listener gets a heartbeat."""
TURNS = 10
"""A share of the listeners in each: a hundred heartbeats at once, and the reports that answer them, would keep a core
busy for a tenth of every second, and whatever is killed then would wait behind them.
"""
POLL_S = 0.020
"""How often the store is asked whether anyone has committed. While somebody does, each time costs a quarter of a
millisecond. Kills of this process do not wait for it.
"""
QUEUE = 1_000
"""Events that may wait for one slow listener before it is cut off; it comes back with its cursor."""
ACKS_AT_ONCE = 200
"""Acknowledgements that one ledger event takes: far below its greatest length, however long their names are."""
_PAUSE_S = 0.1
_TELL_OTHERS_S = 0.2
"""How long what an instance says here may wait for the broker that streams to it."""
_RECENTLY_MS = 60_000
_CONNECT_ANEW = "This instance is not connected to the feed: connect anew."
_AHEAD = "The cursor lies ahead of the ledger."
_LOOK_AGAIN_S = 0.02
"""What waits for acknowledgements looks no more often than this, however much is committed meanwhile."""


@dataclass(eq=False, slots=True)
class Listener:
    """One connected verifier instance."""

    instance: str
    verifier: str
    stamp: int | None
    push: "Callable[[bytes], bool] | None" = None  # writes to its connection past the stream, or says that it cannot
    owed: dict[int, int] = field(default_factory=dict)  # kills it has yet to acknowledge: position -> ledger time
    position: int = -1  # the last position it reported applied
    closed: bool = False  # nothing more is sent
    idle: bool = False  # its stream waits: what is pushed now comes after all that was queued
    heard: bool = True  # since the last touch of its last-contact column
    answered: bool = True  # since its last heartbeat
    turn: int = 0  # in which it gets heartbeats
    events: "asyncio.Queue[bytes | None]" = field(default_factory=lambda: asyncio.Queue(QUEUE))

    def send(self, event: bytes) -> None:
        """Write an event, or queue it behind others; a listener that does not keep up is cut off."""
        if self.idle and not self.closed and self.push is not None and self.push(event):
            return
        self.idle = False
        if self.events.full():
            self.close()
        elif not self.closed:
            self.events.put_nowait(event)

    async def queued(self) -> AsyncIterator[bytes]:
        """What is queued, until the end. While there is nothing, events go past this."""
        while True:
            self.idle = self.events.empty()
            if (event := await self.events.get()) is None:
                return
            yield event

    def close(self) -> None:
        """End the stream after what is queued, or at once when the queue is full. Then all that waits is dropped: what
        the listener has had until now is a beginning without a gap, and its cursor is true.
        """
        self.closed = True
        if self.events.full():
            while not self.events.empty():
                self.events.get_nowait()
        self.events.put_nowait(None)


class Feed:
    """Follows the ledger and tells every listener."""

    def __init__(
        self, *, ledger: Ledger, writer: Writer, now: Callable[[], int], tell: Callable[[int], None] | None = None
    ) -> None:
        """`tell` is told of the position whenever kills were found, for feeds that look elsewhere."""
        self._ledger = ledger
        self._writer = writer
        self._now = now
        self._tell = tell
        self._listeners: dict[str, Listener] = {}
        self._turns = itertools.cycle(range(TURNS))  # of those who come
        self._turn = 0  # whose it is
        self._provisional: dict[str, FeedKill] = {}
        self._position = -1
        self._version = -1
        self._acks: list[Ack] = []
        self._elsewhere: dict[str, tuple[int, int]] = {}  # instances of other brokers: what they said here last
        self._acks_waiting = asyncio.Event()
        self._changed = asyncio.Event()  # something was committed, by whomever
        self._poke = asyncio.Event()  # this process committed something
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin to follow."""
        with self._ledger.read() as r:
            self._position = r.head().size - 1
        steps = (self._follow, self._beat, self._touch, self._touch_elsewhere, self._write_acks)
        self._tasks = [asyncio.create_task(_forever(step), name=step.__name__) for step in steps]

    async def stop(self) -> None:
        """End every stream, so that the server can drain."""
        for listener in list(self._listeners.values()):
            listener.close()
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task

    @property
    def position(self) -> int:
        """The last position that was looked at."""
        return self._position

    @property
    def listening(self) -> int:
        """How many instances follow the stream here."""
        return len(self._listeners)

    def poke(self) -> None:
        """This process committed, or another may have: look now, not at the next poll."""
        self._poke.set()

    # --- What listeners get -------------------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, Any]:
        """All kills that can still matter, as of one position."""
        with self._ledger.read() as r:
            return self._snapshot(r)

    def connect(
        self,
        *,
        instance: str,
        verifier: str,
        stamp: int | None,
        cursor: Cursor | None,
        hello: dict[str, Any],
        push: Callable[[bytes], bool] | None = None,
    ) -> Listener:
        """Begin a stream: hello, what the listener has missed, a heartbeat; from here on every kill. No await between
        reading the store and joining the listeners, so nothing falls between.
        """
        earlier = self._listeners.pop(instance, None)
        if earlier is not None:
            earlier.close()
        listener = Listener(instance, verifier, stamp, push, turn=next(self._turns))
        with self._ledger.read() as r:
            head = r.head()
            listener.send(
                _event(
                    "hello",
                    {**hello, "epoch": head.epoch, "instance": instance, "heartbeat_ms": int(HEARTBEAT_S * 1000)},
                )
            )
            if cursor is not None and cursor.epoch == head.epoch and head.floor <= cursor.position < head.size:
                for kill in views.feed(r, after=cursor.position):
                    listener.send(_kill_event(head.epoch, kill))
            else:
                listener.send(_event("snapshot", self._snapshot(r)))
            listener.owed.update(views.unacknowledged(r, instance, head.size))
            for kill in self._provisional.values():
                listener.send(_kill_event(head.epoch, kill))
            self._listeners[instance] = listener
            listener.send(_heartbeat(r, stamp))
        return listener

    async def stream(self, listener: Listener) -> AsyncIterator[bytes]:
        """The listener's events until it leaves, falls behind, or the broker stops."""
        try:
            async for event in listener.queued():
                yield event
        finally:
            if self._listeners.get(listener.instance) is listener:
                del self._listeners[listener.instance]

    def acknowledge(self, *, verifier: str, instance: str, cursor: Cursor, stamp: int) -> None:
        """The instance reports everything up to `cursor` applied, wherever its stream is. Raises Conflict when it never
        connected, and Malformed for a position that is not there yet.
        """
        listener = self._listeners.get(instance)
        if listener is None:
            self._acknowledge_elsewhere(verifier, instance, cursor, stamp)
            return
        if listener.verifier != verifier or cursor.epoch != self._ledger.head.epoch:
            raise Conflict(_CONNECT_ANEW)
        if cursor.position >= self._ledger.head.size:
            raise Malformed(_AHEAD)
        listener.heard = listener.answered = True
        listener.stamp = max(stamp, listener.stamp or 0)
        listener.position = max(listener.position, cursor.position)
        done = {position: at for position, at in listener.owed.items() if position <= cursor.position}
        for position in done:
            del listener.owed[position]
        self._take_acks(done, instance, verifier)

    def _acknowledge_elsewhere(self, verifier: str, instance: str, cursor: Cursor, stamp: int) -> None:
        """The same for an instance that another broker streams to: what it owes, and to whom, is in the store."""
        with self._ledger.read() as r:
            head = r.head()
            if views.verifier_of(r, instance) != verifier or cursor.epoch != head.epoch:
                raise Conflict(_CONNECT_ANEW)
            if cursor.position >= head.size:
                raise Malformed(_AHEAD)
            done = dict(views.unacknowledged(r, instance, cursor.position))
        position, earlier = self._elsewhere.get(instance, (-1, 0))
        self._elsewhere[instance] = max(position, cursor.position), max(earlier, stamp)
        self._take_acks(done, instance, verifier)

    def _take_acks(self, done: Mapping[int, int], instance: str, verifier: str) -> None:
        """Acknowledged now: kills by their position, with the ledger time of each."""
        now = self._now()
        self._acks += [Ack(position, instance, verifier, max(0, now - at)) for position, at in done.items()]
        if self._acks:
            self._acks_waiting.set()

    # --- Provisional kills --------------------------------------------------------------------------------------------

    def put_provisional(self, kill: FeedKill) -> None:
        """Tell every listener of a kill that is not in the ledger yet."""
        self._provisional[kill.id] = kill
        self._broadcast(_kill_event(self._ledger.head.epoch, kill))

    def withdraw(self, provisional_id: str, kill: FeedKill | None) -> None:
        """The ledger took the kill, or refused it: the durable entry replaces the provisional one.

        What was committed before goes first: a listener takes the last position that it hears of for its cursor.
        """
        self._provisional.pop(provisional_id, None)
        try:
            with self._ledger.read() as r:
                self._catch_up(r)
        except LedgerUnavailable:  # with the provisional kill in force they come back for a snapshot
            for listener in self._listeners.values():
                listener.close()
            return
        self._broadcast(_event("withdrawn", {"id": provisional_id, "kill": kill.to_wire() if kill else None}))

    async def until(self, done: Callable[[], bool], *, timeout_ms: int) -> None:
        """Wait until `done`, looked at again whenever something was committed, or until the time is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_ms / 1000):
                while True:
                    changed = self._changed
                    if done():
                        return
                    await changed.wait()
                    await asyncio.sleep(_LOOK_AGAIN_S)

    # --- Following the ledger -----------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        """Whenever anyone has committed: what listeners have missed."""
        version = self._ledger.data_version()
        if version != self._version or self._poke.is_set():
            self._poke.clear()
            with self._ledger.read() as r:
                self._catch_up(r)
            self._version = version  # not before: what could not be read must be looked at again
        with suppress(TimeoutError):
            async with asyncio.timeout(POLL_S):
                await self._poke.wait()

    def _catch_up(self, r: Reader) -> None:
        """Tell listeners of every kill since the last look."""
        head = r.head()
        if head.size - 1 <= self._position:
            return
        kills = views.feed(r, after=self._position)
        times = views.kill_times(r, after=self._position) if kills else {}
        self._position = head.size - 1
        self._say_changed()  # acknowledgements may be among what was committed, here or by another broker
        for kill in kills:
            if kill.seq in times:
                for listener in self._listeners.values():
                    listener.owed[kill.seq] = times[kill.seq]
            self._broadcast(_kill_event(head.epoch, kill))
        if kills and self._tell is not None:
            self._tell(self._position)

    def _broadcast(self, event: bytes) -> None:
        for listener in list(self._listeners.values()):
            self._send(listener, event)

    def _send(self, listener: Listener, event: bytes) -> None:
        """Forgets a listener that was cut off here: if its client left before the stream began, nobody else would."""
        listener.send(event)
        if listener.closed and self._listeners.get(listener.instance) is listener:
            del self._listeners[listener.instance]

    async def _beat(self) -> None:
        """To those whose turn it is: a heartbeat from a fresh read, or none at all. A turn that fails is repeated."""
        await asyncio.sleep(HEARTBEAT_S / TURNS)
        due = [listener for listener in self._listeners.values() if listener.turn == self._turn]
        if due:
            with self._ledger.read() as r:
                self._catch_up(r)  # a heartbeat vouches for every kill before it
                self._hear_of_elsewhere(r, due)
                beats = [(listener, _heartbeat(r, listener.stamp)) for listener in due]
            for listener, event in beats:
                listener.answered = False
                self._send(listener, event)
        self._turn = (self._turn + 1) % TURNS

    def _hear_of_elsewhere(self, r: Reader, listeners: Iterable[Listener]) -> None:
        """What listeners of ours told other brokers, so that the heartbeat echoes it."""
        silent = [listener for listener in listeners if not listener.answered]
        if silent:
            told = views.stamps(r, since=r.head().time - _RECENTLY_MS)
            for listener in silent:
                listener.stamp = max(told.get(listener.instance, 0), listener.stamp or 0) or None

    async def _touch(self) -> None:
        """Every second: who was heard of, coalesced. Apart from the heartbeats, which no write may delay."""
        await asyncio.sleep(HEARTBEAT_S)
        heard = [listener for listener in self._listeners.values() if listener.heard]
        for listener in heard:
            listener.heard = False
        if heard:
            await self._writer.submit(
                TouchInstances([(each.instance, each.position, each.stamp or 0) for each in heard])
            )

    async def _touch_elsewhere(self) -> None:
        """The same for instances that are connected to another broker, which waits for it."""
        await asyncio.sleep(_TELL_OTHERS_S)
        told, self._elsewhere = self._elsewhere, {}
        if told:
            await self._writer.submit(TouchInstances([(instance, *last) for instance, last in told.items()]))

    async def _write_acks(self) -> None:
        """Record acknowledgements, as many together as one event holds. Those that cannot be written now are kept."""
        await self._acks_waiting.wait()
        acks, self._acks = self._acks[:ACKS_AT_ONCE], self._acks[ACKS_AT_ONCE:]
        try:
            await self._writer.submit_priority(Acknowledge(acks))
        except LedgerUnavailable:
            self._acks = [*acks, *self._acks]
            raise
        if not self._acks:
            self._acks_waiting.clear()
        self._say_changed()

    def _say_changed(self) -> None:
        """Wake all who wait for a change; who begins to wait now waits for the next."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _snapshot(self, r: Reader) -> dict[str, Any]:
        head = r.head()
        kills = [*views.feed(r, after=-1), *self._provisional.values()]
        return {
            **_place(r),
            "kills": [kill.to_wire() for kill in kills],
            "cursor": str(Cursor(head.epoch, head.size - 1)),
        }


async def _forever(step: Callable[[], Awaitable[None]]) -> None:
    """One step after another. One that fails is tried again: nothing but `stop` ends a part of the feed. Logged is the
    first failure of a kind, and that it works again; a store may be away for hours.
    """
    failing: type[Exception] | None = None
    while True:
        try:
            await step()
        except Exception as error:  # noqa: BLE001  (whatever it is, verifiers depend on the next step)
            if failing is not type(error):
                failing = type(error)
                log.error("feed_step_failed", step=step.__name__, error=repr(error))
            await asyncio.sleep(_PAUSE_S)
        else:
            if failing is not None:
                failing = None
                log.warning("feed_step_works_again", step=step.__name__)


def _place(r: Reader) -> dict[str, Any]:
    head = r.head()
    return {"epoch": head.epoch, "position": head.size - 1, "floor": head.floor, "time": head.time}


def _heartbeat(r: Reader, stamp: int | None) -> bytes:
    """`stamp` echoes the instance's own last one, from which it counts the age of what it knows."""
    return _event("heartbeat", {**_place(r), "stamp": stamp})


def _kill_event(epoch: str, kill: FeedKill) -> bytes:
    return _event("kill", kill.to_wire(), None if kill.provisional else Cursor(epoch, kill.seq))


def _event(name: str, data: dict[str, Any], cursor: Cursor | None = None) -> bytes:
    head = b"event: %b\n" % name.encode()
    if cursor is not None:
        head += b"id: %b\n" % str(cursor).encode()
    return head + b"data: " + orjson.dumps(data) + b"\n\n"
