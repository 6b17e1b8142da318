"""Kills as text for people: what a dry run would end, and the receipt of what was ended."""

from collections.abc import Mapping
from typing import Any

from broker.cli.text import clean, clock, facts, moment, plural

Body = Mapping[str, Any]


def target_of(body: Body) -> str:
    """What is killed, e.g. `agent dispute-bot`."""
    return f"{body['target']} {body['value']}".strip() if body["target"] != "all" else "everything"


def kill_receipt(body: Body) -> str:
    """The receipt of a kill as far as it is filled."""
    if not body.get("durable", True):
        return _provisional(body)
    lines = facts(
        [
            ("reason", body["reason"]),
            ("committed", f"{moment(body['at'])} at position {body['position']}, by {body['actor']}"),
            ("issuance", _issuance(body["issuance"])),
            ("ended", _ended(body["ended"])),
            *_backends(body.get("external", {})),
            ("verifiers", _verifiers(body["verifiers"])),
            ("bound", body["worst_case"]["sentence"]),
        ]
    )
    lines[-1:-1] = [f"{'':13}{clean(_instance(each))}" for each in body["verifiers"]["instances"]]
    return "\n".join([f"{body['id']}: killed {clean(target_of(body))}", *lines])


def _issuance(issuance: Body) -> str:
    if issuance["stopped"]:
        return f"stopped at position {issuance['stopped_at']} (hold {issuance['hold']})"
    if issuance["stopped_at"] is not None:
        return f"was stopped at position {issuance['stopped_at']}; the hold {issuance['hold']} has been lifted since"
    return "final: nothing can be issued for it again" if issuance["final"] else "not stopped: no hold was asked for"


def _ended(ended: Body) -> str:
    if ended["tokens"] is None:
        return f"{plural(ended['tasks'], 'task')}; its tokens are still being counted"
    if not ended["tokens"] and not ended["tasks"]:
        return "nothing was live"
    resources = ", ".join(f"{count} for {resource}" for resource, count in ended["by_resource"].items())
    parts = [plural(ended["tokens"], "token") + (f" ({resources})" if resources else "")]
    if ended["tasks"]:
        parts.append(plural(ended["tasks"], "task"))
    if ended.get("latest_expiry"):
        parts.append(f"the last would have lived until {clock(ended['latest_expiry'])}")
    return ", ".join(parts)


def _backends(external: Body) -> list[tuple[str, object]]:
    """What became of credentials at backends: one line for all, and one for each that needs a human."""
    counted = external.get("counted_from")
    archived = (
        [("archive", f"secrets issued before position {counted} were gone, and are not counted")] if counted else []
    )
    if not external.get("made"):
        return [*archived]
    parts = [f"{external['confirmed']} of {external['made']} confirmed gone"]
    parts += [f"{external[name]} {name}" for name in ("pending", "stuck", "live") if external[name]]
    if external["expires_only"]:
        until = clock(external["expires_only_until"])
        parts.append(f"{external['expires_only']} cannot be taken back and work until {until} at the latest")
    lines: list[tuple[str, object]] = [("backends", ", ".join(parts))]
    lines += [("stuck", f"{each['issuer']}: {each['problem']} {each['next']}") for each in external["stuck_grants"]]
    return lines + archived + [("note", note) for note in external["notes"]]


def _verifiers(verifiers: Body) -> str:
    if not verifiers["expected"]:
        return "none was connected"
    told = f"{verifiers['applied']} of {verifiers['expected']} reported applied"
    return told if verifiers["slowest_ms"] is None else f"{told}, the slowest after {verifiers['slowest_ms']} ms"


def _instance(each: Body) -> str:
    who = f"{each['verifier']} {each['instance']} ({each['mode'].replace('_', ' ')})"
    if each["state"] == "missing":
        until = each.get("refuses_by")
        return f"{who}: MISSING, {'nothing covered is unexpired' if until is None else 'refuses by ' + clock(until)}"
    return f"{who}: reported applied after {each['applied_ms']} ms, on record at position {each['acknowledged_at']}"


def _provisional(body: Body) -> str:
    """A kill that the ledger could not take yet."""
    lines = facts(
        [
            ("reason", body["reason"]),
            ("in force", f"since {moment(body['at'])}, at this broker, by {body['actor']}"),
            ("kept in", "reserved space, until the ledger takes it" if body["spooled"] else "memory only"),
            ("note", body["sentence"]),
        ]
    )
    return "\n".join([f"{body['id']}: NOT YET DURABLE: killing {clean(target_of(body))}", *lines])


def blast_radius(body: Body) -> str:
    """What a kill would end: held now, and within reach."""
    would = body["would_end"]
    pairs: list[tuple[str, object]] = [
        ("would end", _ended(would)),
        ("would hold", "yes: nothing more is issued until the hold is lifted" if body["would_hold"] else "no"),
        ("holds standing", " ".join(body["holds_standing"])),
        ("verifiers", f"{body['verifiers_connected']} connected"),
    ]
    for agent, reach in body["agents"].items():
        text = " ".join(reach["actions"]) or "nothing"
        if reach["data_classes"]:
            outside = "; leaves the boundary" if reach["leaves_boundary"] else ""
            text += f" (data: {', '.join(reach['data_classes'])}{outside})"
        pairs.append((f"{agent} can reach", text))
    return "\n".join([f"Dry run, nothing was done: kill {clean(target_of(body))}", *facts(pairs)])
