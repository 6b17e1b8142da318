"""`taskpass kill`, `kills` and `holds`."""

import sys
from pathlib import Path

import click

from broker.cli.api import Api, segment
from broker.cli.context import Context
from broker.cli.options import command, group
from broker.cli.output import Output
from broker.cli.receipts import kill_receipt, target_of
from broker.cli.stopping import operator_api, reason_given, stop, stopping_options
from broker.cli.text import clock, facts

TARGETS = ["agent", "task", "grant", "resource", "owner", "key", "all"]


@command(short_help="End credentials of an agent, task, resource, key, or all.")
@click.argument("target", type=click.Choice(TARGETS))
@click.argument("value", required=False)
@stopping_options
@click.option(
    "--hold/--no-hold",
    default=None,
    help="Whether new credentials are stopped too. Default: yes for agents, owners, resources and all.",
)
@click.option("--yes", is_flag=True, help="Do not ask; needed for `all` where nobody can be asked.")
def kill(
    target: str,
    value: str | None,
    reason: str | None,
    dry_run: bool,
    wait_s: float,
    break_glass_key: Path | None,
    break_glass_id: str,
    hold: bool | None,
    yes: bool,
) -> int:
    r"""End every credential of TARGET at once, and print the receipt when all verifiers have reported.

    What was issued until now is dead, for good. Agents, owners, resources and `all` are put on hold too, or they would
    mint again at once; kills of a task, a grant or a signing key are final by themselves.

    \b
    Examples:
      taskpass kill agent dispute-bot --dry-run
      taskpass kill agent dispute-bot --reason "credits to unknown invoices"
      taskpass kill task tsk_7f3a9c1e_1042 --reason "wrong customer"
      taskpass kill key <kid> --reason "key leaked"
      taskpass kill all --reason "incident 12" --yes
    """
    if (target == "all") != (value is None):
        raise click.UsageError("Name what to kill, e.g. `kill agent dispute-bot`; only `all` takes no name.")
    wanted = {
        "target": target,
        "value": value or "",
        "reason": reason_given(reason, dry_run=dry_run),
        "hold": hold,
        "dry_run": dry_run,
    }
    if target == "all" and not dry_run and not yes:
        _confirm_all()
    api = operator_api(Context.current(), break_glass_key, break_glass_id)
    return stop(api, "/v1/kills", wanted, wait_s=wait_s)


def _confirm_all() -> None:
    if not sys.stdin.isatty():
        raise click.UsageError("`kill all` ends every credential there is. Say --yes.")
    said = click.prompt("This ends every credential and stops all issuance. Type `all` to do it", err=True)
    if said.strip() != "all":
        raise click.Abort


@group(short_help="Past kills and their receipts.")
def kills() -> None:
    """Kills that were committed. Their receipts go on filling while verifiers report."""


@kills.command("ls")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True)
def list_kills(limit: int) -> None:
    """List them, newest first."""
    rows = Api.of_operator(Context.current()).get("/v1/kills", limit=limit)
    Output.current().many(
        rows,
        [
            ("KILL", "id"),
            ("AT", lambda row: clock(row["at"])),
            ("TARGET", target_of),
            ("BY", "actor"),
            ("REASON", "reason"),
        ],
    )


@kills.command()
@click.argument("kill_id", metavar="KILL")
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(0, 30),
    default=0,
    metavar="SECONDS",
    help="Wait so long for missing verifiers.",
)
def show(kill_id: str, wait_s: float) -> None:
    """Print the receipt of a kill as it stands now."""
    path, wait_ms = f"/v1/kills/{segment(kill_id)}", int(wait_s * 1000)
    body = Api.of_operator(Context.current()).get(path, timeout_s=wait_s + 10, wait_ms=wait_ms or None)
    Output.current().one(body, human=lambda: kill_receipt(body))


@group(short_help="Standing stops, and lifting them.")
def holds() -> None:
    """A hold stops issuance for an agent, a resource, an owner's agents or everything, until an operator lifts it."""


@holds.command("ls")
def list_holds() -> None:
    """List the standing ones."""
    rows = Api.of_operator(Context.current()).get("/v1/holds")
    Output.current().many(
        rows,
        [
            ("HOLD", "id"),
            ("ON", target_of),
            ("SINCE", lambda row: clock(row["placed"])),
            ("BY", "actor"),
            ("REASON", "reason"),
        ],
    )


@holds.command()
@click.argument("hold")
@click.option("--reason", required=True, metavar="TEXT", help="Why; recorded.")
def lift(hold: str, reason: str) -> None:
    """Lift one hold. Nothing that was killed revives."""
    body = Api.of_operator(Context.current()).post(f"/v1/holds/{segment(hold)}/lift", {"reason": reason})
    Output.current().one(body, human=lambda: "\n".join(facts([("lifted", hold)], indent=0)), name=lambda: hold)
