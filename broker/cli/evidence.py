"""`taskpass explain` and `taskpass approvals`."""

import click

from broker.cli.api import Api, segment
from broker.cli.context import Context
from broker.cli.options import command, group
from broker.cli.output import Output
from broker.cli.stories import approval_facts, explanation, request_line
from broker.cli.text import clock


@command(short_help="Explain a decision: asked, decided, issued, what followed.")
@click.argument("decision")
def explain(decision: str) -> None:
    r"""Explain DECISION (the id that every answer carries): who asked for what, what was decided and by which policies,
    what was issued, and how that stands now.

    \b
    Example:
      taskpass explain dec_7f3a9c1e_1042
    """
    body = Api.of_anyone(Context.current()).get(f"/v1/decisions/{segment(decision)}")
    Output.current().one(body, human=lambda: explanation(body), name=lambda: body["decision_id"])


@group(short_help="Requests that wait for a person.")
def approvals() -> None:
    """Requests that a gate has stopped until a person decides. Agents see their own, operators those in their scope."""


@approvals.command("ls")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True)
def list_(limit: int) -> None:
    """List them, newest first."""
    rows = Api.of_anyone(Context.current()).get("/v1/approvals", limit=limit)
    Output.current().many(
        rows,
        [
            ("APPROVAL", "id"),
            ("STATE", "state"),
            ("AGENT", "agent"),
            ("ASKED", lambda row: request_line(row.get("request"))),
            ("GATES", lambda row: " ".join(gate["id"] for gate in row.get("gates") or ())),
            ("EXPIRES", lambda row: clock(row["expires"])),
        ],
    )


@approvals.command()
@click.argument("approval")
def show(approval: str) -> None:
    """Show one, with exactly what would be approved."""
    body = Api.of_anyone(Context.current()).get(f"/v1/approvals/{segment(approval)}")
    Output.current().one(body, human=lambda: approval_facts(body))
