"""`taskpass agents`, `pause` and `resume`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from broker.cli.api import Api, segment
from broker.cli.context import Context
from broker.cli.options import command, group
from broker.cli.output import Output
from broker.cli.stopping import operator_api, reason_given, stop, stopping_options
from broker.cli.text import facts, plural


@command(short_help="Pause an agent: nothing more is issued, all it holds dies.")
@click.argument("agent")
@stopping_options
def pause(
    agent: str, reason: str | None, dry_run: bool, wait_s: float, break_glass_key: Path | None, break_glass_id: str
) -> int:
    r"""Pause AGENT: hold and kill in one ledger entry. Prints the receipt when all verifiers have reported.

    \b
    Examples:
      taskpass pause dispute-bot --dry-run
      taskpass pause dispute-bot --reason "credits to unknown invoices"
      taskpass pause dispute-bot --reason "incident 12" --break-glass-key break-glass.pem
    """
    body = {"reason": reason_given(reason, dry_run=dry_run), "dry_run": dry_run}
    api = operator_api(Context.current(), break_glass_key, break_glass_id)
    return stop(api, f"/v1/agents/{segment(agent)}/pause", body, wait_s=wait_s)


@command(short_help="Let a paused agent ask again. Nothing revives.")
@click.argument("agent")
@click.option("--reason", required=True, metavar="TEXT", help="Why; recorded.")
def resume(agent: str, reason: str) -> None:
    r"""Lift the holds on AGENT. What was killed stays dead: the agent opens new tasks and asks anew.

    \b
    Example:
      taskpass resume dispute-bot --reason "prompt fixed, reviewed by J. Doe"
    """
    body = Api.of_operator(Context.current()).post(f"/v1/agents/{segment(agent)}/resume", {"reason": reason})
    Output.current().one(body, human=lambda: _resumed(body), name=lambda: body["agent"])


def _resumed(body: Mapping[str, Any]) -> str:
    still = " ".join(body["still_held_by"])
    lines = facts([("lifted", " ".join(str(each) for each in body["lifted"])), ("STILL HELD BY", still)])
    return "\n".join([f"{body['agent']}: {'still held' if still else 'active'}", *lines])


@group(short_help="The registered agents: owner, state, what they hold.")
def agents() -> None:
    """The registered agents that you may see."""


@agents.command("ls")
def list_() -> None:
    """List them."""
    rows = Api.of_operator(Context.current()).get("/v1/agents")
    Output.current().many(
        rows,
        [
            ("AGENT", "id"),
            ("STATE", "state"),
            ("OWNER", "owner"),
            ("TOKENS", lambda row: str(row["live_tokens"])),
            ("TASKS", lambda row: str(row["open_tasks"])),
            ("REVIEW UNTIL", lambda row: (row.get("review") or {}).get("expires")),
            ("PURPOSE", "purpose"),
        ],
    )


@agents.command()
@click.argument("agent")
def show(agent: str) -> None:
    """Show one: what it is for, what it may reach, what it holds, what stops it."""
    body = Api.of_operator(Context.current()).get(f"/v1/agents/{segment(agent)}")
    Output.current().one(body, human=lambda: _text(body))


def _text(body: Mapping[str, Any]) -> str:
    review = body.get("review") or {}
    lines = facts(
        [
            ("state", body["state"]),
            ("owner", body["owner"]),
            ("purpose", body["purpose"]),
            ("workflow", body["workflow"]),
            *((f"may reach {resource}", " ".join(actions)) for resource, actions in body["boundary"].items()),
            ("reviewed by", f"{review['reviewer']}, holds until {review['expires']}" if review else "nobody"),
            ("holds now", f"{plural(body['live_tokens'], 'live token')}, {plural(body['open_tasks'], 'open task')}"),
            ("on hold by", " ".join(body["holds"])),
            *(("problem", problem) for problem in body["problems"]),
        ]
    )
    return "\n".join([body["id"], *lines])


agents.add_command(pause)
agents.add_command(resume)
