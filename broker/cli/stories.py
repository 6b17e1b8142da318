"""What the ledger tells about tasks, decisions and approvals, as text for people."""

from collections.abc import Mapping
from typing import Any

from broker.cli.text import assigned, clean, clock, facts, moment

Body = Mapping[str, Any]


def task_facts(body: Body) -> str:
    """One task."""
    heartbeat = body.get("heartbeat_seconds")
    lines = facts(
        [
            ("agent", body.get("agent")),
            ("state", body.get("state")),
            ("agent says", body.get("purpose")),
            ("trigger", body.get("trigger")),
            ("on behalf of", body.get("on_behalf_of")),
            ("parent", body.get("parent")),
            ("opened", _at(body, "opened", "opened_seq")),
            ("deadline", moment(body["deadline"]) if body.get("deadline") else None),
            ("heartbeat", f"every {heartbeat} s" if heartbeat else None),
            ("ended", _at(body, "ended", "ended_seq")),
        ]
    )
    return "\n".join([str(body["id"]), *lines])


def _at(body: Body, time: str, position: str) -> str | None:
    return f"{moment(body[time])} at position {body[position]}" if body.get(time) else None


def task_receipt(body: Body) -> str:
    """The receipt of a task: what is known about it, then its events in order."""
    trigger = body.get("trigger")
    if isinstance(trigger, Mapping):
        trigger = " ".join(str(part) for part in (trigger.get("kind"), trigger.get("ref")) if part)
    head = facts(
        [
            ("agent", f"{body['agent']} (owner {body['owner']})" if body.get("owner") else body["agent"]),
            ("state", body.get("state")),
            ("trigger", trigger),
            ("agent says", body.get("purpose")),
            ("on behalf of", body.get("on_behalf_of")),
            ("opened", moment(body.get("opened"))),
            ("deadline", moment(body["deadline"]) if body.get("deadline") else None),
            ("ended", moment(body["ended"]) if body.get("ended") else None),
            ("ledger", f"epoch {body['head']['epoch']}, {body['head']['size']} events" if "head" in body else None),
        ]
    )
    lines = [f"Receipt of task {body['task']}", *head]
    for event in body.get("events", ()):
        lines += ["", *_event(event)]
    return "\n".join(lines)


def explanation(body: Body) -> str:
    """One decision and what came of it."""
    return "\n".join(_event(body))


def _event(event: Body) -> list[str]:
    """An event: a headline, and the facts that it has."""
    name = str(event.get("decision_id") or event.get("kill") or event.get("task") or "")
    kind = str(event["type"])
    lines = [f"{clock(event['at'])}  position {event['position']}  {kind}  {clean(name)}"]
    known: list[tuple[str, object]] = [
        ("agent", event.get("agent")),
        ("workload", _workload(event.get("workload"))),
        ("task", event.get("task")),
        ("asked", _asked(event)),
        ("decided", _decided(event)),
        ("why", event.get("why") or (event.get("reason") if kind in ("refused", "killed") else None)),
        ("ended by", event.get("reason") if kind.startswith("task.") else None),
        ("approval", event.get("approval")),
        ("rules", _rules(event)),
        ("issued", _issued(event) if kind == "issued" else None),
        ("now", _standing(event.get("after"))),
        ("by", event.get("actor")),
    ]
    return [*lines, *facts(known)]


def _workload(workload: object) -> str | None:
    if not isinstance(workload, Mapping):
        return None
    return f"{workload.get('subject')} (vouched for by {workload.get('trust')}, {workload.get('issuer')})"


def _asked(event: Body) -> str | None:
    if not event.get("actions"):
        return str(event["resource"]) if event.get("resource") else None
    asked = f"{' '.join(event['actions'])} on {event.get('resource')}"
    parameters = event.get("parameters")
    return f"{asked} with {assigned(parameters)}" if parameters else asked


def _decided(event: Body) -> str | None:
    outcome = event.get("outcome")
    if outcome is None:
        return None
    policies = event.get("policies") or []
    return f"{outcome} by {', '.join(policies)}" if policies else f"{outcome}: no policy permits it"


def _rules(event: Body) -> str | None:
    if not event.get("bundle"):
        return None
    return f"policies {str(event['bundle'])[:12]}, registry {str(event.get('registry'))[:12]}"


def _issued(event: Body) -> str:
    return f"{event['jti']} until {clock(event['exp'] * 1000)} (key {event['kid']})"


def _standing(after: object) -> str | None:
    if not isinstance(after, Mapping):
        return None
    if after.get("state") == "revoked" and "by" in after:
        return f"revoked by {after['by']} at {clock(after['at'])}: {after['reason']}"
    if "gone_at" in after:
        return f"{after['state']}; seen gone at its backend at {after['gone_at']}, position {after['gone_seq']}"
    return f"{after['state']} (until {clock(after['until'])})" if "until" in after else str(after.get("state"))


def approval_facts(body: Body) -> str:
    """One request that waits for a person."""
    request = body.get("request") or {}
    lines = facts(
        [
            ("state", body.get("state")),
            ("agent", body.get("agent")),
            ("task", body.get("task")),
            ("asked", request_line(request)),
            *(("gate", _gate(gate)) for gate in body.get("gates") or ()),
            ("requested", f"{moment(body['requested'])} at position {body['position']}"),
            ("expires", moment(body["expires"])),
            ("digest", body.get("digest")),
        ]
    )
    return "\n".join([str(body["id"]), *lines])


def request_line(request: object) -> str:
    """What exactly would be approved."""
    if not isinstance(request, Mapping):
        return clean(request)
    parameters = request.get("parameters")
    asked = f"{' '.join(request.get('actions') or ())} on {request.get('resource')}"
    return f"{asked} with {assigned(dict(parameters))}" if parameters else asked


def _gate(gate: Mapping[str, Any]) -> str:
    return f"{gate.get('id')}: {gate.get('approvers')}{' - ' + str(gate['reason']) if gate.get('reason') else ''}"
