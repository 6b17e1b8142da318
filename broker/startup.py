"""A broker process: what it is made of, and what it does before it serves."""

import asyncio
from dataclasses import dataclass
from enum import Flag, auto
from importlib.metadata import PackageNotFoundError, version

import structlog
from fastapi import FastAPI

from broker.errors import ConfigurationInvalid, Unavailable
from broker.keys import Keyring
from broker.ledger import LedgerStopped, Now, OpenLedger
from broker.ledger.commands.admin import RefuseReload, Started, StopIssuance, Together
from broker.ledger.proofs import Proofs
from broker.ledger.writer import Writer
from broker.safekeeping import Safekeeping
from broker.service import Broker
from broker.service.reconciler import Reconciler
from broker.upkeep import Chores
from broker.web.feed import Feed
from broker.web.provisional import ProvisionalKills

log = structlog.get_logger(__name__)


class Role(Flag):
    """What one process does."""

    TOKENS = auto()
    CONTROL = auto()
    ALL = TOKENS | CONTROL


@dataclass(frozen=True, slots=True)
class Process:
    """A running broker process. `unusable` is settled when its ledger was rolled back, replaced or found damaged: then
    the process must end.
    """

    app: FastAPI
    broker: Broker
    ledger: OpenLedger
    writer: Writer
    feed: Feed | None
    chores: Chores
    proofs: Proofs
    keyring: Keyring
    provisional: ProvisionalKills
    reconciler: Reconciler
    safekeeping: Safekeeping
    unusable: "asyncio.Future[LedgerStopped]"


async def begin(process: Process, entry: "Entry") -> None:
    """Follow the ledger, with every kill in force, then enter what this process begins with.

    When the ledger cannot be written now, that waits: the kill switch is needed most while something is broken.
    """
    for concern in process.ledger.concerns:
        log.warning("ledger_in_danger", why=concern)
    has_rules = bool(process.ledger.head.registry_hash)
    if has_rules:
        await process.broker.admin.catch_up()
    if process.feed is not None:
        await process.feed.start()
        process.provisional.restore()
    try:
        await entry.make()
    except LedgerStopped:
        raise
    except Unavailable as error:  # the ledger, or the vault of its keys
        if not has_rules:
            raise
        log.critical("started_without_writing", error=str(error), internal=error.internal)
    try:
        await process.keyring.learn()
    except Unavailable as error:  # they are opened once the vault that seals them answers
        log.critical("started_without_keys", error=str(error), internal=error.internal)


class Entry:
    """What a process writes to the ledger when it begins: the rules on disk, its keys, and that it started."""

    def __init__(self, process: Process, *, role: Role, alone: bool, file: str | None, now: Now) -> None:
        """`alone`: no other broker is on this ledger. `file`: which file it is in, if it is in one."""
        self._process = process
        self._role = role
        self._alone = alone
        self._file = file
        self._now = now
        self._made = False

    async def make(self) -> None:
        """Write it, unless that is done. Raises LedgerUnavailable, and ConfigurationInvalid for files that do not load
        on a ledger without rules.
        """
        if self._made:
            return
        if Role.CONTROL in self._role:
            await self._load_files()
            await self._process.chores.keys()
            if self._alone:
                await self._process.reconciler.start()
        await self._process.broker.admin.catch_up()
        await self._process.writer.submit(Started(self._role.name or "all", program_version(), self._file))
        self._made = True

    async def _load_files(self) -> None:
        """Put the files on disk in force. With files that do not load, the last committed rules stay for the kill
        switch, and issuance stops; on a ledger that has none, the process cannot start.
        """
        admin, writer = self._process.broker.admin, self._process.writer
        try:
            loaded = await asyncio.to_thread(admin.read_files)
        except ConfigurationInvalid as error:
            if not self._process.ledger.head.registry_hash:
                raise
            problems = [str(problem) for problem in error.problems] or [error.sentence]
            log.critical("registry_invalid", problems=problems)
            why = f"{error.sentence} Mend the files and reload."
            await writer.submit(Together([RefuseReload("all", problems, "taskpass"), StopIssuance(why)]))
            return
        await writer.submit(Together([*admin.commands(loaded, "taskpass", "start"), StopIssuance(None)]))
        for problem in loaded.registry.problems(self._now()):
            log.warning("agent_blocked", problem=str(problem))


def program_version() -> str:
    """The version that runs."""
    try:
        return version("taskpass")
    except PackageNotFoundError:
        return "0+unknown"
