"""`taskpass whoami`."""

from collections.abc import Mapping
from typing import Any

from broker.cli.api import Api
from broker.cli.context import Context
from broker.cli.options import command
from broker.cli.output import Output
from broker.cli.text import facts


@command(short_help="Show who the broker takes you for.")
def whoami() -> None:
    r"""Prove your identity and show who the broker takes you for: which agent, verifier or operator, and what stands.

    \b
    Example:
      taskpass whoami --token-file /var/run/secrets/taskpass/token
    """
    body = Api.of_anyone(Context.current()).get("/v1/whoami")
    Output.current().one(body, human=lambda: _text(body))


def _text(body: Mapping[str, Any]) -> str:
    workload = body.get("workload") or {}
    boundary = body.get("boundary") or {}
    review = body.get("review") or {}
    lines = facts(
        [
            ("state", body.get("state")),
            ("name", body.get("name")),
            ("workload", f"{workload['subject']} (vouched for by {workload['trust']})" if workload else None),
            ("owner", body.get("owner")),
            ("purpose", body.get("purpose")),
            ("boundary", "; ".join(f"{resource}: {' '.join(actions)}" for resource, actions in boundary.items())),
            ("reviewed", f"by {review['reviewer']}, holds until {review['expires']}" if review else None),
            ("audiences", " ".join(body.get("audiences") or ())),
            ("rights", " ".join(body.get("rights") or ())),
            ("scope", _scope(body.get("owners"))),
            ("holds", " ".join(body.get("holds") or ())),
            *(("problem", problem) for problem in body.get("problems") or ()),
            (
                "holds now",
                f"{body['live_tokens']} live tokens, {body['open_tasks']} open tasks"
                if "live_tokens" in body
                else None,
            ),
        ]
    )
    return "\n".join([f"{body['kind']} {body['id']}", *lines])


def _scope(owners: object) -> str | None:
    if owners is None:
        return None
    return (
        "all owners"
        if owners == "all"
        else " ".join(str(owner) for owner in owners)
        if isinstance(owners, list)
        else None
    )
