"""The only composition root: it alone names concrete stores, issuers and engines.

create(config)                  a new ledger with its first keys (once, by `taskpass init`, `dev` or `db upgrade`)
async with running(config, role=...) as process:
    process.app                 the ASGI application of a token worker, of the control process, or of both in one
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Flag, auto
from importlib.metadata import PackageNotFoundError, version

import structlog
from fastapi import FastAPI

from broker.config import Config
from broker.errors import ConfigurationInvalid, TaskpassError
from broker.keys import Keyring, Sealer
from broker.ledger import LedgerStopped, LedgerUnavailable, Now, OpenLedger
from broker.ledger.commands.admin import FirstKeys, PublishNextKey, RefuseReload, Started, StopIssuance, Together
from broker.ledger.proofs import Proofs
from broker.ledger.spool import Spool
from broker.ledger.sqlite import SqliteLedger
from broker.ledger.sqlite_audit import SqliteStore
from broker.ledger.verify import Store
from broker.ledger.writer import Writer
from broker.rules import RulesInForce
from broker.service import Admin, Broker, Callers, Evidence, Issuance, KillSwitch, Refusals, Tasks
from broker.service.task_facts import TaskFactsReader
from broker.stops import Stops
from broker.upkeep import Chore, Chores, Upkeep
from broker.web.app import WebSettings, create_app
from broker.web.feed import Feed
from broker.web.provisional import ProvisionalKills
from issuers.access_token import AccessTokenIssuer

log = structlog.get_logger(__name__)


_TOLERATED_BEHIND_MS = 5_000


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
    unusable: "asyncio.Future[LedgerStopped]"


def wall_clock() -> int:
    """Milliseconds since the epoch, by the host."""
    return time.time_ns() // 1_000_000


def create(config: Config, *, now: Now = wall_clock) -> None:
    """Make a new ledger with its first signing keys. Raises LedgerNotOpened when there is one already."""
    config.ledger.side_file("").parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if config.ledger.url is None:
        SqliteLedger.create(config.ledger.path, now=now, origin=config.ledger_origin)
    else:
        from broker.ledger.postgres import PostgresLedger

        url = config.ledger.url.get_secret_value()
        PostgresLedger.create(url, origin=config.ledger_origin, clock=_instead_of_the_databases(now))
    ledger = open_ledger(config, now=now)
    try:
        make = Keyring(ledger=ledger, sealer=sealer_of(config), now=now).make
        ledger.commit([FirstKeys([make("token"), make("session"), make("checkpoint")]), PublishNextKey(make("token"))])
    finally:
        ledger.close()


def sealer_of(config: Config) -> Sealer:
    """What seals the signing keys, from the configuration's file or value. Raises ConfigurationInvalid."""
    if config.keys.encryption_key is not None:
        return Sealer.from_text(config.keys.encryption_key.get_secret_value())
    if config.keys.encryption_key_file is None:
        raise ConfigurationInvalid("Configure keys.encryption_key_file: signing keys are never stored in the clear.")
    return Sealer.from_file(config.keys.encryption_key_file)


def open_ledger(config: Config, *, now: Now = wall_clock, keeps: bool = False) -> OpenLedger:
    """The configured ledger; `keeps` for the one process that looks after its files. Raises LedgerNotOpened,
    LedgerUnavailable, LedgerCorrupt.
    """
    if config.ledger.url is None:
        return SqliteLedger.open(config.ledger.path, now=now, keeps=keeps)
    from broker.ledger.postgres import PostgresLedger

    return PostgresLedger.open(config.ledger.url.get_secret_value(), clock=_instead_of_the_databases(now))


def ledger_exists(config: Config) -> bool:
    """Whether the configured ledger has been created. Raises LedgerUnavailable."""
    if config.ledger.url is None:
        return config.ledger.path.exists()
    from broker.ledger.postgres import PostgresLedger

    return PostgresLedger.exists(config.ledger.url.get_secret_value())


def upgrade(config: Config, *, now: Now = wall_clock) -> tuple[int, int]:
    """Create the configured ledger, or bring its schema up to date; the schema's version before (0: none) and after.

    Raises LedgerNotOpened, LedgerUnavailable.
    """
    created = not ledger_exists(config)
    if created:
        create(config, now=now)
    if config.ledger.url is None:
        from broker.ledger.sqlite_file import upgrade_file as upgrade_store

        before, after = upgrade_store(config.ledger.path)
    else:
        from broker.ledger.postgres import PostgresLedger

        before, after = PostgresLedger.upgrade(config.ledger.url.get_secret_value())
    return 0 if created else before, after


