"""What is asked for, as options: shared by the commands that get credentials."""

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from broker.cli.errors import USAGE, Failure
from broker.sdk.protocol import Ask, Credential

F = TypeVar("F", bound=Callable[..., Any])
DETAILS_TYPE = "task_action"

_param_option = click.option(
    "--param",
    "params",
    multiple=True,
    metavar="NAME=VALUE",
    help="A parameter of the actions; repeatable. 12, true and false are typed; text may be quoted.",
)

trigger_option = click.option(
    "--trigger",
    type=click.Choice(["user", "schedule", "webhook", "agent", "manual"]),
    default="manual",
    show_default=True,
    help="What started it.",
)
"""For commands that open a task."""


def asking_options(function: F) -> F:
    """`--scope`, `--action`, `--param`."""
    for option in (
        _param_option,
        click.option(
            "--action", "actions", multiple=True, metavar="ID", help="Same as --scope, sent as authorization_details."
        ),
        click.option(
            "--scope", "scopes", multiple=True, metavar="ID", help="An action, e.g. invoices:read; repeatable."
        ),
    ):
        function = option(function)
    return function


def secret_options(function: F) -> F:
    """`--param`, `--task` and `--ttl`, as every command takes them that gets a secret."""
    for option in (
        click.option("--ttl", type=click.IntRange(1), metavar="SECONDS", help="For so long at most."),
        click.option(
            "--task",
            metavar="ID",
            envvar="TASKPASS_TASK",
            show_envvar=True,
            help="The task that it is for. Without one: a task of its own, for this secret only.",
        ),
        _param_option,
    ):
        function = option(function)
    return function


def ask_of(
    resource: str, *, scopes: Sequence[str], actions: Sequence[str], params: Sequence[str], task: str | None
) -> Ask:
    """The request. Parameters travel in `authorization_details`, and so do the actions they belong to."""
    named = [each for text in scopes for each in text.split()]
    if not params and not actions:
        return Ask.of(resource, scope=named, task=task)
    if not actions and not named:
        raise Failure("usage", "--param needs the --scope or --action that it belongs to.", exit_code=USAGE)
    details: dict[str, Any] = {"type": DETAILS_TYPE, "actions": list(dict.fromkeys([*actions, *named]))}
    if params:
        details["parameters"] = parameters_of(params)
    return Ask.of(resource, scope=named, authorization_details=[details], task=task)


def parameters_of(params: Sequence[str]) -> dict[str, str | int | bool]:
    """What `--param` says, typed."""
    return dict(_parameter(text) for text in params)


def _parameter(text: str) -> tuple[str, str | int | bool]:
    name, equals, raw = text.partition("=")
    if not name or not equals:
        raise Failure("usage", f"--param {text!r}: write NAME=VALUE.", exit_code=USAGE)
    try:
        value = json.loads(raw)
    except ValueError:
        return name, raw
    return name, value if isinstance(value, str | int) else raw


def credential_json(credential: Credential) -> dict[str, Any]:
    """All that was granted, the token included."""
    body: dict[str, Any] = {
        "access_token": credential.token,
        "token_type": "Bearer",
        "expires_in": credential.expires_in,
        "resource": credential.resource,
        "scope": " ".join(credential.scope),
        "authorization_details": list(credential.authorization_details),
        "task": credential.task,
        "decision_id": credential.decision_id,
    }
    return {name: value for name, value in body.items() if value not in (None, "", [])}
