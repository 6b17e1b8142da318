"""`taskpass secret`: one secret on standard output, and nothing else there."""

import re
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import click

from broker.cli.api import Api
from broker.cli.asking import parameters_of, secret_options
from broker.cli.context import Context
from broker.cli.errors import USAGE, Failure
from broker.cli.options import FORMATS, command, settings_of
from broker.cli.output import Output
from broker.cli.text import facts
from broker.sdk.secret import Secret, wish

_PREFIX = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _format(ctx: click.Context, _: click.Parameter, value: str | None) -> str | None:
    """`-o` as everywhere, and `env`, which only secrets have."""
    if value is not None and value != "env":
        settings_of(ctx).output = value
    return value


@command(short_help="Get one secret: a database login, a cloud key, a lease.")
@click.argument("resource")
@click.argument("actions", nargs=-1, required=True)
@secret_options
@click.option("--field", metavar="NAME", help="Print this member of it alone.")
@click.option("--prefix", default="", metavar="NAME", help="With -o env: what the names of the variables begin with.")
@click.option(
    "-o",
    "--output",
    "format_",
    type=click.Choice([*FORMATS, "env"]),
    callback=_format,
    help="Its members as a table, all about it as json or yaml, its id as name, or `export` lines for a shell as env.",
)
def secret(
    resource: str,
    actions: tuple[str, ...],
    params: tuple[str, ...],
    task: str | None,
    ttl: int | None,
    field: str | None,
    prefix: str,
    format_: str | None,
) -> None:
    r"""Get one secret of RESOURCE (its audience, or its id) for ACTIONS, and print its members.

    It ends with its task, when its time is over, or by `taskpass credential revoke ID`. Exit code 3 means never, 5 that
    a person has to approve first. Where a program can be run by `taskpass run --secret`, prefer that: nothing is left
    behind in a shell.

    \b
    Examples:
      taskpass secret orders-db orders:read --ttl 600
      PGPASSWORD=$(taskpass secret orders-db orders:read --field password) ...
      eval "$(taskpass secret reports-bucket reports:read -o env --prefix AWS_)"
    """
    if prefix and not _PREFIX.fullmatch(prefix):
        raise Failure("usage", f"--prefix {prefix!r} cannot begin a variable's name.", exit_code=USAGE)
    made = get(Api.of_workload(Context.current()), resource, actions=actions, params=params, task=task, ttl=ttl)
    output = Output.current()
    if field is not None:
        click.echo(member(made, field))
    elif format_ == "env":
        for name, value in variables(made, prefix).items():
            click.echo(f"export {name}={shlex.quote(value)}")
    else:
        output.one(secret_json(made), human=lambda: "\n".join(facts(made.values.items(), indent=0)))
    if output.for_people and sys.stderr.isatty() and sys.stdout.isatty():
        output.note(f"{made.id}: until {made.expires_at}, under {made.task}. {made.note or ''}".rstrip())


def get(
    api: Api, resource: str, *, actions: Sequence[str], params: Sequence[str], task: str | None, ttl: int | None
) -> Secret:
    """One secret, from what was typed."""
    return api.secret(wish(resource, actions=actions, parameters=parameters_of(params), task=task, ttl_s=ttl))


def member(made: Secret, *names: str) -> str:
    """The first member there is of these names. Raises Failure, which names members but no value."""
    for name in names:
        if name in made.values:
            return made.values[name]
    held = ", ".join(made.values)
    raise Failure("unfit", f"The secrets of {made.resource} have no {' or '.join(names)}, but {held}.")


def variables(made: Secret, prefix: str) -> dict[str, str]:
    """Its members as variables: `password` with the prefix `DB_` is `DB_PASSWORD`."""
    return {prefix + re.sub(r"[^A-Za-z0-9]", "_", name).upper(): value for name, value in made.values.items()}


def secret_json(made: Secret) -> dict[str, Any]:
    """All about it, its values included, as the broker answered."""
    body = {
        "id": made.id,
        "task": made.task,
        "resource": made.resource,
        "actions": list(made.actions),
        "parameters": dict(made.parameters),
        "issuer": made.issuer,
        "ending": made.ending,
        "renewable": made.renewable,
        "values": dict(made.values),
        "handle": dict(made.handle),
        "seq": made.seq,
        "decision_id": made.decision_id,
        "issued_at": made.issued_at,
        "expires_at": made.expires_at,
        "note": made.note,
    }
    return {name: value for name, value in body.items() if value is not None}
