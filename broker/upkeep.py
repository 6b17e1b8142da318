"""What a broker does by itself: expire tasks, count refusals, prune, rotate keys by age, fetch keys that are due.

Each chore is a coroutine run at its own interval. A chore that fails is logged and tried again at its next turn; none
of them can stop another, and none is needed for a kill.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import structlog

from broker.keys import Purpose
from broker.ledger import Ledger, views
from broker.ledger.commands.admin import RaiseFloor
from broker.ledger.commands.replay import Prune, proof_window
from broker.ledger.commands.tasks import ExpireTasks
from broker.ledger.writer import Writer
from broker.model import SystemCaller
from broker.rules import RulesInForce
from broker.service import Admin, Refusals

log = structlog.get_logger(__name__)


_ROTATED: tuple[Purpose, ...] = ("token", "session")
"""Checkpoints keep their key: whoever kept one must be able to check it years later."""

_WINDOW = 1_000
_WINDOWS, _IDLE_WINDOWS = 64, 16
"""Spent proofs are looked through in the order of their marks, so many at a time; in a turn so many times, of which so
many may find nothing. An index of their expiry would cost every token more than this costs. A window is small, because
its commit keeps tokens waiting.
"""


@dataclass(frozen=True, slots=True)
class Chore:
    """Something to do every `every_s` seconds."""

    name: str
    every_s: float
    do: Callable[[], Awaitable[None]]


class Upkeep:
    """Runs chores until it is stopped. `failed` is told the name of each chore that raises."""

    def __init__(self, chores: Sequence[Chore], *, failed: Callable[[str], None] | None = None) -> None:
        self._chores = chores
        self._failed = failed
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin, on the running loop."""
        self._tasks = [asyncio.create_task(self._run(chore), name=chore.name) for chore in self._chores]

    async def stop(self) -> None:
        """End every chore."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task

    async def _run(self, chore: Chore) -> None:
        while True:
            await asyncio.sleep(chore.every_s)
            try:
                await chore.do()
            except Exception as error:  # noqa: BLE001  (a chore that fails must not end the others)
                log.error("chore_failed", chore=chore.name, error=repr(error))
                if self._failed is not None:
                    self._failed(chore.name)


class Chores:
    """The chores themselves, each one step that tests call without waiting."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        writer: Writer,
        rules: RulesInForce,
        refusals: Refusals,
        admin: Admin,
        rotate_after_ms: int,
        now: Callable[[], int],
    ) -> None:
        self._ledger = ledger
        self._writer = writer
        self._rules = rules
        self._refusals = refusals
        self._admin = admin
        self._rotate_after_ms = rotate_after_ms
        self._now = now
        self._walked = b""  # the spent proofs up to this mark, in this round

    async def expire_tasks(self) -> None:
        """End overdue tasks. Reads first: an idle broker writes nothing."""
        with self._ledger.read() as r:
            due = views.tasks_are_due(r, self._now())
        while due:
            due = bool(await self._writer.submit(ExpireTasks()))

    async def flush_refusals(self) -> None:
        """Record what was refused before authentication since the last time."""
        command = self._refusals.flush()
        if command is not None:
            await self._writer.submit(command)

    async def housekeep(self) -> None:
        """Raise the floor, and prune spent proofs further along their table."""
        with self._ledger.read() as r:
            rises = views.floor_can_rise(r, self._now())
        if rises:
            await self._writer.submit(RaiseFloor())
        idle = 0
        for _ in range(_WINDOWS):
            with self._ledger.read() as r:
                window = proof_window(r, self._walked, _WINDOW, self._now())
            self._walked = b"" if window.ends else window.last
            # Neighbours in a window mostly expire together; where they do not, they wait until it is worth a commit.
            if window.expired and (window.ends or window.expired >= _WINDOW // 8):
                await self._writer.submit(Prune(window.after, window.last))
            else:
                idle += 1
            if window.ends or idle == _IDLE_WINDOWS:
                return
            await asyncio.sleep(0)

    async def keys(self) -> None:
        """Keep a next key on show; rotate when the active one is old."""
        for purpose in _ROTATED:
            await self._admin.publish_next_key(purpose)
            with self._ledger.read() as r:
                active = next((row for row in views.keys(r, purpose=purpose) if row.state == "active"), None)
            if active is not None and self._now() - (active.activated or active.published) >= self._rotate_after_ms:
                await self._admin.rotate(SystemCaller(), reason="age", purpose=purpose, if_active=active.kid)

    async def fetch_keys(self) -> None:
        """Refresh the key sets of workload issuers before they are stale."""
        await self._rules.current.attesters.refresh_due()

    async def follow_rules(self) -> None:
        """Load rules that another process put in force."""
        await self._rules.catch_up()
