"""Issuance with a span for each batch and for each of its stages. A broker without tracing has none of this."""

from collections.abc import Sequence
from typing import Any

from broker.rules import Rules
from broker.service.asks import TokenRequest
from broker.service.issuance import Issuance, TokenAnswer, TokenCase
from broker.telemetry.tracing import Spans


class TracedIssuance(Issuance):
    """As `Issuance`, and exports what a batch spends its time with."""

    def __init__(self, *, spans: Spans, **more: Any) -> None:  # noqa: ANN401  (passed on)
        super().__init__(**more)
        self._spans = spans

    async def issue_batch(self, requests: Sequence[TokenRequest]) -> Sequence[TokenAnswer | Exception]:
        """See `Issuance`."""
        with self._spans.token_batch(requests) as answered:
            answers = await super().issue_batch(requests)
            answered(answers)
        return answers

    def _identify(self, rules: Rules, cases: Sequence[TokenCase]) -> None:
        with self._spans.stage("authenticate", len(cases)):
            super()._identify(rules, cases)

    def _evaluate(self, rules: Rules, cases: Sequence[TokenCase]) -> None:
        with self._spans.stage("evaluate", len(cases)):
            super()._evaluate(rules, cases)

    async def _commit(self, rules: Rules, cases: Sequence[TokenCase]) -> bool:
        with self._spans.stage("commit", len(cases)):
            return await super()._commit(rules, cases)

    async def _mint(self, cases: Sequence[TokenCase]) -> None:
        with self._spans.stage("sign", len(cases)):
            await super()._mint(cases)
