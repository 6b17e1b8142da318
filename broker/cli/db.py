"""`taskpass db`: the ledger's database, and its schema."""

from pathlib import Path

from broker.cli.context import configuration_file
from broker.cli.options import config_option, group
from broker.cli.output import Output


@group(short_help="Create or upgrade the ledger's database.")
def db() -> None:
    """The ledger's database, and its schema."""


@db.command()
@config_option
def upgrade(config_path: Path | None) -> None:
    r"""Create the ledger where there is none, with its first signing keys; else bring its schema up to date.

    An upgraded schema serves brokers of this version and of the one before it. So: upgrade first, with the new program,
    then replace the brokers one by one. A broker on PostgreSQL never upgrades by itself.

    \b
    Example:
      taskpass db upgrade --config /etc/taskpass/taskpass.toml
    """
    from broker.config import load_config
    from broker.stores import ledger_place
    from broker.stores import upgrade as upgrade_ledger

    config = load_config(config_path or configuration_file())
    before, after = upgrade_ledger(config)
    place = ledger_place(config)
    body = {"ledger": place, "created": before == 0, "from": before, "to": after}
    if before == 0:
        sentence = f"Created {place}, version {after}"
    elif before == after:
        sentence = f"{place} has version {after} already"
    else:
        sentence = f"Upgraded {place} from version {before} to {after}"
    Output.current().one(body, human=lambda: sentence, name=lambda: place)
