"""What one verifier process knows about revocation, and how old that knowledge is. Pure: no I/O, both clocks passed in.

One connection at a time tells it events; any thread may ask it. Events of the feed are applied in the order

    hello, [snapshot], then kill | withdrawn | heartbeat in any number,

and anything out of that order, malformed or impossible is a broken feed: the connection is dropped, age grows, and a
strict verifier refuses by itself. Three rules carry the safety:

- A cursor, sent to resume or to acknowledge, covers only what was applied *here*; what a heartbeat says about the
  ledger never moves it. So a lost event is sent again rather than skipped or vouched for.
- A map is replaced, never rebuilt in place: a thread that asks meanwhile sees the old one or the new one, not a gap.
- Age counts from the stamp that a heartbeat echoes, that is from when this process *asked*, not from when the answer
  arrived. A heartbeat that sat in a buffer for a minute is a minute old.
"""

from collections.abc import Mapping
from enum import Flag, auto
from typing import Any

from broker.sdk.clock import Elapsed, Now
from broker.wire import Cursor, FeedKill, KillMap, Match

MAX_POSITION = 1 << 53
_EVENTS = frozenset({"hello", "snapshot", "kill", "withdrawn", "heartbeat"})


class FeedBroken(Exception):
    """The other side does not speak the feed's protocol. The message quotes nothing that it sent."""


class Then(Flag):
    """What the follower owes after an event."""

    NOTHING = 0
    ACKNOWLEDGE = auto()
    REFETCH_KEYS = auto()
    FORGET_TOKENS = auto()


