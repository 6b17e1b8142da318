"""The composition root: it alone puts issuers, engines and verbs together into a process. Stores come from `stores`,
issuers of secrets from `issuing`.

async with running(config, role=...) as process:
    process.app                 the ASGI application of a token worker, of the control process, or of both in one
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import structlog

from broker.config import Config
from broker.errors import ConfigurationInvalid
from broker.issuing import Issuers, Surroundings, backends_of, open_issuers, settings_problems, signs_in_threads
from broker.keys import Keyring
from broker.ledger import LedgerStopped, LedgerUnavailable, Now, OpenLedger
from broker.ledger.archive import Archive, Archivist
from broker.ledger.kept import Kept
from broker.ledger.proofs import Proofs
from broker.ledger.spool import Spool
from broker.ledger.writer import Writer
from broker.rules import RulesInForce
from broker.safekeeping import Safekeeping
from broker.service import (
    Admin,
    Broker,
    Callers,
    Credentials,
    Evidence,
    Issuance,
    KillSwitch,
    Refusals,
    Renewals,
    Tasks,
)
from broker.service.asks import TokenRequest
from broker.service.issuance import TokenAnswer
from broker.service.reconciler import Reconciler
from broker.service.steps import Steps
from broker.service.task_facts import TaskFactsReader
from broker.service.traced import TracedIssuance
from broker.signals import Signals
from broker.signals.attempts import Attempts
from broker.startup import Entry, Process, Role, begin, program_version
from broker.stops import Stops
from broker.stores import keyring_of, ledger_file, open_ledger, secret_in, shelves_of, signals_of, wall_clock
from broker.telemetry.metrics import Metrics
from broker.telemetry.reports import EVERY_S, Reports
from broker.telemetry.tracing import Spans
from broker.upkeep import Chore, Chores, Upkeep
from broker.web.app import WebSettings, create_app
from broker.web.exposition import Exposition, Facts
from broker.web.feed import Feed
from broker.web.provisional import ProvisionalKills
from broker.web.readiness import Readiness
from issuers.access_token import AccessTokenIssuer

log = structlog.get_logger(__name__)


_SHORTEST_TOKEN = 16


@dataclass(frozen=True, slots=True)
class _Watch:
    """What is to be seen of this process from outside. `name` is its own among the processes of its broker."""

    name: str
    metrics: Metrics
    reports: Reports
    readiness: Readiness
    spans: Spans
    now: Now  # the host's clock

    def exposition(
        self, config: Config, ledger: OpenLedger, rules: RulesInForce, feed: Feed, kills: ProvisionalKills
    ) -> Exposition:
        """What this process answers to a scrape, if it is the one to be scraped."""
        facts = Facts(
            ledger=ledger,
            rules=rules,
            feed=feed,
            provisional=kills,
            readiness=self.readiness,
            state=config.ledger.side_file("").parent,
            version=program_version(),
            now=self.now,
        )
        return Exposition(process=self.name, metrics=self.metrics, reports=self.reports, facts=facts, now=self.now)

    def answered(self, _: Sequence[TokenRequest], answers: Sequence[TokenAnswer | Exception], seconds: float) -> None:
        """The token endpoint's account of one batch."""
        self.metrics.token_batch(answers, seconds)

    def wrote(self, commands: int, seconds: float, failed: bool, waiting: int) -> None:  # noqa: FBT001  (a callback)
        """The writer's account of one batch."""
        self.metrics.commit(commands, seconds, failed=failed, waiting=waiting)
        self.spans.commit(commands, seconds, failed=failed)
        self.readiness.wrote(failed=failed)

    async def report(self) -> None:
        """Hand the metrics to the process that is scraped."""
        self.reports.write(self.name, self.metrics.collect())


@dataclass(frozen=True, slots=True)
class _Ground:
    """What stands before the verbs do: the ledger, whoever follows it, and who watches."""

    ledger: OpenLedger
    writer: Writer
    rules: RulesInForce
    keyring: Keyring
    feed: Feed | None
    signals: Signals
    watch: _Watch
    unusable: "asyncio.Future[LedgerStopped]"
    now: Now

    async def look(self) -> None:
        """Find out, without being asked, that the ledger must not be used any more."""
        try:
            with self.ledger.read():
                pass
        except LedgerStopped as why:
            self.stop(why)

    def stop(self, why: LedgerStopped) -> None:
        """The process must end."""
        if not self.unusable.done():
            self.unusable.set_result(why)


