"""`taskpass task`: the life of a task, and its receipt."""

import click

from broker.cli.api import Api, segment
from broker.cli.asking import trigger_option
from broker.cli.context import Context
from broker.cli.options import group
from broker.cli.output import Output
from broker.cli.stories import task_facts, task_receipt
from broker.cli.text import clock


@group(short_help="Open, follow and end tasks; their receipts.")
def task() -> None:
    r"""A task is one piece of work; it owns every credential issued under it, and they die with it.

    \b
    Example:
      TASK=$(taskpass task open --purpose "Answer dispute 4711" -o name)
      taskpass token https://invoices.example.com --task $TASK
      taskpass task end $TASK
    """


@task.command("open")
@click.option("--purpose", required=True, metavar="TEXT", help="What it is for, in a sentence. Kept erasably.")
@trigger_option
@click.option("--trigger-ref", metavar="TEXT", help="Which one, e.g. a ticket. Kept erasably.")
@click.option("--on-behalf-of", metavar="WHO", help="For whom. Kept erasably.")
@click.option("--deadline", type=click.IntRange(1), metavar="SECONDS", help="It is over after so long.")
@click.option(
    "--heartbeat",
    type=click.IntRange(1, 3600),
    metavar="SECONDS",
    help="It is over when no heartbeat comes for so long.",
)
@click.option("--parent", metavar="ID", help="The task that this one is a part of; it never outlives it.")
def open_(
    purpose: str,
    trigger: str,
    trigger_ref: str | None,
    on_behalf_of: str | None,
    deadline: int | None,
    heartbeat: int | None,
    parent: str | None,
) -> None:
    """Open a task."""
    cause = {"kind": trigger, "ref": trigger_ref} if trigger_ref else {"kind": trigger}
    wish = {
        "purpose": purpose,
        "trigger": cause,
        "on_behalf_of": on_behalf_of,
        "deadline_seconds": deadline,
        "heartbeat_seconds": heartbeat,
        "parent": parent,
    }
    body = Api.of_workload(Context.current()).post("/v1/tasks", wish)
    Output.current().one(body, human=lambda: task_facts(body))


@task.command("ls")
@click.option("--agent", metavar="ID", help="Of this agent only (operators).")
@click.option("--state", type=click.Choice(["active", "ended", "expired", "killed"]), help="In this state only.")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True)
def list_(agent: str | None, state: str | None, limit: int) -> None:
    """List tasks, newest first: an agent's own, or all that an operator may see."""
    rows = Api.of_anyone(Context.current()).get("/v1/tasks", agent=agent, state=state, limit=limit)
    Output.current().many(
        rows,
        [
            ("TASK", "id"),
            ("AGENT", "agent"),
            ("STATE", "state"),
            ("OPENED", lambda row: clock(row["opened"])),
            ("UNTIL", lambda row: clock(row.get("ended") or row["deadline"])),
            ("PURPOSE (AGENT SAYS)", "purpose"),
        ],
    )


@task.command()
@click.argument("task_id", metavar="TASK")
def show(task_id: str) -> None:
    """Show one task."""
    body = Api.of_anyone(Context.current()).get(f"/v1/tasks/{segment(task_id)}")
    Output.current().one(body, human=lambda: task_facts(body))


@task.command()
@click.argument("task_id", metavar="TASK")
def heartbeat(task_id: str) -> None:
    """Say that the task's worker is alive. Prints until when the next one is due."""
    body = Api.of_workload(Context.current()).post(f"/v1/tasks/{segment(task_id)}/heartbeat")
    Output.current().one(
        body, human=lambda: f"{body['id']}  {body['state']}, next heartbeat before {clock(body['next_before'])}"
    )


@task.command()
@click.argument("task_id", metavar="TASK")
@click.option("--outcome", default="completed", show_default=True, metavar="TEXT", help="How it went.")
def end(task_id: str, outcome: str) -> None:
    """End a task, and with it every credential under it. Ending one that is over changes nothing."""
    body = Api.of_workload(Context.current()).post(f"/v1/tasks/{segment(task_id)}/end", {"outcome": outcome})
    Output.current().one(body, human=lambda: task_facts(body))


@task.command()
@click.argument("task_id", metavar="TASK")
def receipt(task_id: str) -> None:
    """The story of a task, from the ledger: trigger, requests, decisions, credentials, what ended them."""
    body = Api.of_anyone(Context.current()).get(f"/v1/tasks/{segment(task_id)}/receipt")
    Output.current().one(body, human=lambda: task_receipt(body), name=lambda: body["task"])
