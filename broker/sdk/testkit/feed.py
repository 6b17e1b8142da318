"""The fake broker's feed: what it announced, who listens, and every fault that a test may want."""

import asyncio
import json
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any

from broker.sdk.clock import Now
from broker.wire import Cursor, FeedKill, Match

_PATIENCE_S = 5.0
SESSION_S = 900


class FakeFeed:
    """Kills in order of position, for any number of listeners on any event loops. Controlled from any thread."""

    def __init__(self, *, now: Now, heartbeat_s: float | None) -> None:
        """`heartbeat_s` None: none after a connection's first but those of `heartbeat`."""
        self._now = now
        self._heartbeat_s = heartbeat_s
        self._changed = threading.Condition(threading.RLock())
        self._listeners: list[_Listener] = []
        self._stamps: dict[str, int] = {}
        self._sessions: dict[str, int] = {}  # token -> expiry, in ms
        self._kills: dict[str, FeedKill] = {}
        self._paused = False
        self.accepting = True
        """Whether new connections are accepted; otherwise they are answered with 503."""
        self.epoch = secrets.token_hex(4)
        self.position = 0
        self.floor = 0
        self.acknowledged: dict[str, Cursor] = {}
        """The newest acknowledgement of each instance."""
        self.acknowledgements = 0
        self.resumed: list[str | None] = []
        """The cursor that each connection ever made asked to resume from."""

    @property
    def connections(self) -> int:
        """How many were ever made."""
        return len(self.resumed)

    @property
    def listening(self) -> list[str]:
        """The instances that are connected."""
        with self._changed:
            return [listener.instance for listener in self._listeners]

    def next_position(self) -> int:
        """Take the next position of the ledger."""
        with self._changed:
            self.position += 1
            return self.position

    def announce(self, matches: Iterable[tuple[Match, str]], *, provisional: bool = False) -> FeedKill:
        """Put a kill in force and send it to everybody."""
        with self._changed:
            seq = 0 if provisional else self.next_position()
            id_ = f"prv_{secrets.token_hex(4)}" if provisional else f"kil_{self.epoch}_{seq}"
            kill = FeedKill(id=id_, seq=seq, matches=tuple(matches), provisional=provisional)
            self._kills[kill.id] = kill
            self._send("kill", kill.to_wire(), seq)
            return kill

    def withdraw(self, provisional: FeedKill, *, confirm: bool) -> FeedKill | None:
        """End a provisional kill: with its durable entry in its place, or without one."""
        with self._changed:
            kill = None
            if confirm:
                seq = self.next_position()
                kill = FeedKill(id=f"kil_{self.epoch}_{seq}", seq=seq, matches=provisional.matches)
                self._kills[kill.id] = kill
            del self._kills[provisional.id]
            body = {"id": provisional.id, "kill": None if kill is None else kill.to_wire()}
            self._send("withdrawn", body, kill.seq if kill else 0)
            return kill

    def heartbeat(self) -> None:
        """Send one heartbeat to everybody, paused or not."""
        with self._changed:
            for listener in self._listeners:
                listener.put(self._heartbeat(listener.instance))

    def pause_heartbeats(self) -> None:
        """Let everybody grow stale while the connections stay open."""
        with self._changed:
            self._paused = True

    def resume_heartbeats(self) -> None:
        """Send them again."""
        with self._changed:
            self._paused = False
            self.heartbeat()

    def drop_connections(self) -> None:
        """Cut every stream. What was sent before still arrives."""
        with self._changed:
            for listener in self._listeners:
                listener.put(None)
            self._listeners.clear()
            self._changed.notify_all()

    def expire_sessions(self) -> None:
        """No session token is good any more; acknowledging with one is answered with 401."""
        with self._changed:
            self._sessions.clear()

    def send_raw(self, text: str) -> None:
        """Send these bytes as they are, to see what a listener makes of them."""
        with self._changed:
            for listener in self._listeners:
                listener.put(text.encode())

    def restore(self) -> None:
        """A backup was restored: a new epoch, in which nothing has happened yet. Connections are cut."""
        with self._changed:
            self.epoch = secrets.token_hex(4)
            self.position = self.floor = 0
            self._kills.clear()
            self.drop_connections()

    def raise_floor(self, floor: int) -> None:
        """Every token below `floor` has expired: told to everybody by the next heartbeat."""
        with self._changed:
            self.floor = max(self.floor, floor)

    def until(self, condition: Callable[[], bool], timeout: float = _PATIENCE_S) -> None:
        """Wait until something happened. Raises TimeoutError after `timeout` seconds."""
        with self._changed:
            if not self._changed.wait_for(condition, timeout):
                raise TimeoutError("the fake broker waited in vain")

    def touch(self) -> None:
        """Something happened that somebody may wait for."""
        with self._changed:
            self._changed.notify_all()

    # --- What the broker's routes call ---

    def snapshot(self) -> dict[str, Any]:
        """As `GET /v1/revocations`."""
        with self._changed:
            kills = [kill.to_wire() for kill in self._kills.values()]
            return {
                "epoch": self.epoch,
                "position": self.position,
                "floor": self.floor,
                "time": self._now(),
                "kills": kills,
            }

    def open_session(self) -> dict[str, Any]:
        """A session that acknowledges, as `POST /v1/sessions` and a hello give it."""
        with self._changed:
            token = secrets.token_urlsafe(16)
            self._sessions[token] = self._now() + SESSION_S * 1000
            return {"session_token": token, "expires_in": SESSION_S}

    def acknowledge(self, session: str, body: Mapping[str, Any]) -> bool:
        """Take an acknowledgement; False when the session is not good, or the instance never connected."""
        with self._changed:
            if self._now() >= self._sessions.get(session, 0) or body["instance"] not in self._stamps:
                return False
            self._stamps[body["instance"]] = body["stamp"]
            self.acknowledged[body["instance"]] = Cursor.parse(body["cursor"])
            self.acknowledgements += 1
            self._changed.notify_all()
            return True

    async def stream(self, *, instance: str, stamp: int, cursor: str | None) -> AsyncIterator[bytes]:
        """As `GET /v1/revocations/stream`: the bytes of one connection, until it is dropped."""
        listener = self._join(instance, stamp, None if cursor is None else Cursor.parse(cursor))
        try:
            while True:
                try:
                    async with asyncio.timeout(self._heartbeat_s):
                        item = await listener.queue.get()
                except TimeoutError:
                    item = b"" if self._paused else self._heartbeat(instance)
                if item is None:
                    return
                yield item
        finally:
            with self._changed:
                if listener in self._listeners:
                    self._listeners.remove(listener)
                self._changed.notify_all()

    def _join(self, instance: str, stamp: int, cursor: Cursor | None) -> "_Listener":
        with self._changed:
            self._stamps[instance] = stamp
            listener = _Listener(instance)
            hello = {"epoch": self.epoch, "instance": instance, "heartbeat_ms": 1000, **self.open_session()}
            listener.put(_event("hello", hello))
            if cursor is None or cursor.epoch != self.epoch or cursor.position < self.floor:
                listener.put(_event("snapshot", self.snapshot()))
            else:
                for kill in sorted(self._kills.values(), key=lambda kill: kill.seq):
                    if kill.provisional or kill.seq > cursor.position:
                        listener.put(_event("kill", kill.to_wire(), f"{self.epoch}:{kill.seq}"))
            if not self._paused:
                listener.put(self._heartbeat(instance))
            self._listeners.append(listener)
            self.resumed.append(None if cursor is None else str(cursor))
            self._changed.notify_all()
            return listener

    def _send(self, event: str, body: Mapping[str, Any], seq: int) -> None:
        for listener in self._listeners:
            listener.put(_event(event, body, f"{self.epoch}:{seq}" if seq else None))

    def _heartbeat(self, instance: str) -> bytes:
        with self._changed:
            body = {
                "epoch": self.epoch,
                "position": self.position,
                "floor": self.floor,
                "time": self._now(),
                "stamp": self._stamps[instance],
            }
            return _event("heartbeat", body)


class _Listener:
    """One connection, on the event loop that it was made on."""

    def __init__(self, instance: str) -> None:
        self.instance = instance
        self.queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    def put(self, item: bytes | None) -> None:
        """Send it, from any thread. On a loop that is gone nobody listens."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.queue.put_nowait, item)


def _event(event: str, body: Mapping[str, Any], id_: str | None = None) -> bytes:
    lines = [] if id_ is None else [f"id: {id_}"]
    return "\n".join([*lines, f"event: {event}", f"data: {json.dumps(body)}", "", ""]).encode()