def _lay_ground(config: Config, *, role: Role, now: Now, name: str) -> _Ground:
    spans = Spans.to(config.tracing.endpoint, version=program_version())
    signals, metrics = signals_of(config), Metrics()
    ledger = open_ledger(config, now=now, keeps=Role.CONTROL in role)
    now = ledger.clock
    try:
        keyring = keyring_of(config, ledger, now=_ledger_time(ledger, now), observe=metrics.vault_asked)
    except ConfigurationInvalid:
        ledger.close()
        raise
    metrics.follow(vault_away=lambda: keyring.away() is not None, signals_lost=lambda: signals.lost)
    rules = RulesInForce(ledger=ledger)
    readiness = Readiness(ledger=ledger, rules=rules, away=keyring.away, lost=lambda: signals.lost, now=now)
    reports = Reports(config.ledger.side_file(".metrics"))
    watch = _Watch(name or (role.name or "all").lower(), metrics, reports, readiness, spans, now)
    feed: Feed | None = None
    loop = asyncio.get_running_loop()
    unusable: asyncio.Future[LedgerStopped] = loop.create_future()

    def committed(*_: object) -> None:
        if feed is not None:
            feed.poke()

    def stopped(why: LedgerStopped) -> None:
        if not unusable.done():
            unusable.set_result(why)

    writer = Writer(ledger=ledger, loop=loop, on_commit=committed, on_stop=stopped, observe=watch.wrote)
    feed = Feed(ledger=ledger, writer=writer, now=now, tell=signals.tell) if Role.CONTROL in role else None
    return _Ground(ledger, writer, rules, keyring, feed, signals, watch, unusable, now)


@asynccontextmanager
async def running(
    config: Config, *, role: Role = Role.ALL, now: Now = wall_clock, name: str = "", issuers: Issuers | None = None
) -> AsyncIterator[Process]:
    """One broker process on an existing ledger, until the context ends. Raises what keeps it from starting.

    `issuers` of secrets stand beside those of the configuration.
    """
    ground = _lay_ground(config, role=role, now=now, name=name)
    ledger, writer, feed, signals, watch = ground.ledger, ground.writer, ground.feed, ground.signals, ground.watch
    try:
        process = _assemble(config, ground, role=role, issuers=issuers or {})
    except BaseException:
        await writer.close()
        await asyncio.to_thread(watch.spans.close)
        ledger.close()
        raise
    alone, file = config.ledger.url is None, ledger_file(config)
    entry = Entry(process, role=role, alone=alone, file=file, now=ground.now)
    chores = [*_chores(config, process, role), Chore("entry", 1.0, entry.make), Chore("look", 1.0, ground.look)]
    chores += [] if Role.CONTROL in role else [Chore("report", EVERY_S, watch.report)]
    upkeep = Upkeep(chores, failed=watch.metrics.chore_failed)
    try:
        await process.safekeeping.check()
        await begin(process, entry)
        await signals.start(feed.poke if feed is not None else None)
        upkeep.start()
        yield process
    finally:
        await upkeep.stop()
        await process.reconciler.stop()
        await signals.close()
        if feed is not None:
            await feed.stop()
        try:
            await process.chores.flush_refusals()
        except LedgerUnavailable as error:
            log.error("refusals_lost", error=str(error))
        await writer.close()
        await asyncio.to_thread(watch.spans.close)
        ledger.close()


def _assemble(config: Config, ground: _Ground, *, role: Role, issuers: Issuers) -> Process:
    ledger, writer, rules, feed, watch = ground.ledger, ground.writer, ground.rules, ground.feed, ground.watch
    iss, host_now, now, keyring = config.issuer, ground.now, _ledger_time(ledger, ground.now), ground.keyring
    refusals = Refusals(now=now, observe=watch.metrics.refused)
    stops = Stops.open(config.ledger.side_file(".stops"))
    spool = Spool.open(config.ledger.side_file(".spool")) if feed is not None else None
    following = feed or Feed(ledger=ledger, writer=writer, now=now)
    provisional = ProvisionalKills(writer=writer, feed=following, spool=spool, stops=stops, now=now)
    around = Surroundings(iss=iss, sign=signs_in_threads(keyring, ledger), now=now, ledger=ledger.origin)
    issuers = {**open_issuers(config, around), **issuers}
    backends = backends_of(issuers, config)
    archive = None if config.retention.archive_path is None else Archive(config.retention.archive_path)
    proofs = Proofs(ledger=ledger, origin=ledger.origin, key=keyring.checkpoint_key, archive=archive)
    admin = Admin(
        rules=rules,
        ledger=ledger,
        writer=writer,
        keyring=keyring,
        origin=ledger.origin,
        registry_dir=config.registry.path,
        policies_dir=config.policies.path,
        check_settings=lambda registry: settings_problems(issuers, registry),
        now=now,
    )
    token_steps, secret_steps = _steps(TaskFactsReader(ledger=ledger), stops, now)
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
        issuance=(partial(TracedIssuance, spans=watch.spans) if watch.spans.exported else Issuance)(
            rules=rules,
            writer=writer,
            steps=token_steps,
            issuer=AccessTokenIssuer(iss=iss, sign_all=keyring.sign_all),
            prepare=keyring.prepare,
            refusals=refusals,
            iss=iss,
            token_endpoint=f"{iss}/oauth2/token",
            ttl_ms=config.tokens.max_ttl_s * 1000,
            now=now,
            observe=watch.answered,
        ),
        credentials=Credentials(
            rules=rules,
            ledger=ledger,
            writer=writer,
            steps=secret_steps,
            backends=backends,
            call_limit_s=config.secrets.call_limit_s,
        ),
        renewals=Renewals(rules=rules, ledger=ledger, writer=writer, steps=secret_steps, backends=backends),
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
        attempts=Attempts(limit=config.limits.failures_per_minute, signals=ground.signals),
        settings=WebSettings(
            issuer=iss,
            control_url=config.control_url,
            jwks_keep_ms=config.tokens.max_ttl_s * 1000 + 60_000,
            max_body=config.limits.max_request_bytes,
            metrics_token=_metrics_token(config),
            max_streams=config.limits.connections * 9 // 10,
        ),
        scopes=lambda: {
            action for resource in rules.current.registry.resources.values() for action in resource.actions
        },
        ready=watch.readiness.reasons,
        spans=watch.spans,
        exposition=watch.exposition(config, ledger, rules, following, provisional),
        tokens=Role.TOKENS in role,
    )
    reconciler = Reconciler(
        ledger=ledger,
        writer=writer,
        backends=backends,
        stuck_after=config.secrets.stuck_after,
        everything=Role.CONTROL in role,
        now=now,
    )
    safekeeping = _safekeeping(config, ground, proofs, archive)
    return Process(
        app,
        broker,
        ledger,
        writer,
        feed,
        chores,
        proofs,
        keyring,
        provisional,
        reconciler,
        safekeeping,
        ground.unusable,
    )


