"""The composition root: it alone puts issuers, engines and verbs together into a process. Stores come from `stores`.

async with running(config, role=...) as process:
    process.app                 the ASGI application of a token worker, of the control process, or of both in one
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from broker.config import Config
from broker.errors import TaskpassError
from broker.keys import Keyring
from broker.ledger import LedgerStopped, LedgerUnavailable, Now, OpenLedger
from broker.ledger.proofs import Proofs
from broker.ledger.spool import Spool
from broker.ledger.writer import Writer
from broker.rules import RulesInForce
from broker.service import Admin, Broker, Callers, Evidence, Issuance, KillSwitch, Refusals, Tasks
from broker.service.task_facts import TaskFactsReader
from broker.signals import Signals
from broker.signals.attempts import Attempts
from broker.startup import Entry, Process, Role, begin
from broker.stops import Stops
from broker.stores import open_ledger, sealer_of, signals_of, wall_clock
from broker.upkeep import Chore, Chores, Upkeep
from broker.web.app import WebSettings, create_app
from broker.web.feed import Feed
from broker.web.provisional import ProvisionalKills
from issuers.access_token import AccessTokenIssuer

log = structlog.get_logger(__name__)


_TOLERATED_BEHIND_MS = 5_000


@asynccontextmanager
async def running(config: Config, *, role: Role = Role.ALL, now: Now = wall_clock) -> AsyncIterator[Process]:
    """One broker process on an existing ledger, until the context ends. Raises what keeps it from starting."""
    ledger = open_ledger(config, now=now)
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
    signals = signals_of(config)
    feed = Feed(ledger=ledger, writer=writer, now=now, tell=signals.tell) if Role.CONTROL in role else None
    process = _assemble(
        config, role=role, ledger=ledger, writer=writer, feed=feed, signals=signals, unusable=unusable, now=now
    )
    entry = Entry(process, role=role, now=now)
    upkeep = Upkeep([*_chores(config, process, role), Chore("entry", 1.0, entry.make), Chore("look", 1.0, look)])
    try:
        await begin(process, entry)
        await signals.start(feed.poke if feed is not None else None)
        upkeep.start()
        yield process
    finally:
        await upkeep.stop()
        await signals.close()
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
    signals: Signals,
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
        attempts=Attempts(limit=config.limits.failures_per_minute, signals=signals),
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


__all__ = ["Process", "Role", "running"]
