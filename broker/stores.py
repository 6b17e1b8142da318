"""Which ledger the configuration names, and what seals its keys: here alone concrete stores are named.

create(config)          a new ledger with its first keys (once, by `taskpass init`, `dev` or `db upgrade`)
open_ledger(config)     the ledger, to be used by a broker or by a command beside it
"""

import time

from broker.config import Config
from broker.errors import ConfigurationInvalid
from broker.files import secret_in
from broker.keystore import keyring_of, sealer_of
from broker.ledger import Now, OpenLedger
from broker.ledger.checkpoint import NoteInvalid
from broker.ledger.commands.admin import FirstKeys, PublishNextKey
from broker.ledger.kept import FileShelf, HttpShelf, Shelf
from broker.ledger.sqlite import SqliteLedger
from broker.ledger.sqlite_audit import SqliteStore
from broker.ledger.targets import SqliteTarget, Target
from broker.ledger.verify import Store
from broker.ledger.whereabouts import file_number
from broker.ledger.witness import Witness, WitnessKey
from broker.signals import Signals
from broker.signals.memory import MemorySignals

__all__ = [
    "create",
    "keyring_of",
    "ledger_exists",
    "ledger_file",
    "ledger_place",
    "ledger_to_verify",
    "open_ledger",
    "sealer_of",
    "secret_in",
    "shelves_of",
    "signals_of",
    "target_of",
    "upgrade",
    "wall_clock",
]


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
        make = keyring_of(config, ledger, now=now).make
        ledger.commit([FirstKeys([make("token"), make("session"), make("checkpoint")]), PublishNextKey(make("token"))])
    finally:
        ledger.close()


def open_ledger(config: Config, *, now: Now = wall_clock, keeps: bool = False) -> OpenLedger:
    """The configured ledger; `keeps` for the one process that looks after its files. Raises LedgerNotOpened,
    LedgerUnavailable, LedgerCorrupt.
    """
    if config.ledger.url is None:
        return SqliteLedger.open(config.ledger.path, now=now, keeps=keeps)
    from broker.ledger.postgres import PostgresLedger

    return PostgresLedger.open(config.ledger.url.get_secret_value(), clock=_instead_of_the_databases(now))


def signals_of(config: Config) -> Signals:
    """What tells this process of the other brokers. Raises ConfigurationInvalid."""
    section = config.signals
    if section.url is None:
        return MemorySignals()
    from broker.signals.redis import RedisPlace, RedisSignals

    password = section.password.get_secret_value() if section.password is not None else None
    if section.password_file is not None:
        password = secret_in(section.password_file, "signals.password_file")
    place = RedisPlace(section.url.get_secret_value(), password, section.ca_file)
    return RedisSignals(place, ledger=config.ledger_origin)


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


def shelves_of(config: Config) -> list[Shelf]:
    """Where checkpoints are kept outside of the store. Raises ConfigurationInvalid."""
    section, found = config.kept, list[Shelf]()
    if section.file is not None:
        found.append(FileShelf(section.file))
    if section.url is not None:
        secret = section.authorization
        found.append(HttpShelf(section.url, authorization=secret.get_secret_value() if secret else None))
    if section.witness_url is not None and section.witness_key is not None:
        try:
            found.append(Witness(section.witness_url, WitnessKey(section.witness_key)))
        except NoteInvalid as error:
            raise ConfigurationInvalid(f"kept.witness_key cannot be used: {error}.") from error
    return found


def target_of(config: Config, *, now: Now = wall_clock) -> Target:
    """Where the configured ledger would be, for an import."""
    if config.ledger.url is None:
        return SqliteTarget(config.ledger.path, now=now)
    from broker.ledger.postgres_target import PostgresTarget

    url = config.ledger.url.get_secret_value()
    return PostgresTarget(url, ledger_place(config), clock=_instead_of_the_databases(now))


def ledger_file(config: Config) -> str | None:
    """The number of the configured ledger's file, which no copy of it has; None where it is not in one."""
    return None if config.ledger.url is not None else file_number(config.ledger.path)


def ledger_place(config: Config) -> str:
    """Where the ledger is, for people to read: without a password."""
    if config.ledger.url is None:
        return str(config.ledger.path)
    from broker.ledger.postgres import place_of

    return place_of(config.ledger.url.get_secret_value())


def _instead_of_the_databases(now: Now) -> Now | None:
    """Brokers that share a database go by its clock; only a test brings another."""
    return None if now is wall_clock else now