def _safekeeping(config: Config, ground: _Ground, proofs: Proofs, archive: Archive | None) -> Safekeeping:
    ledger = ground.ledger
    archivist = None
    if archive is not None:
        archivist = Archivist(ledger=ledger, archive=archive, checkpoint=proofs.checkpoint, root=proofs.root)
    return Safekeeping(
        kept=Kept(ledger=ledger, origin=ledger.origin, proofs=proofs, shelves=shelves_of(config)),
        writer=ground.writer,
        on_stop=ground.stop,
        now=ground.now,
        archivist=archivist,
        archive_after_ms=None if config.retention.days is None else config.retention.days * 86_400_000,
    )


def _ledger_time(ledger: OpenLedger, now: Now) -> Now:
    """The host's clock, but never earlier than the ledger's last write that this process has seen: a clock that steps
    back must not revive a session or an assertion.
    """
    return lambda: max(now(), ledger.head.time)


def _metrics_token(config: Config) -> str | None:
    """What a scraper must show, or None while metrics are off. Raises ConfigurationInvalid."""
    if config.metrics.token_file is not None:
        token = secret_in(config.metrics.token_file, "metrics.token_file")
    elif config.metrics.token is not None:
        token = config.metrics.token.get_secret_value()
    else:
        return None
    if len(token) < _SHORTEST_TOKEN:
        raise ConfigurationInvalid(f"The metrics token must have at least {_SHORTEST_TOKEN} characters.")
    return token


def _steps(facts: TaskFactsReader, stops: Stops, now: Now) -> tuple[Steps, Steps]:
    """For access tokens, and for everything else: what they know of tasks they share."""
    tokens, secrets = (Steps(task_facts=facts, stops=stops, now=now, tokens=each) for each in (True, False))
    return tokens, secrets


def _chores(config: Config, process: Process, role: Role) -> list[Chore]:
    chores, reconciler = process.chores, process.reconciler
    every = [
        Chore("flush_refusals", config.limits.refusals_interval_s, chores.flush_refusals),
        Chore("fetch_keys", 5.0, chores.fetch_keys),
        Chore("follow_rules", 0.5, chores.follow_rules),
        Chore("learn_keys", 1.0, process.keyring.learn),
        Chore("probe_vault", 1.0, process.keyring.probe),
    ]
    if Role.CONTROL in role or reconciler.keeps:
        every.append(Chore("end_secrets", 0.2, reconciler.turn))
    if Role.CONTROL in role:
        every += [
            Chore("expire_tasks", 0.2, chores.expire_tasks),
            Chore("provisional", 0.5, process.provisional.retry),
            Chore("housekeep", 2.0, chores.housekeep),
            Chore("keys", 30.0, chores.keys),
            Chore("archive", 3_600.0, process.safekeeping.archive),
            Chore("keep", config.kept.every_s, process.safekeeping.keep),
            Chore("find_orphans", config.secrets.sweep_every_s, reconciler.sweep),
        ]
    return every


__all__ = ["Process", "Role", "running"]
