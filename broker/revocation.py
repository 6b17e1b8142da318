"""Evidence of a kill: what it covers, what a dry run would end, and the receipt as it fills. Pure, over rows.

A receipt never claims more than was seen. "Applied" means that a verifier instance reported it; everyone else is
bounded by time: a strict verifier refuses by itself once it is staler than its declared bound, anything that does not
follow the feed accepts a covered token until it expires.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from broker.ledger.views import Expected, GrantRow, KillRow, LiveCount
from broker.model import Target
from broker.wire import Match

BEST_EFFORT = "best_effort"


@dataclass(frozen=True, slots=True)
class Covered:
    """The live credentials that a kill ends, counted."""

    counts: tuple[LiveCount, ...]

    @property
    def total(self) -> int:
        """How many."""
        return sum(each.count for each in self.counts)

    @property
    def latest_expiry(self) -> int | None:
        """When the last of them would have expired; None when there are none."""
        return max((each.latest_expiry for each in self.counts), default=None)

    def to_json(self) -> dict[str, Any]:
        """As shown in receipts and dry runs."""
        by_resource: Counter[str] = Counter()
        by_agent: Counter[str] = Counter()
        for each in self.counts:
            by_resource[each.resource] += each.count
            by_agent[each.agent] += each.count
        return {
            "tokens": self.total,
            "by_resource": dict(sorted(by_resource.items())),
            "by_agent": dict(sorted(by_agent.items())),
            "latest_expiry": self.latest_expiry,
        }


def claims_of(grant: GrantRow, grant_prefix: str) -> dict[str, Any]:
    """The claims of a grant's token that a kill compares: the same rule for receipts, introspection and verifiers."""
    return {
        "sub": grant.agent,
        "client_id": grant.agent,
        "task": grant.task,
        "aud": grant.audience,
        "jti": f"{grant_prefix}{grant.seq}",
        "seq": grant.seq,
    }


def kill_receipt(
    kill: KillRow,
    *,
    matches: Sequence[tuple[Match, str]],
    ended: Covered | None,
    expected: Sequence[Expected],
    max_life_ms: int,
    now: int,
    resumed: bool = False,
) -> dict[str, Any]:
    """The receipt of a committed kill at ledger time `now`.

    `ended` is None while its credentials are still being counted; until then the longest possible life bounds them.
    """
    latest = kill.at + max_life_ms if ended is None else ended.latest_expiry
    missing = [each for each in expected if each.acked_ms is None]
    applied = [each.acked_ms for each in expected if each.acked_ms is not None]
    bounds = [_bound(each, kill, latest) for each in missing]
    hard_bound = max([bound for bound in bounds if bound is not None], default=None)
    return {
        "id": kill.id,
        "position": kill.seq,
        "durable": True,
        "at": kill.at,
        "target": kill.target,
        "value": kill.value,
        "actor": kill.actor,
        "reason": kill.reason,
        "matches": [[kind.value, value] for kind, value in matches],
        "issuance": {
            "stopped": kill.hold is not None and not resumed,
            "stopped_at": kill.seq if kill.hold is not None else None,
            "hold": kill.hold,
            "final": kill.target in (Target.TASK, Target.GRANT, Target.KEY),
        },
        "ended": {**(ended.to_json() if ended else {"tokens": None}), "tasks": kill.tasks},
        "verifiers": {
            "expected": len(expected),
            "applied": len(applied),
            "slowest_ms": max(applied, default=None),
            "instances": [_instance(each, kill, latest) for each in expected],
            "missing": [each.instance for each in missing],
        },
        "complete": not missing and ended is not None,
        "worst_case": _worst_case(latest, expected, missing, hard_bound, now),
    }


def _instance(each: Expected, kill: KillRow, latest: int | None) -> dict[str, Any]:
    body: dict[str, Any] = {"instance": each.instance, "verifier": each.verifier, "mode": each.mode}
    if each.acked_ms is not None:
        return {**body, "state": "reported applied", "applied_ms": each.acked_ms, "acknowledged_at": each.acked_seq}
    return {**body, "state": "missing", "refuses_by": _bound(each, kill, latest)}


def _bound(each: Expected, kill: KillRow, latest: int | None) -> int | None:
    """By when a silent instance has stopped accepting; None when nothing unexpired was covered."""
    if latest is None:
        return None
    expiry = latest + each.leeway_ms
    return expiry if each.mode == BEST_EFFORT else min(expiry, kill.at + each.bound_ms)


def _worst_case(
    latest: int | None, expected: Sequence[Expected], missing: Sequence[Expected], hard_bound: int | None, now: int
) -> dict[str, Any]:
    """What may still happen, honestly: silent instances, and services that do not follow the feed at all."""
    if latest is None or latest <= now:
        return {"until": None, "sentence": "No covered credential is unexpired."}
    leeway = max((each.leeway_ms for each in expected), default=0)
    outside = latest + leeway
    parts = []
    if missing and hard_bound is not None:
        parts.append(f"{len(missing)} silent verifier(s) refuse by {_clock(hard_bound)}")
    parts.append(
        f"a service that does not follow the feed may accept until {_clock(outside)}, when the last token expires"
    )
    return {"until": outside, "silent_until": hard_bound, "sentence": "; ".join(parts) + "."}


def _clock(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%H:%M:%SZ")
