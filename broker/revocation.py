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

from broker.ledger.commands.credentials import EXPIRES_ONLY
from broker.ledger.external_views import External, ExternalRow
from broker.ledger.views import Expected, GrantRow, KillRow, LiveCount
from broker.model import GrantState, Target
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


def external_receipt(external: External) -> dict[str, Any]:
    """Credentials at backends, counted by what is known of them. `confirmed`: a look at the backend found them gone.

    Nothing that was made is left out: `live` were not ended, and what cannot be taken back says until when it works.
    Each that needs a human comes with the next step. What was archived is not counted, and that is said: it was gone.
    """
    waiting = [each for each in external.counts if not each.gone and each.state in _ENDING]
    only_expire = [each for each in waiting if each.ending == EXPIRES_ONLY]
    taken_back = [each for each in waiting if each.ending != EXPIRES_ONLY]
    live = sum(each.count for each in external.counts if each.state in _HELD)
    pending = sum(each.count for each in taken_back if each.state is GrantState.REVOKING)
    stuck = sum(each.count for each in taken_back if each.state is GrantState.STUCK)
    by_issuer: Counter[str] = Counter()
    for each in external.counts:
        by_issuer[each.issuer] += each.count
    told: dict[str, Any] = {"counted_from": external.counted_from} if external.counted_from else {}
    return told | {
        "made": external.total,
        "live": live,
        "ended": external.total - live,
        "confirmed": sum(each.count for each in external.counts if each.gone),
        "pending": pending,
        "stuck": stuck,
        "stuck_grants": [_stuck(row) for row in external.stuck],
        "expires_only": sum(each.count for each in only_expire),
        "expires_only_until": max((each.latest_expiry for each in only_expire), default=None),
        "by_issuer": dict(sorted(by_issuer.items())),
        "notes": list(external.notes),
        "complete": not pending and not stuck,
    }


_HELD = frozenset({GrantState.ISSUING, GrantState.LIVE})
_ENDING = frozenset({GrantState.REVOKING, GrantState.STUCK})


def _stuck(row: ExternalRow) -> dict[str, Any]:
    return {
        "position": row.seq,
        "issuer": row.issuer,
        "handle": dict(row.handle),
        "tries": row.tries,
        "problem": row.problem,
        "next": f"Mend the backend of issuer {row.issuer}: the broker keeps trying. Or end it there by its handle: the"
        f" next look confirms it. If the backend keeps to it, it expires at {_clock(row.expires)}.",
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
    external: External,
    max_life_ms: int,
    now: int,
    resumed: bool = False,
) -> dict[str, Any]:
    """The receipt of a committed kill at ledger time `now`.

    `ended` is None while its credentials are still being counted; until then the longest possible life bounds them.
    """
    backends = external_receipt(external)
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
        "external": backends,
        "verifiers": {
            "expected": len(expected),
            "applied": len(applied),
            "slowest_ms": max(applied, default=None),
            "instances": [_instance(each, kill, latest) for each in expected],
            "missing": [each.instance for each in missing],
        },
        "complete": not missing and ended is not None and backends["complete"],
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
