"""Evidence of a kill: what it covers, what a dry run would end, and the receipt as it fills. Pure, over rows.

A receipt never claims more than was seen. "Applied" means that a verifier instance reported it; everyone else is bounded
by time: a strict verifier refuses by itself once it is staler than its declared bound, anything that does not follow
the feed accepts a covered token until it expires.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from broker.ledger.views import Expected, GrantRow, KillRow
from broker.model import Target
from broker.wire import FeedKill, KillMap, Match

BEST_EFFORT = "best_effort"


@dataclass(slots=True)
class Covered:
    """Live credentials that a set of matches covers, counted."""

    total: int = 0
    by_resource: Counter[str] = field(default_factory=Counter)
    by_agent: Counter[str] = field(default_factory=Counter)
    audiences: Counter[str] = field(default_factory=Counter)
    latest_expiry: int | None = None

    def add(self, grant: GrantRow) -> None:
        """Count one."""
        self.total += 1
        self.by_resource[grant.resource] += 1
        self.by_agent[grant.agent] += 1
        self.audiences[grant.audience] += 1
        self.latest_expiry = max(self.latest_expiry or 0, grant.expires)

    def to_json(self) -> dict[str, Any]:
        """As shown in receipts and dry runs."""
        return {
            "tokens": self.total,
            "by_resource": dict(sorted(self.by_resource.items())),
            "by_agent": dict(sorted(self.by_agent.items())),
            "latest_expiry": self.latest_expiry,
        }


def covered(
    grants: Iterable[GrantRow], matches: Sequence[tuple[Match, str]], *, before: KillMap, grant_prefix: str
) -> Covered:
    """The grants that `matches` ends now: those that it covers and that no earlier kill in `before` had ended.

    `grant_prefix` is the prefix that makes a grant's id out of its position.
    """
    found = Covered()
    probe = KillMap()
    probe.apply(FeedKill(id="probe", seq=1 << 60, matches=tuple(matches)))
    for grant in grants:
        claims = claims_of(grant, grant_prefix)
        if probe.dead(claims, grant.kid) is not None and before.dead(claims, grant.kid) is None:
            found.add(grant)
    return found


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
    ended: Covered,
    expected: Sequence[Expected],
    now: int,
    resumed: bool = False,
) -> dict[str, Any]:
    """The receipt of a committed kill at ledger time `now`."""
    missing = [each for each in expected if each.acked_ms is None]
    applied = [each.acked_ms for each in expected if each.acked_ms is not None]
    bounds = [_bound(each, kill, ended) for each in missing]
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
        "ended": {**ended.to_json(), "tasks": kill.tasks},
        "verifiers": {
            "expected": len(expected),
            "applied": len(applied),
            "slowest_ms": max(applied, default=None),
            "instances": [_instance(each, kill, ended) for each in expected],
            "missing": [each.instance for each in missing],
        },
        "complete": not missing,
        "worst_case": _worst_case(ended, expected, missing, hard_bound, now),
    }


def _instance(each: Expected, kill: KillRow, ended: Covered) -> dict[str, Any]:
    body: dict[str, Any] = {"instance": each.instance, "verifier": each.verifier, "mode": each.mode}
    if each.acked_ms is not None:
        return {**body, "state": "reported applied", "applied_ms": each.acked_ms, "acknowledged_at": each.acked_seq}
    return {**body, "state": "missing", "refuses_by": _bound(each, kill, ended)}


def _bound(each: Expected, kill: KillRow, ended: Covered) -> int | None:
    """By when a silent instance has stopped accepting; None when nothing unexpired was covered."""
    if ended.latest_expiry is None:
        return None
    expiry = ended.latest_expiry + each.leeway_ms
    return expiry if each.mode == BEST_EFFORT else min(expiry, kill.at + each.bound_ms)


def _worst_case(
    ended: Covered, expected: Sequence[Expected], missing: Sequence[Expected], hard_bound: int | None, now: int
) -> dict[str, Any]:
    """What may still happen, honestly: silent instances, and services that do not follow the feed at all."""
    if ended.latest_expiry is None or ended.latest_expiry <= now:
        return {"until": None, "sentence": "No covered credential is unexpired."}
    leeway = max((each.leeway_ms for each in expected), default=0)
    outside = ended.latest_expiry + leeway
    parts = []
    if missing and hard_bound is not None:
        parts.append(f"{len(missing)} silent verifier(s) refuse by {_clock(hard_bound)}")
    parts.append(
        f"a service that does not follow the feed may accept until {_clock(outside)}, when the last token expires"
    )
    return {"until": outside, "silent_until": hard_bound, "sentence": "; ".join(parts) + "."}


def _clock(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%H:%M:%SZ")
