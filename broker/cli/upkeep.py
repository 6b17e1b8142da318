"""`taskpass reload` and `keys`."""

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from broker.cli.api import Api
from broker.cli.context import Context, configuration_file
from broker.cli.options import command, config_option, group
from broker.cli.output import Output
from broker.cli.text import clean, clock, plural


@command(short_help="Put changed registry and policy files in force.")
@click.argument("what", type=click.Choice(["registry", "policies", "all"]), default="all")
@click.option("--dry-run", is_flag=True, help="Only show what would change.")
@click.option("--reason", metavar="TEXT", help="Why; recorded.")
def reload(what: str, dry_run: bool, reason: str | None) -> None:
    r"""Have the broker read its files again: all of it comes in force at once, or nothing does.

    \b
    Example:
      taskpass reload --dry-run
      taskpass reload policies --reason "limit raised, ticket 4411"
    """
    body = Api.of_operator(Context.current()).post("/v1/reload", {"what": what, "dry_run": dry_run, "reason": reason})
    Output.current().one(body, human=lambda: _text(body), name=lambda: body["policies"]["hash"])


def _text(body: Mapping[str, Any]) -> str:
    lines = ["Dry run, nothing was done." if body["dry_run"] else "In force."]
    for part in ("registry", "policies"):
        changes = body[part]["changes"]
        position = f" at position {body[part]['position']}" if body[part].get("position") is not None else ""
        lines.append(f"{part} {body[part]['hash'][:12]}{position}: {'no changes' if not changes else ''}".rstrip(": "))
        lines += [f"  {_change(change)}" for change in changes]
    lines += [f"blocked: {clean(problem)}" for problem in body["blocked_agents"]]
    return "\n".join(lines)


def _change(change: Mapping[str, Any]) -> str:
    mark = {"added": "+", "removed": "-"}.get(change["change"], "~")
    fields = ", ".join(change.get("fields") or ())
    return clean(f"{mark} {change['kind']} {change['id']}{': ' + fields if fields and mark == '~' else ''}")


@group(short_help="The broker's signing keys.")
def keys() -> None:
    """The broker's own signing keys; only their public halves ever leave it."""


@keys.command("ls")
def list_() -> None:
    """List them with their states."""
    rows = Api.of_operator(Context.current()).get("/v1/keys")
    Output.current().many(
        rows,
        [
            ("KID", "kid"),
            ("PURPOSE", "purpose"),
            ("STATE", "state"),
            ("PUBLISHED", lambda row: clock(row["published"])),
            ("ACTIVE SINCE", lambda row: clock(row["activated"])),
            ("RETIRED", lambda row: clock(row["retired"])),
        ],
        name="kid",
    )


@keys.command()
@click.option("--reason", required=True, metavar="TEXT", help="Why; recorded.")
def rotate(reason: str) -> None:
    """Sign with the next key from now on. Tokens of the old one stay good until they expire; `kill key` ends those."""
    body = Api.of_operator(Context.current()).post("/v1/keys/rotate", {"reason": reason})
    Output.current().one(body, human=lambda: f"Active now: {body['active']}", name=lambda: body["active"])


@keys.command()
@config_option
def reseal(config_path: Path | None) -> None:
    r"""Seal the private parts in the ledger with the sealing key that is configured now. Run it beside the ledger.

    Brokers may go on serving, if their configuration already has the new sealing key and still has the old one
    (previous_encryption_key_file, or the vault).

    \b
    Example:
      taskpass keys reseal --config /etc/taskpass/taskpass.toml
    """
    from broker.config import load_config
    from broker.keystore import reseal as reseal_keys
    from broker.stores import open_ledger

    config = load_config(config_path or configuration_file())
    with closing(open_ledger(config)) as ledger:
        kids = reseal_keys(config, ledger)
    sentence = f"Sealed {plural(len(kids), 'key')} anew" if kids else "Every key is sealed with the configured one"
    Output.current().one(
        {"resealed": kids, "seal": config.keys.seal}, human=lambda: sentence, name=lambda: "\n".join(kids)
    )
