"""Decisions, remembered. A decision is a pure function of its bundle and request, so the same request of the same
bundle is decided once.

The key is the whole request, typed: JSON tells `true` from `1`. A request that has no such form, and one on which the
engine failed, is asked anew each time.
"""

from collections.abc import Sequence

import orjson

from policies import Cause, Decision, Never, PolicyEngine, Request


class Remembered:
    """A `PolicyEngine` that asks another one, of one bundle, only what it has not asked before."""

    def __init__(self, engine: PolicyEngine, *, limit: int = 10_000) -> None:
        self._engine = engine
        self._limit = limit
        self._known: dict[bytes, Decision] = {}

    def decide_batch(self, requests: Sequence[Request]) -> list[Decision]:
        """One decision per request, in order, each as the engine would give it."""
        keys = [_key(request) for request in requests]
        decisions = [self._known.get(key) if key is not None else None for key in keys]
        missing = [index for index, decision in enumerate(decisions) if decision is None]
        if missing:
            fresh = self._engine.decide_batch([requests[index] for index in missing])
            for index, decision in zip(missing, fresh, strict=True):
                decisions[index] = decision
                self._remember(keys[index], decision)
        return [decision for decision in decisions if decision is not None]

    def _remember(self, key: bytes | None, decision: Decision) -> None:
        if key is None or (isinstance(decision, Never) and decision.cause is Cause.ERROR):
            return
        if len(self._known) >= self._limit:
            self._known.clear()
        self._known[key] = decision


def _key(request: Request) -> bytes | None:
    """The request as bytes that no other request has; None when it has no JSON form."""
    try:
        return orjson.dumps(
            (
                request.agent,
                request.resource,
                request.action,
                request.trigger,
                request.delegated,
                request.on_behalf,
                request.depth,
                request.trust,
                request.workload,
                dict(request.parameters),
            ),
            option=orjson.OPT_SORT_KEYS,
        )
    except (TypeError, ValueError):
        return None
