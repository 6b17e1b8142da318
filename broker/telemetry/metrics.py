"""What one process counts as it works: a call for each batch and each commit, none for each token.

A batch is only noted down while somebody waits for it. It is counted when the metrics are read, or a few hundred came
together.
"""

from collections import Counter as Tally
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import prometheus_client as prometheus

from broker.errors import TaskpassError
from broker.telemetry.catalogue import CATALOGUE, Metric

_NOTES: Final = 256


class Metrics:
    """The counters of this process. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._notes: deque[Callable[[], None]] = deque()
        self._registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=self._registry)
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
                return prometheus.Counter(metric.name, metric.meaning, metric.labels, registry=self._registry)
            case "histogram":
                return prometheus.Histogram(
                    metric.name, metric.meaning, metric.labels, buckets=metric.buckets, registry=self._registry
                )
            case _:
                return prometheus.Gauge(metric.name, metric.meaning, metric.labels, registry=self._registry)

    def collect(self) -> Iterable[prometheus.Metric]:
        """Everything that was counted so far."""
        self._count_notes()
        return self._registry.collect()

    def token_batch(self, answers: Sequence[object], seconds: float) -> None:
        """A batch of token requests was answered after `seconds`."""
        failed = tuple(_outcome(answer) for answer in answers if isinstance(answer, Exception))
        self._note(partial(self._count_token_batch, len(answers), failed, seconds))

    def commit(self, commands: int, seconds: float, *, failed: bool, waiting: int) -> None:
        """The writer was with its store for `seconds`; `waiting` more commands have come meanwhile."""
        self._note(partial(self._count_commit, commands, seconds, failed=failed, waiting=waiting))

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

    def _note(self, count: Callable[[], None]) -> None:
        self._notes.append(count)
        if len(self._notes) >= _NOTES:
            self._count_notes()

    def _count_notes(self) -> None:
        while True:
            try:
                count = self._notes.popleft()  # two threads may be at it: each note goes to one of them
            except IndexError:
                return
            count()

    def _count_token_batch(self, requests: int, failed: Sequence[str], seconds: float) -> None:
        self._batch_seconds.observe(seconds)
        self._batch_requests.observe(requests)
        outcomes = Tally(failed)
        outcomes["issued"] = requests - len(failed)
        for outcome, count in outcomes.items():
            if outcome and count:
                self._requests.labels(outcome).inc(count)

    def _count_commit(self, commands: int, seconds: float, *, failed: bool, waiting: int) -> None:
        self._commit_seconds.observe(seconds)
        self._commit_commands.observe(commands)
        self._queue.set(waiting)
        if failed:
            self._commit_failures.inc()


def _outcome(answer: Exception) -> str:
    """A short word for a refusal; none for a request that only went to fetch its issuer's keys and comes again."""
    if not isinstance(answer, TaskpassError):
        return "" if type(answer).__name__ == "KeysNeeded" else TaskpassError.code
    outcome = answer.members.get("outcome")
    return outcome if isinstance(outcome, str) else answer.code
