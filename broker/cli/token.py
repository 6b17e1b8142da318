"""`taskpass token`: the hot path. What is imported here is what every request of a script waits for."""

import sys

import click

from broker.cli.api import Api
from broker.cli.asking import ask_of, asking_options, credential_json
from broker.cli.context import Context
from broker.cli.options import command
from broker.cli.output import Output


@command(short_help="Get one credential and print it.")
@click.argument("resource")
@asking_options
@click.option(
    "--task", metavar="ID", help="The task that it is for. Without one: a task of its own, for this token only."
)
def token(
    resource: str, scopes: tuple[str, ...], actions: tuple[str, ...], params: tuple[str, ...], task: str | None
) -> None:
    r"""Get one credential for RESOURCE (its audience) and print the token.

    Without --scope it is for what the agent may do there by itself. The token is the only thing on standard output;
    `-o json` prints everything that was granted. Exit code 3 means never, 5 that a person has to approve first.

    \b
    Examples:
      taskpass token https://invoices.example.com --scope invoices:read
      taskpass token https://credits.example.com --scope credits:propose \
          --param invoice=INV-1001 --param amount_cents=4000
      curl -H "Authorization: Bearer $(taskpass token https://invoices.example.com)" ...
    """
    ask = ask_of(resource, scopes=scopes, actions=actions, params=params, task=task)
    credential = Api.of_workload(Context.current()).obtain(ask)
    output = Output.current()
    output.one(credential_json(credential), human=lambda: credential.token, name=lambda: credential.decision_id)
    if output.for_people and sys.stderr.isatty() and sys.stdout.isatty():
        output.note(f"{credential.decision_id}: for {credential.expires_in} s, under {credential.task}")