def ledger_to_verify(config: Config) -> Store:
    """The configured ledger, for an audit."""
    if config.ledger.url is None:
        return SqliteStore(config.ledger.path)
    from broker.ledger.postgres_audit import PostgresStore

    url = config.ledger.url.get_secret_value()
    return PostgresStore(url, ledger_place(config))


def ledger_place(config: Config) -> str:
    """Where the ledger is, for people to read: without a password."""
    if config.ledger.url is None:
        return str(config.ledger.path)
    from broker.ledger.postgres import place_of

    return place_of(config.ledger.url.get_secret_value())


def _instead_of_the_databases(now: Now) -> Now | None:
    """Brokers that share a database go by its clock; only a test brings another."""
    return None if now is wall_clock else now


@asynccontextmanager
async def running(config: Config, *, role: Role = Role.ALL, now: Now = wall_clock) -> AsyncIterator[Process]:
    """One broker process on an existing ledger, until the context ends. Raises what keeps it from starting."""
    ledger = open_ledger(config, now=now, keeps=Role.CONTROL in role)
    feed: Feed | None = None

    def committed(*_: object) -> None:
        if feed is not None:
            feed.poke()

    loop = asyncio.get_running_loop()
    unusable: asyncio.Future[LedgerStopped] = loop.create_future()

    def stopped(why: LedgerStopped) -> None:
        if not unusable.done():
            unusable.set_result(why)

    async def look() -> None:
        try:
            with ledger.read():
                pass
        except LedgerStopped as why:
            stopped(why)

    writer = Writer(ledger=ledger, loop=loop, on_commit=committed, on_stop=stopped)
    feed = Feed(ledger=ledger, writer=writer, now=now) if Role.CONTROL in role else None
    process = _assemble(config, role=role, ledger=ledger, writer=writer, feed=feed, unusable=unusable, now=now)
    entry = _Entry(process, role=role, now=now)
    upkeep = Upkeep([*_chores(config, process, role), Chore("entry", 1.0, entry.make), Chore("look", 1.0, look)])
    try:
        await _start(process, entry)
        upkeep.start()
        yield process
    finally:
        await upkeep.stop()
        if feed is not None:
            await feed.stop()
        try:
            await process.chores.flush_refusals()
        except LedgerUnavailable as error:
            log.error("refusals_lost", error=str(error))
        await writer.close()
        ledger.close()


def _assemble(
    config: Config,
    *,
    role: Role,
    ledger: OpenLedger,
    writer: Writer,
    feed: Feed | None,
    unusable: "asyncio.Future[LedgerStopped]",
    now: Now,
) -> Process:
    iss, host_now, now = config.issuer, now, _ledger_time(ledger, now)
    keyring = Keyring(ledger=ledger, sealer=sealer_of(config), now=now)
    rules = RulesInForce(ledger=ledger)
    refusals = Refusals(now=now)
    stops = Stops.open(config.ledger.side_file(".stops"))
    spool = Spool.open(config.ledger.side_file(".spool")) if feed is not None else None
    following = feed or Feed(ledger=ledger, writer=writer, now=now)
    provisional = ProvisionalKills(writer=writer, feed=following, spool=spool, stops=stops, now=now)
    proofs = Proofs(ledger=ledger, origin=ledger.origin, key=keyring.checkpoint_key)
    admin = Admin(
        rules=rules,
        ledger=ledger,
        writer=writer,
        keyring=keyring,
        origin=ledger.origin,
        registry_dir=config.registry.path,
        policies_dir=config.policies.path,
        now=now,
    )
    broker = Broker(
        callers=Callers(
            rules=rules,
            ledger=ledger,
            writer=writer,
            keyring=keyring,
            refusals=refusals,
            iss=iss,
            now=now,
            host_now=host_now,
        ),
        issuance=Issuance(
            rules=rules,
            writer=writer,
            task_facts=TaskFactsReader(ledger=ledger),
            issuer=AccessTokenIssuer(
                iss=iss, sign=lambda kid, typ, claims: keyring.signer(kid).sign(typ, dict(claims))
            ),
            stops=stops,
            refusals=refusals,
            iss=iss,
            token_endpoint=f"{iss}/oauth2/token",
            ttl_ms=config.tokens.max_ttl_s * 1000,
            now=now,
        ),
        tasks=Tasks(
            rules=rules,
            ledger=ledger,
            writer=writer,
            default_ttl_ms=config.tasks.default_deadline_s * 1000,
            max_ttl_ms=config.tasks.max_deadline_s * 1000,
            now=now,
        ),
        kill_switch=KillSwitch(
            rules=rules,
            ledger=ledger,
            writer=writer,
            provisional=provisional,
            max_life_ms=config.tokens.max_ttl_s * 1000,
            now=now,
        ),
        evidence=Evidence(rules=rules, ledger=ledger, proofs=proofs, keyring=keyring, stops=stops, iss=iss, now=now),
        admin=admin,
        refusals=refusals,
    )
    chores = Chores(
        ledger=ledger,
        writer=writer,
        rules=rules,
        refusals=refusals,
        admin=admin,
        rotate_after_ms=config.keys.rotate_every_hours * 3_600_000,
        now=now,
    )
    app = create_app(
        broker=broker,
        keyring=keyring,
        feed=feed,
        settings=WebSettings(
            issuer=iss,
            control_url=config.control_url,
            jwks_keep_ms=config.tokens.max_ttl_s * 1000 + 60_000,
            max_body=config.limits.max_request_bytes,
        ),
        scopes=lambda: {
            action for resource in rules.current.registry.resources.values() for action in resource.actions
        },
        ready=lambda: _not_ready(ledger, rules, host_now()),
        tokens=Role.TOKENS in role,
    )
    return Process(app, broker, ledger, writer, feed, chores, proofs, keyring, provisional, unusable)


