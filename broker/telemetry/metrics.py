"""What one process counts as it works: a call for each batch and each commit, none for each token."""

from collections import Counter as Tally
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import prometheus_client as prometheus

from broker.errors import TaskpassError
from broker.telemetry.catalogue import CATALOGUE, Metric


class Metrics:
    """The counters of this process. Every method may be called from any thread."""

    def __init__(self) -> None:
        self.registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=self.registry)
        made: dict[str, Any] = {m.name: self._make(m) for m in CATALOGUE.values() if not m.live}
        self._requests = made["taskpass_token_requests"]
        self._batch_seconds = made["taskpass_token_batch_seconds"]
        self._batch_requests = made["taskpass_token_batch_requests"]
        self._refusals = made["taskpass_unauthenticated_refusals"]
        self._commit_seconds = made["taskpass_ledger_commit_seconds"]
        self._commit_commands = made["taskpass_ledger_commit_commands"]
        self._commit_failures = made["taskpass_ledger_commit_failures"]
        self._queue = made["taskpass_ledger_queue_commands"]
        self._vault_seconds = made["taskpass_vault_sign_seconds"]
        self._vault_failures = made["taskpass_vault_sign_failures"]
        self._vault_away = made["taskpass_vault_away"]
        self._signals_lost = made["taskpass_signals_lost"]
        self._chore_failures = made["taskpass_chore_failures"]

    def _make(self, metric: Metric) -> Any:  # noqa: ANN401  (one of three classes without a common base)
        match metric.kind:
            case "counter":
                return prometheus.Counter(metric.name, metric.meaning, metric.labels, registry=self.registry)
            case "histogram":
                return prometheus.Histogram(
                    metric.name, metric.meaning, metric.labels, buckets=metric.buckets, registry=self.registry
                )
            case _:
                return prometheus.Gauge(metric.name, metric.meaning, metric.labels, registry=self.registry)

    def token_batch(self, answers: Sequence[object], seconds: float) -> None:
        """A batch of token requests was answered after `seconds`."""
        self._batch_seconds.observe(seconds)
        self._batch_requests.observe(len(answers))
        for outcome, count in Tally(map(_outcome, answers)).items():
            if outcome:
                self._requests.labels(outcome).inc(count)

    def commit(self, commands: int, seconds: float, *, failed: bool, waiting: int) -> None:
        """The writer was with its store for `seconds`; `waiting` more commands have come meanwhile."""
        self._commit_seconds.observe(seconds)
        self._commit_commands.observe(commands)
        self._queue.set(waiting)
        if failed:
            self._commit_failures.inc()

    def refused(self, counts: Mapping[str, int]) -> None:
        """So many callers were refused before they proved an identity, per reason."""
        for reason, count in counts.items():
            self._refusals.labels(reason).inc(count)

    def vault_asked(self, seconds: float, failed: bool) -> None:  # noqa: FBT001  (a callback)
        """The signing keys' vault was asked to sign."""
        self._vault_seconds.observe(seconds)
        if failed:
            self._vault_failures.inc()

    def follow(self, *, vault_away: Callable[[], bool], signals_lost: Callable[[], bool]) -> None:
        """Look there for what is away now, whenever somebody asks."""
        self._vault_away.set_function(vault_away)
        self._signals_lost.set_function(signals_lost)

    def chore_failed(self, chore: str) -> None:
        """A chore raised."""
        self._chore_failures.labels(chore).inc()


def _outcome(answer: object) -> str:
    """A short word for an answer; none for a request that only went to fetch its issuer's keys and comes again."""
    if not isinstance(answer, Exception):
        return "issued"
    if not isinstance(answer, TaskpassError):
        return "" if type(answer).__name__ == "KeysNeeded" else TaskpassError.code
    outcome = answer.members.get("outcome")
    return outcome if isinstance(outcome, str) else answer.code