class RevocationView:
    """The kills that are in force here, and the freshness of that knowledge."""

    def __init__(self, *, now: Now, elapsed: Elapsed) -> None:
        self._now = now
        self._elapsed = elapsed
        self._durable: dict[str, FeedKill] = {}
        self._provisional: dict[str, FeedKill] = {}
        self._ledger_time = (0, 0)  # (ledger ms, elapsed ns when it was heard)
        self._last_stamp = 0
        self._heard: int | None = None  # the newest stamp of ours that came back
        self._resumed_from: str | None = None
        self._expects_snapshot = True
        self._greeted = False
        self._complete = False  # holds every kill up to `position`
        self.kills = KillMap()
        self.generation = 0
        """Changes whenever a token that was alive may be dead now; equal means that no kill came between."""
        self.epoch: str | None = None
        self.position = 0
        """Every kill of this epoch with at most this position is in `kills`, once `cursor()` is not None."""
        self.floor = 0
        """Every token with a `seq` below this has expired by the ledger's clock."""

    # --- For whoever checks tokens ---

    def age_ns(self) -> int | None:
        """Nanoseconds since this process asked the question whose answer it last heard; None before any answer."""
        heard = self._heard
        return None if heard is None else self._elapsed() - heard

    def now_ms(self) -> int:
        """Wall time, but never earlier than the ledger's: a clock that was set back revives nothing."""
        ledger_ms, heard_at = self._ledger_time
        if not ledger_ms:
            return self._now()
        return max(self._now(), ledger_ms + (self._elapsed() - heard_at) // 1_000_000)

    # --- For the follower ---

    def stamp(self) -> int:
        """The moment of asking, to be sent along and echoed by the next heartbeat."""
        self._last_stamp = max(self._last_stamp, self._elapsed())
        return self._last_stamp

    def cursor(self) -> Cursor | None:
        """What has been applied, to resume from; None when only a snapshot will do.

        A provisional kill may have been withdrawn while nobody listened, and has no position to ask from.
        """
        if not self._complete or self.epoch is None or self._provisional:
            return None
        return Cursor(self.epoch, self.position)

    def applied(self) -> Cursor | None:
        """What to acknowledge: all that is in force here."""
        return Cursor(self.epoch, self.position) if self._complete and self.epoch is not None else None

    def connecting(self, cursor: Cursor | None) -> None:
        """A new connection was asked to resume from `cursor`: nothing it says counts before its hello."""
        self._greeted = False
        self._resumed_from = None if cursor is None else cursor.epoch

    def apply(self, event: str, body: Mapping[str, Any]) -> Then:
        """Put one event in force and say what that asks for. Unknown events are ignored. Raises FeedBroken."""
        if event not in _EVENTS:
            return Then.NOTHING
        if (event == "hello") == self._greeted:
            raise FeedBroken("a second hello" if self._greeted else f"{event} before hello")
        if event not in {"hello", "snapshot"} and self._expects_snapshot:
            raise FeedBroken(f"{event} before the snapshot")
        try:
            if event == "hello":
                return self._hello(_text(body["epoch"]))
            if event == "snapshot":
                return self._snapshot(body)
            if event == "kill":
                return self._kill(FeedKill.from_wire(body))
            if event == "withdrawn":
                return self._withdrawn(_text(body["id"]), body["kill"])
            return self._heartbeat(body)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FeedBroken(f"malformed {event}: {type(error).__name__}") from error

    def _hello(self, epoch: str) -> Then:
        self._greeted = True
        self._expects_snapshot = epoch != self._resumed_from
        if epoch == self.epoch:
            return Then.NOTHING
        first, self.epoch = self.epoch is None, epoch
        self._complete, self._heard = False, None
        self.position = self.floor = 0
        self._ledger_time = (0, 0)
        self._durable, self._provisional = {}, {}
        self._replace_map()
        return Then.NOTHING if first else Then.REFETCH_KEYS | Then.FORGET_TOKENS

    def _snapshot(self, body: Mapping[str, Any]) -> Then:
        if _text(body["epoch"]) != self.epoch:
            raise FeedBroken("a snapshot of another epoch than its hello")
        kills = [FeedKill.from_wire(kill) for kill in body["kills"]]
        position, floor, time = _position(body["position"]), _position(body["floor"]), _position(body["time"])
        before = len(self._keys_killed())
        # Within an epoch no kill disappears: one that a lagging sender leaves out stays in force.
        self._durable |= {kill.id: kill for kill in kills if not kill.provisional}
        self._provisional = {kill.id: kill for kill in kills if kill.provisional}
        self._replace_map()
        self._ledger(floor, time)
        self.position = max(self.position, position)
        self._complete, self._expects_snapshot = True, False
        return Then.ACKNOWLEDGE | (Then.REFETCH_KEYS if len(self._keys_killed()) > before else Then.NOTHING)

    def _kill(self, kill: FeedKill) -> Then:
        if kill.provisional:
            self._provisional[kill.id] = kill
        else:
            self._durable[kill.id] = kill
        self.kills.apply(kill)
        self.generation += 1
        if kill.provisional:  # has no position, so there is nothing that an acknowledgement could say
            return Then.NOTHING
        self.position = max(self.position, _position(kill.seq))
        return Then.ACKNOWLEDGE | (Then.REFETCH_KEYS if _ends_a_key(kill) else Then.NOTHING)

    def _withdrawn(self, provisional_id: str, body: Mapping[str, Any] | None) -> Then:
        then = Then.NOTHING
        if body is not None:  # in force before the provisional one goes, so that nothing slips between
            kill = FeedKill.from_wire(body)
            if kill.provisional:
                raise FeedBroken("a provisional kill replaced by another")
            then = self._kill(kill)
        self._provisional.pop(provisional_id, None)
        self._replace_map()
        return then

    def _heartbeat(self, body: Mapping[str, Any]) -> Then:
        if _text(body["epoch"]) != self.epoch:
            raise FeedBroken("a heartbeat of another epoch than its hello")
        stamp = _position(body["stamp"], limit=self._last_stamp + 1)
        self._ledger(_position(body["floor"]), _position(body["time"]))
        self._heard = max(self._heard or 0, stamp)
        return Then.ACKNOWLEDGE

    def _ledger(self, floor: int, time_ms: int) -> None:
        if time_ms >= self._ledger_time[0]:
            self._ledger_time = (time_ms, self._elapsed())
        if floor > self.floor:
            self.floor = floor
            self.kills.prune(floor)
            self._durable = {id_: kill for id_, kill in self._durable.items() if kill.seq > floor or _ends_a_key(kill)}

    def _replace_map(self) -> None:
        kills = KillMap()
        for kill in (*self._durable.values(), *self._provisional.values()):
            kills.apply(kill)
        kills.prune(self.floor)
        self.kills = kills
        self.generation += 1

    def _keys_killed(self) -> list[str]:
        return [kill.id for kill in self._durable.values() if _ends_a_key(kill)]


def _ends_a_key(kill: FeedKill) -> bool:
    return any(match is Match.KEY for match, _ in kill.matches)


def _text(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 200:
        raise TypeError("not a short string")
    return value


def _position(value: object, *, limit: int = MAX_POSITION) -> int:
    if type(value) is not int or not 0 <= value < limit:
        raise TypeError("not a position")
    return value
