"""`taskpass init`, `serve` and `dev`: what runs the broker. Only here, and late, is the server imported."""

import sys
from pathlib import Path

import click

from broker.cli.context import configuration_file
from broker.cli.errors import DONE, Failure
from broker.cli.options import command, config_option
from broker.cli.output import Output
from broker.cli.text import facts


@command(short_help="Write a commented configuration and registry, with keys.")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path), default=Path())
@click.option(
    "--issuer",
    required=True,
    metavar="URL",
    help="The broker's public URL: the `iss` of every token. https, unless it is this machine. Never change it.",
)
@click.option(
    "--operator-keys/--no-operator-keys",
    default=True,
    show_default=True,
    help="Also make a first operator's key and a break-glass key.",
)
@click.option(
    "--ledger/--no-ledger", default=True, show_default=True, help="Also create the ledger, with the signing keys."
)
def init(directory: Path, issuer: str, operator_keys: bool, ledger: bool) -> None:
    r"""Write a configuration that works as it is: taskpass.toml, the registry, policies with their cases, keys.

    Existing files are never changed; if one is in the way nothing is written.

    \b
    Example:
      taskpass init /etc/taskpass --issuer https://taskpass.example.com
    """
    from broker.cli.init import write_skeleton

    written = write_skeleton(directory, issuer=issuer, operator_keys=operator_keys)
    if ledger:
        from broker.config import load_config
        from broker.stores import create

        config = load_config(directory / "taskpass.toml")
        create(config)
        written.append(config.ledger.path)
    output = Output.current()
    output.many([{"file": str(path)} for path in written], [("WRITTEN", "file")], name="file")
    if output.for_people:
        output.note(_next_steps(directory, operator_keys=operator_keys))


def _next_steps(directory: Path, *, operator_keys: bool) -> str:
    place = "" if directory == Path() else f"cd {directory} && "
    steps = [
        "",
        "Next:",
        "  1. Read registry/ and policies/, and make them yours: trust.yaml first. Check with",
        f"     {place}taskpass doctor",
        f"  2. {place}taskpass serve",
    ]
    if operator_keys:
        steps.append(f"  3. {place}taskpass login operator --key keys/operator.pem")
        steps.append(
            "  Hand keys/operator.pem to its holder, lock keys/break-glass.pem away, and remove both from here."
        )
    return "\n".join(steps)


@command(short_help="Run the broker.")
@config_option
def serve(config_path: Path | None) -> int:
    r"""Run the broker: token workers, and beside them the control process (kill switch, feed, operators).

    SIGHUP reads registry and policies again, SIGTERM and SIGINT stop it in order. Logs go to standard error.

    \b
    Example:
      taskpass serve --config /etc/taskpass/taskpass.toml
    """
    from broker.config import load_config
    from broker.log import configure_logging
    from broker.processes import Supervisor
    from broker.stores import ledger_exists, ledger_place

    path = config_path or configuration_file()
    config = load_config(path)
    if not ledger_exists(config):
        raise Failure(
            "configuration_invalid",
            f"There is no ledger at {ledger_place(config)}.",
            next="Create it, once: taskpass ledger create",
        )
    configure_logging(config.log.level, config.log.format)
    return Supervisor(config_path=path, config=config).run()


@command(short_help="Run a throwaway broker on this machine, to play with.")
@click.option(
    "--port", type=click.IntRange(0, 65_535), default=8700, show_default=True, help="On 127.0.0.1; 0: any free one."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="An address of this machine alone.")
@click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIRECTORY",
    help="Keep everything here. Default: a temporary directory, removed at the end.",
)
def dev(port: int, host: str, directory: Path | None) -> int:
    """Run the whole broker in one process, with the sample registry, policies, and keys for an agent and an operator.

    For playing only: it listens on this machine alone, and without --dir everything is gone when it stops.
    """
    from broker.config import is_loopback

    if not is_loopback(host):
        raise click.UsageError(
            f"`dev` listens on loopback only, never on {host}. For real use: taskpass init, taskpass serve."
        )
    from broker.cli.playground import play

    play(host=host, port=port, directory=directory, tell=_tell)
    return DONE


def _tell(url: str, directory: Path, kept: bool) -> None:
    """The banner, and what to type."""
    click.secho(
        " DEVELOPMENT BROKER: its keys lie around. Never use it for anything real. ",
        err=True,
        fg="white",
        bg="red",
        bold=True,
    )
    keys = directory / "keys"
    lines = facts([("broker", url), ("files", f"{directory}{'' if kept else ' (removed at the end)'}")], indent=0)
    lines += [
        "",
        "In another shell:",
        f"  export TASKPASS_URL={url} TASKPASS_KEY_FILE={keys}/dispute-bot.pem TASKPASS_CLIENT_ID=dispute-bot",
        "  taskpass whoami",
        "  taskpass token https://invoices.example.com --scope invoices:read -o json",
        f"  taskpass login operator --key {keys}/operator.pem",
        '  taskpass pause dispute-bot --reason "just looking"',
        "",
        "Ctrl-C stops it.",
    ]
    click.echo("\n".join(lines), err=True)
    sys.stderr.flush()
