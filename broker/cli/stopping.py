"""What `pause` and `kill` share: who may stop things, and waiting until verifiers have reported."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from broker.cli.api import Api, segment
from broker.cli.context import Context
from broker.cli.errors import DONE, FAILED, Failure
from broker.cli.output import Output
from broker.cli.receipts import blast_radius, kill_receipt
from broker.sdk.identity import KeyIdentity
from broker.sdk.protocol import TIMEOUT_S

F = TypeVar("F", bound=Callable[..., Any])
_LONGEST_WAIT_MS = 30_000


def stopping_options(function: F) -> F:
    """`--reason`, `--dry-run`, `--wait`, and the break-glass key."""
    for option in (
        click.option(
            "--break-glass-id", default="break-glass", show_default=True, metavar="ID", help="The operator of that key."
        ),
        click.option(
            "--break-glass-key",
            type=click.Path(dir_okay=False, path_type=Path),
            metavar="FILE",
            help="Act with this key, without a session. Raises an alarm.",
        ),
        click.option(
            "--wait",
            "wait_s",
            type=click.FloatRange(0),
            default=10,
            show_default=True,
            metavar="SECONDS",
            help="How long to wait until every verifier has reported.",
        ),
        click.option("--dry-run", is_flag=True, help="Only show what would end."),
        click.option("--reason", metavar="TEXT", help="Why; part of the receipt. Required, but for a dry run."),
    ):
        function = option(function)
    return function


def operator_api(context: Context, key: Path | None, key_id: str) -> Api:
    """The operator's session, or the break-glass key."""
    if key is None:
        return Api.of_operator(context)
    return Api.of_key(context, KeyIdentity(client_id=key_id, key=key))


def reason_given(reason: str | None, *, dry_run: bool) -> str:
    """The reason. Raises a usage error without one."""
    if not reason and not dry_run:
        raise click.UsageError("Say why, with --reason: it is part of the receipt.")
    return reason or "dry run"


def stop(api: Api, path: str, body: Mapping[str, Any], *, wait_s: float) -> int:
    """Kill or pause, wait for the verifiers, print the receipt. Returns the exit code."""
    output = Output.current()
    answer = api.post(path, body)
    if answer.get("dry_run"):
        output.one(answer, human=lambda: blast_radius(answer), name=lambda: answer["value"])
        return DONE
    receipt = _waited(api, answer, wait_s)
    output.one(receipt, human=lambda: kill_receipt(receipt))
    if not receipt.get("durable", True):
        output.note("The kill is in force at this broker, but not yet durable.")
        return FAILED
    if not receipt["complete"]:
        output.note(f"The receipt is not complete yet; it goes on filling: taskpass kills show {receipt['id']}")
    return DONE


def _waited(api: Api, receipt: dict[str, Any], wait_s: float) -> dict[str, Any]:
    """The receipt once it is complete, or as it stands after that time. The kill is done: asking how it fares must not
    fail it.
    """
    until = time.monotonic() + wait_s
    while not receipt["complete"] and (left := until - time.monotonic()) > 0:
        wait_ms = min(int(left * 1000) + 1, _LONGEST_WAIT_MS)
        path = f"/v1/kills/{segment(receipt['id'])}"
        try:
            receipt = api.get(path, timeout_s=wait_ms / 1000 + TIMEOUT_S, wait_ms=wait_ms)
        except Failure as failure:
            Output.current().note(
                f"The receipt as of the kill: how it stands now could not be asked ({failure.message})"
            )
            break
    return receipt
