"""Which store the configuration names, and how it is made, opened, upgraded and audited. Beside the tools that work
offline, only here are concrete stores named.
"""

import time

from broker.config import Config
from broker.errors import ConfigurationInvalid
from broker.keys import Keyring, Sealer
from broker.ledger import Now, OpenLedger
from broker.ledger.commands.admin import FirstKeys, PublishNextKey
from broker.ledger.sqlite import SqliteLedger
from broker.ledger.sqlite_audit import SqliteStore
from broker.ledger.verify import Store


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


def open_ledger(config: Config, *, now: Now = wall_clock) -> OpenLedger:
    """The configured ledger. Raises LedgerNotOpened, LedgerUnavailable, LedgerCorrupt."""
    if config.ledger.url is None:
        return SqliteLedger.open(config.ledger.path, now=now)
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
