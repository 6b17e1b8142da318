"""Every metric there is: the documentation's table is made from it, dashboards and alerts are held against it.

A label's values are the broker's own words, ids of the registry or names of its processes, so that no stranger can make
new series.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_MANY = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: its name as it is scraped (counters without `_total`), what it says, and who tells it.

    A `live` one is a fact read when somebody asks, by the control process; any other is counted in every process.
    """

    name: str
    kind: Kind
    meaning: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    live: bool = False

    @property
    def samples(self) -> tuple[str, ...]:
        """The names under which a query finds it."""
        match self.kind:
            case "counter":
                return (f"{self.name}_total",)
            case "histogram":
                return tuple(f"{self.name}_{part}" for part in ("bucket", "count", "sum"))
            case _:
                return (self.name,)


def _counter(name: str, meaning: str, *labels: str) -> Metric:
    return Metric(f"taskpass_{name}", "counter", meaning, labels)


def _histogram(name: str, meaning: str, buckets: tuple[float, ...]) -> Metric:
    return Metric(f"taskpass_{name}", "histogram", meaning, (), buckets)


def _live(name: str, meaning: str, *labels: str) -> Metric:
    return Metric(f"taskpass_{name}", "gauge", meaning, labels, live=True)


_ALL = (
    # --- counted in every process
    _counter("token_requests", "Answers of the token endpoint: `issued`, or the refusal's outcome or code.", "outcome"),
    _histogram("token_batch_seconds", "From taking a batch of token requests to its answers, each durable.", _SECONDS),
    _histogram("token_batch_requests", "Token requests that were taken through the pipeline together.", _MANY),
    _counter("unauthenticated_refusals", "Callers refused before they proved an identity.", "reason"),
    _histogram("ledger_commit_seconds", "One write transaction, from its beginning until it is durable.", _SECONDS),
    _histogram("ledger_commit_commands", "Commands that were written in one transaction.", _MANY),
    _counter("ledger_commit_failures", "Write transactions that the store refused or did not finish."),
    Metric("taskpass_ledger_queue_commands", "gauge", "Commands that wait for the process's writer."),
    _histogram("vault_sign_seconds", "One call that had the signing keys' vault sign, a batch or a probe.", _SECONDS),
    _counter("vault_sign_failures", "Calls of these that brought no signature."),
    Metric("taskpass_vault_away", "gauge", "1 while this process issues nothing because that vault does not answer."),
    Metric("taskpass_signals_lost", "gauge", "1 while this process does not reach the configured Redis."),
    _counter("chore_failures", "Chores that failed and will be tried again at their next turn.", "chore"),
    # --- facts, read by the control process when it is asked
    _live("ready", "1 when `/readyz` says ready."),
    _live("not_ready", "1 for each reason that `/readyz` gives for not being ready, by its code.", "code"),
    _live("degraded", "1 for each reason that it gives beside being ready, by its code.", "code"),
    _live("issuance_stopped", "1 while nothing is issued because files did not load."),
    _live("build", "1, with the version that runs.", "version"),
    _live("process_report_age_seconds", "Since a process of this broker last handed over its metrics.", "process"),
    _live("ledger_position", "Position of the newest event."),
    _live("ledger_lag_positions", "Events that the feed of this process has yet to look at."),
    _live("clock_behind_ledger_seconds", "How far this host's clock is behind the time of the last write, or 0."),
    _live("state_disk_free_bytes", "Free space where this machine keeps the ledger or what lies beside it."),
    _live("verifiers_connected", "Verifier instances in contact within their bound.", "verifier", "mode"),
    _live(
        "verifiers_silent",
        "Verifier instances heard of in the last ten minutes, but not within their bound.",
        "verifier",
    ),
    _live(
        "verifier_lag_positions",
        "Events since the last position that the slowest connected instance applied.",
        "verifier",
    ),
    _live("kills_unacknowledged", "Kills of the last hour that an expected verifier instance has not acknowledged."),
    _live("acknowledgements_missing", "Acknowledgements that those kills still wait for."),
    _live("provisional_kills", "Kills in force in this broker that the ledger has yet to record."),
    _live("holds_standing", "Standing holds."),
    _live("tasks_open", "Explicit tasks that are active."),
    _live("approvals_pending", "Requests that wait for a person."),
    _live(
        "secrets_at_backends",
        "Secrets that are, or may be, at a backend. One that is `stuck` must end and does not.",
        "issuer",
        "state",
    ),
    _live("policy_bundle_age_seconds", "Since this process put the policies in force that it decides by."),
    _live("registry_age_seconds", "Since this process put the registry in force that it decides by."),
    _live("rules_behind", "1 while the ledger names other rules than this process has loaded."),
    _live("agents_blocked", "Registered agents that get nothing until their registration is mended."),
    _live("review_expiry_seconds", "Until the end of the day on which the next review of an agent expires."),
    _live("signing_key_age_seconds", "Since the active signing key began to sign.", "purpose"),
)

CATALOGUE: Mapping[str, Metric] = MappingProxyType({metric.name: metric for metric in _ALL})


def sample_names() -> frozenset[str]:
    """Every name that a query may use."""
    return frozenset(name for metric in CATALOGUE.values() for name in metric.samples)
