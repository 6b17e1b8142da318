"""`taskpass postgres-setup`: the least that an administrator gives the broker at PostgreSQL, printed."""

from pathlib import Path

import click

from broker.cli.configured import issuer_named
from broker.cli.context import configuration_file
from broker.cli.errors import Failure
from broker.cli.options import command, config_option
from broker.cli.output import Output


@command(short_help="Print the SQL that gives the broker what it needs at PostgreSQL.")
@config_option
@click.option("--issuer", "name", metavar="NAME", help="Which issuer, where several are of kind postgres.")
@click.option(
    "--server-version",
    "version",
    type=click.IntRange(14),
    required=True,
    metavar="MAJOR",
    help="Of PostgreSQL: 16 and later let the role be narrower.",
)
def postgres_setup(config_path: Path | None, name: str | None, version: int) -> None:
    r"""Print SQL that makes the broker's admin role, and lets it hand out the roles that the registry's resources name.
    Those are yours to make. An administrator reads it, runs it once, and sets a password.

    \b
    Example:
      taskpass postgres-setup --server-version 16 | less
    """
    from broker.cli.offline import load_registry
    from broker.config import load_config
    from issuers.postgres import server_of, settings_of, setup_sql

    config = load_config(config_path or configuration_file())
    name = issuer_named(config, "postgres", name)
    roles: set[str] = set()
    for resource in load_registry(config.registry.path).resources.values():
        if resource.issuer != name:
            continue
        try:
            settings = settings_of(resource.settings)
        except ValueError as error:
            raise Failure("configuration", f"Resource {resource.id}: settings: {error}.") from None
        roles |= {settings.roles} if isinstance(settings.roles, str) else set(settings.roles.values())
    if not roles:
        raise Failure("configuration", f"No resource of the registry names the issuer {name}.")
    try:
        sql = setup_sql(server_of(config.issuers[name].options), roles, version=version)
    except ValueError as error:
        raise Failure("configuration", f"issuers.{name}: {error}.") from None
    Output.current().one({"issuer": name, "roles": sorted(roles), "sql": sql}, human=lambda: sql.rstrip("\n"))
