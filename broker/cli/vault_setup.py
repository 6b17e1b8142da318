"""`taskpass vault-setup`: the least that an operator gives the broker at Vault, printed or applied."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from broker.cli.configured import issuer_named
from broker.cli.context import configuration_file
from broker.cli.errors import USAGE, Failure
from broker.cli.options import command, config_option
from broker.cli.output import Output
from broker.cli.text import plural

if TYPE_CHECKING:
    from broker.config import Config
    from issuers.vault import Setup

_FILE = click.Path(dir_okay=False, path_type=Path)
_MAX_TOKEN = 64 << 10


@command(short_help="Print, or apply, the least Vault policies that the broker needs.")
@config_option
@click.option("--issuer", "name", metavar="NAME", help="Which issuer, where several are of kind vault.")
@click.option("--apply", "wanted", is_flag=True, help="Do it, instead of printing it.")
@click.option("--operator-token-file", type=_FILE, metavar="FILE", help="Holds the Vault token to apply it with.")
def vault_setup(config_path: Path | None, name: str | None, wanted: bool, operator_token_file: Path | None) -> None:
    r"""Give the broker what it needs at Vault or OpenBao, and no more: a policy for itself, one for each path that the
    registry's resources name, and the token role that opens a session for each task. Safe to repeat; repeat it when a
    resource is added. What it prints is a script for the bao command, or for another one that VAULT_CLI names.

    \b
    Example:
      taskpass vault-setup | less
      taskpass vault-setup --apply --operator-token-file ./operator-token
    """
    from broker.config import load_config

    if wanted != (operator_token_file is not None):
        raise Failure("usage", "--apply and --operator-token-file go together.", exit_code=USAGE)
    config = load_config(config_path or configuration_file())
    name = issuer_named(config, "vault", name)
    setup = _setup(config, name)
    if operator_token_file is not None:
        _apply(config, name, setup, operator_token_file)
    _answer(setup, applied=wanted)


def _answer(setup: "Setup", *, applied: bool) -> None:
    from issuers.vault.setup import commands

    steps = setup.steps()
    rows = [{"what": step.what, "path": step.path, "body": dict(step.body)} for step in steps]
    told = f"Applied: {plural(len(steps), 'write')}." if applied else commands(steps).rstrip("\n")
    body = {"applied": applied, "steps": rows}
    Output.current().one(body, human=lambda: told, name=lambda: "\n".join(step.path for step in steps))


def _setup(config: "Config", name: str) -> "Setup":
    from broker.cli.offline import load_registry
    from issuers.vault import Setup, settings_of

    resources = []
    for resource in load_registry(config.registry.path).resources.values():
        if resource.issuer == name:
            try:
                resources.append(settings_of(resource.settings))
            except ValueError as error:
                raise Failure("configuration", f"Resource {resource.id}: settings: {error}.") from None
    if not resources:
        raise Failure("configuration", f"No resource of the registry names the issuer {name}.")
    role = str(config.issuers[name].options.get("token_role", "taskpass"))
    try:
        return Setup(resources=resources, token_role=role, max_ttl_s=config.tasks.max_deadline_s)
    except ValueError as error:
        raise Failure("configuration", f"{error}.") from None


def _apply(config: "Config", name: str, setup: "Setup", token_file: Path) -> None:
    from broker.files import read_regular
    from issuers import IssuerError
    from issuers.vault import vault_of

    try:
        token = read_regular(token_file, _MAX_TOKEN).decode("ascii").strip()
        vault = vault_of(config.issuers[name].options, name=name, now=lambda: 0)
    except ValueError as error:
        raise Failure("configuration", f"{error}.") from None
    try:
        setup.apply(vault.link, token)
    except IssuerError as error:
        raise Failure("vault", error.sentence, next="Nothing was undone; it is safe to repeat.") from None
