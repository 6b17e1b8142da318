"""A kill when the ledger cannot be written: in force here, spooled to reserved space, retried until it is durable.

It has an id and no position, and never claims more than "in force here, not yet durable" (DESIGN 2).
"""

import secrets
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import orjson
import structlog

from broker.ledger import LedgerUnavailable
from broker.ledger.commands.guards import Stale
from broker.ledger.commands.kills import NO_NEXT_KEY, Kill, Killed, KillRefused
from broker.ledger.spool import Spool
from broker.ledger.writer import Writer
from broker.model import Selector, Target
from broker.stops import Stops
from broker.web.feed import Feed
from broker.wire import FeedKill, Match

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Waiting:
    kill: Kill
    feed: FeedKill
    since: int
    slot: int | None  # None: the reserved space failed too, so it is in memory only


class ProvisionalKills:
    """Kills of this broker that wait for their ledger."""

    def __init__(
        self, *, writer: Writer, feed: Feed, spool: Spool | None, stops: Stops, now: Callable[[], int]
    ) -> None:
        self._writer = writer
        self._feed = feed
        self._spool = spool
        self._stops = stops
        self._now = now
        self._waiting: dict[str, _Waiting] = {}
        self._became: dict[str, str] = {}  # provisional id -> the durable kill's

    def put(self, kill: Kill, matches: tuple[tuple[Match, str], ...]) -> dict[str, Any]:
        """Put a kill in force: workers first, then verifiers, then the reserved space. Asking again changes nothing."""
        for known, waiting in self._waiting.items():
            if (waiting.kill.selector, waiting.kill.hold, waiting.feed.matches) == (kill.selector, kill.hold, matches):
                return self.answer(known) or {}
        feed = FeedKill(id=f"prv_{secrets.token_hex(8)}", seq=-1, matches=matches, provisional=True)
        waiting = self._waiting[feed.id] = _Waiting(kill, feed, self._now(), None)
        self._tell_workers()
        self._feed.put_provisional(feed)
        try:
            waiting.slot = self._spool.put(_record(waiting)) if self._spool else None
        except (LedgerUnavailable, ValueError) as error:
            log.error("kill_not_spooled", kill=feed.id, error=str(error))
        log.critical("provisional_kill", kill=feed.id, target=str(kill.selector))
        return self.answer(feed.id) or {}

    def answer(self, provisional_id: str) -> dict[str, Any] | None:
        """What can be said of a provisional kill; None for an unknown id."""
        waiting = self._waiting.get(provisional_id)
        if waiting is None:
            return None
        kill = waiting.kill
        return {
            "id": provisional_id,
            "durable": False,
            "complete": False,
            "position": None,
            "at": waiting.since,
            "target": kill.selector.target.value,
            "value": kill.selector.value,
            "actor": kill.actor,
            "reason": kill.reason,
            "issuance": {"stopped": True, "stopped_at": None, "hold": None, "where": "this broker"},
            "spooled": waiting.slot is not None,
            "sentence": "In force here, not yet durable: the ledger cannot be written. Verifiers connected here refuse "
            "every match; other brokers on this ledger, if any, have not been reached.",
        }

    def __len__(self) -> int:
        """How many kills wait for the ledger."""
        return len(self._waiting)

    def became(self, provisional_id: str) -> str | None:
        """The durable kill that replaced a provisional one."""
        return self._became.get(provisional_id)

    def restore(self) -> None:
        """After a restart: what was spooled is in force again before anything is issued."""
        for slot, record in self._spool.entries() if self._spool else ():
            waiting = _from_record(record, slot)
            self._waiting[waiting.feed.id] = waiting
            self._feed.put_provisional(waiting.feed)
        self._tell_workers()

    async def retry(self) -> None:
        """Try to make every waiting kill durable."""
        for provisional_id, waiting in list(self._waiting.items()):
            try:
                outcome = await self._writer.submit_priority(waiting.kill)
            except LedgerUnavailable:
                return
            except Exception as error:  # noqa: BLE001  (stays in force; must not keep the others from being written)
                log.critical("kill_not_written", kill=provisional_id, error=repr(error))
                continue
            if isinstance(outcome, Stale):  # whom it names was fixed when it was put in force
                waiting.kill = replace(waiting.kill, registry_hash=outcome.registry_hash)
                continue
            if isinstance(outcome, KillRefused) and outcome.reason == NO_NEXT_KEY:  # there will be one soon
                continue
            self._settle(provisional_id, waiting, outcome)

    def _settle(self, provisional_id: str, waiting: _Waiting, outcome: Killed | KillRefused) -> None:
        """The durable kill takes over, or there was nothing to kill."""
        durable = None
        if isinstance(outcome, Killed):
            durable = FeedKill(id=outcome.id, seq=outcome.seq, matches=outcome.matches)
            self._became[provisional_id] = outcome.id
        del self._waiting[provisional_id]
        self._feed.withdraw(provisional_id, durable)
        self._tell_workers()
        log.warning("kill_durable_now", kill=provisional_id, became=durable.id if durable else None)
        if waiting.slot is not None and self._spool is not None:
            try:
                self._spool.clear(waiting.slot)
            except LedgerUnavailable as error:  # it would be written once more after a restart, and change nothing
                log.error("spool_not_cleared", kill=provisional_id, error=str(error))

    def _tell_workers(self) -> None:
        self._stops.write([waiting.feed for waiting in self._waiting.values()])


def _record(waiting: _Waiting) -> bytes:
    """As spooled. Compressed, because an owner's kill names every agent and a slot is small."""
    kill = waiting.kill
    body = orjson.dumps(
        {
            "feed": waiting.feed.to_wire(),
            "since": waiting.since,
            "target": kill.selector.target.value,
            "value": kill.selector.value,
            "reason": kill.reason,
            "actor": kill.actor,
            "hold": kill.hold,
            "registry": kill.registry_hash,
            "agents": list(kill.agents),
            "audience": kill.audience,
            "alarm": kill.alarm,
        }
    )
    return zlib.compress(body, 9)


def _from_record(record: bytes, slot: int) -> _Waiting:
    body = orjson.loads(zlib.decompress(record))
    kill = Kill(
        selector=Selector(Target(body["target"]), body["value"]),
        reason=body["reason"],
        actor=body["actor"],
        hold=body["hold"],
        registry_hash=body["registry"],
        agents=tuple(body["agents"]),
        audience=body["audience"],
        alarm=body["alarm"],
    )
    return _Waiting(kill, FeedKill.from_wire(body["feed"]), body["since"], slot)
