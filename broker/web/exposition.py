"""What `/metrics` answers: what the processes of this broker counted, and the facts of this moment."""

import os
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from prometheus_client import Metric, generate_latest
from prometheus_client.registry import Collector

from broker.ledger import Head, Ledger, LedgerUnavailable, Now, Reader, gauges, views
from broker.ledger.external_views import external_figures
from broker.registry import Registry
from broker.rules import Rules, RulesInForce
from broker.telemetry.catalogue import CATALOGUE
from broker.telemetry.metrics import Metrics
from broker.telemetry.reports import Merged, Reports
from broker.web.feed import Feed
from broker.web.provisional import ProvisionalKills
from broker.web.readiness import Readiness

_HOUR_MS, _SILENT_MS = 3_600_000, 600_000

Fact = tuple[str, float, dict[str, str]]
"""Name without its prefix, value, labels."""


class Exposition:
    """One control process's answer to a scrape. Called on a thread of its own."""

    def __init__(self, *, process: str, metrics: Metrics, reports: Reports, facts: "Facts", now: Now) -> None:
        self._process = process
        self._metrics = metrics
        self._reports = reports
        self._facts = facts
        self._now = now

    def __call__(self) -> bytes:
        """The text that Prometheus reads."""
        others = [each for each in self._reports.read(self._now() / 1000) if each[0] != self._process]
        counted = [(self._process, self._metrics.collect()), *((name, found) for name, _, found in others)]
        ages = [("process_report_age_seconds", age, {"process": name}) for name, age, _ in others]
        return generate_latest(_Everything(Merged(counted), [*self._facts.read(), *ages]))


class Facts:
    """What can be read at any moment from the ledger, the rules and this process. `now` is the host's clock."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        rules: RulesInForce,
        feed: Feed,
        provisional: ProvisionalKills,
        readiness: Readiness,
        state: Path,
        version: str,
        now: Now,
    ) -> None:
        self._ledger = ledger
        self._rules = rules
        self._feed = feed
        self._provisional = provisional
        self._readiness = readiness
        self._state = state
        self._version = version
        self._now = now
        self._since: dict[str, tuple[str, int]] = {}  # kind of rules -> hash in force, and since when

    def read(self) -> list[Fact]:
        """Every fact that can be known now; those of a ledger that cannot be read are missing."""
        reasons = self._readiness.reasons()
        facts: list[Fact] = [
            ("ready", float(all(reason.degrades for reason in reasons)), {}),
            *(("degraded" if each.degrades else "not_ready", 1.0, {"code": each.code}) for each in reasons),
            ("build", 1.0, {"version": self._version}),
            ("provisional_kills", len(self._provisional), {}),
        ]
        try:
            disk = os.statvfs(self._state)
            facts.append(("state_disk_free_bytes", disk.f_bavail * disk.f_frsize, {}))
            with self._ledger.read() as r:
                facts += self._of_ledger(r)
                facts += self._of_rules(r.head())
        except (OSError, LedgerUnavailable):
            pass
        return facts

    def _of_ledger(self, r: Reader) -> Iterator[Fact]:
        head, now = r.head(), max(r.head().time, self._now())
        yield "ledger_position", head.size - 1, {}
        yield "ledger_lag_positions", max(0, head.size - 1 - self._feed.position), {}
        yield "clock_behind_ledger_seconds", max(0, head.time - self._now()) / 1000, {}
        yield "issuance_stopped", float(bool(head.issuance_stopped)), {}
        found = gauges.counts(r, kills_since=now - _HOUR_MS)
        yield "holds_standing", found.holds, {}
        yield "tasks_open", found.tasks, {}
        yield "approvals_pending", found.approvals, {}
        yield "kills_unacknowledged", found.kills, {}
        yield "acknowledgements_missing", found.acknowledgements, {}
        for (issuer, state), count in external_figures(r).items():
            yield "secrets_at_backends", count, {"issuer": issuer, "state": state}
        yield from _of_verifiers(views.instances(r, since=now - _SILENT_MS), head, now)
        for key in views.keys(r):
            if key.state == "active":
                age_ms = now - (key.activated or key.published)
                yield "signing_key_age_seconds", max(0, age_ms) / 1000, {"purpose": key.purpose}

    def _of_rules(self, head: Head) -> Iterator[Fact]:
        rules = self._rules.loaded
        if rules is None:
            return
        behind = (rules.registry_hash, rules.policy_hash) != (head.registry_hash, head.policy_hash)
        yield "rules_behind", float(behind), {}
        yield "policy_bundle_age_seconds", self._age("policies", rules.policy_hash), {}
        yield "registry_age_seconds", self._age("registry", rules.registry_hash), {}
        yield from _of_agents(rules, self._now())

    def _age(self, kind: str, hash_: str) -> float:
        now = self._now()
        known, since = self._since.get(kind, ("", now))
        if known != hash_:
            since = now
            self._since[kind] = (hash_, now)
        return max(0, now - since) / 1000


def _of_verifiers(rows: Sequence[views.InstanceRow], head: Head, now: int) -> Iterator[Fact]:
    connected: dict[tuple[str, str], int] = {}
    silent: dict[str, int] = dict.fromkeys((row.verifier for row in rows), 0)
    lag: dict[str, int] = {}
    for row in rows:
        if row.last_contact + row.bound_ms >= now:
            connected[row.verifier, row.mode] = connected.get((row.verifier, row.mode), 0) + 1
            lag[row.verifier] = max(lag.get(row.verifier, 0), head.size - 1 - row.position)
        else:
            silent[row.verifier] += 1
    for (verifier, mode), count in connected.items():
        yield "verifiers_connected", count, {"verifier": verifier, "mode": mode}
    for verifier, count in silent.items():
        yield "verifiers_silent", count, {"verifier": verifier}
    for verifier, positions in lag.items():
        yield "verifier_lag_positions", positions, {"verifier": verifier}


def _of_agents(rules: Rules, now: int) -> Iterator[Fact]:
    registry: Registry = rules.registry
    live = [agent for agent in registry.agents.values() if not agent.retired]
    yield "agents_blocked", sum(bool(registry.agent_problems(agent, now)) for agent in live), {}
    ends = [_end_of(agent.review.expires) - now / 1000 for agent in live if agent.review is not None]
    upcoming = [seconds for seconds in ends if seconds >= 0]
    if upcoming:
        yield "review_expiry_seconds", min(upcoming), {}


def _end_of(day: str) -> float:
    """The end of an ISO day in UTC, seconds since the epoch."""
    return (datetime.fromisoformat(day).replace(tzinfo=UTC) + timedelta(days=1)).timestamp()


class _Everything(Collector):
    def __init__(self, counted: Merged, facts: Iterable[Fact]) -> None:
        self._counted = counted
        self._facts = facts

    def collect(self) -> Iterator[Metric]:
        yield from self._counted.collect()
        families: dict[str, Metric] = {}
        for name, value, labels in self._facts:
            metric = CATALOGUE[f"taskpass_{name}"]
            family = families.setdefault(metric.name, Metric(metric.name, metric.meaning, metric.kind))
            family.add_sample(metric.name, labels, value)
        yield from families.values()