def _ledger_time(ledger: OpenLedger, now: Now) -> Now:
    """The host's clock, but never earlier than the ledger's last write that this process has seen: a clock that steps
    back must not revive a session or an assertion.
    """
    return lambda: max(now(), ledger.head.time)


def _not_ready(ledger: OpenLedger, rules: RulesInForce, now: int) -> list[str]:
    """Why this process would refuse to issue at `now`, by the host's clock."""
    try:
        with ledger.read() as r:
            head = r.head()
        _ = rules.current
    except TaskpassError as error:
        return [error.sentence]
    reasons = [f"issuance is stopped: {head.issuance_stopped}"] if head.issuance_stopped else []
    behind_ms = head.time - now
    if behind_ms > _TOLERATED_BEHIND_MS:
        reasons.append(f"this host's clock is {behind_ms // 1000} s behind the ledger's time: every proof has expired")
    return reasons


def _chores(config: Config, process: Process, role: Role) -> list[Chore]:
    chores = process.chores
    every = [
        Chore("flush_refusals", config.limits.refusals_interval_s, chores.flush_refusals),
        Chore("fetch_keys", 5.0, chores.fetch_keys),
        Chore("follow_rules", 0.5, chores.follow_rules),
    ]
    if Role.CONTROL in role:
        every += [
            Chore("expire_tasks", 0.2, chores.expire_tasks),
            Chore("provisional", 0.5, process.provisional.retry),
            Chore("housekeep", 2.0, chores.housekeep),
            Chore("keys", 30.0, chores.keys),
        ]
    return every


async def _start(process: Process, entry: "_Entry") -> None:
    """Follow the ledger, with every kill in force, then enter what this process begins with.

    When the ledger cannot be written now, that waits: the kill switch is needed most while something is broken.
    """
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
    except LedgerUnavailable as error:
        if not has_rules:
            raise
        log.critical("started_without_writing", error=str(error), internal=error.internal)
    process.keyring.refresh()


class _Entry:
    """What a process writes to the ledger when it begins: the rules on disk, its keys, and that it started."""

    def __init__(self, process: Process, *, role: Role, now: Now) -> None:
        self._process = process
        self._role = role
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
        await self._process.broker.admin.catch_up()
        await self._process.writer.submit(Started(self._role.name or "all", _version()))
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


def _version() -> str:
    try:
        return version("taskpass")
    except PackageNotFoundError:
        return "0+unknown"


__all__ = [
    "Process",
    "Role",
    "create",
    "ledger_exists",
    "ledger_place",
    "ledger_to_verify",
    "open_ledger",
    "running",
    "sealer_of",
    "upgrade",
    "wall_clock",
]
