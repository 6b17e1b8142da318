"""`/readyz`: every reason with its code, and what to do."""

from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from broker.errors import Unavailable
from broker.ledger import Head, LedgerShrunk, LedgerUnavailable
from broker.web.readiness import NEXT, Readiness
from tests.kit import Broker, Clock


class _Ledger:
    def __init__(self, head: Head) -> None:
        self.stored = head
        self.fault: Exception | None = None

    @contextmanager
    def read(self) -> Any:
        if self.fault is not None:
            raise self.fault
        yield SimpleNamespace(head=lambda: self.stored)


class _Rules:
    def __init__(self) -> None:
        self.there = True

    @property
    def current(self) -> str:
        if not self.there:
            raise Unavailable("No rules are loaded yet.")
        return "rules"


@pytest.fixture
def made() -> Any:
    clock, rules = Clock(), _Rules()
    ledger = _Ledger(Head("abcdef01", 10, clock.now))
    away: list[Unavailable | None] = [None]
    lost = [False]
    readiness = Readiness(ledger=ledger, rules=rules, away=lambda: away[0], lost=lambda: lost[0], now=clock)  # type: ignore[arg-type]
    return SimpleNamespace(clock=clock, ledger=ledger, rules=rules, away=away, lost=lost, readiness=readiness)


def codes(made: Any) -> list[str]:
    return [reason.code for reason in made.readiness.reasons()]


def test_nothing_is_wrong(made: Any):
    assert codes(made) == []


def test_each_fault_has_its_code(made: Any):
    made.rules.there = False
    assert codes(made) == ["rules_missing"]
    made.ledger.fault = LedgerUnavailable("The database does not answer.")
    assert codes(made) == ["ledger_unreadable"]
    made.ledger.fault = LedgerShrunk("It went back.")
    assert codes(made) == ["ledger_stopped"]


def test_all_that_is_wrong_is_said_at_once(made: Any):
    made.ledger.stored.issuance_stopped = "The registry does not load."
    made.clock.forward(-6)
    made.readiness.wrote(failed=True)
    assert codes(made) == ["ledger_unwritable", "issuance_stopped", "clock_behind"]
    assert all(reason.to_json()["next"] == NEXT[reason.code] for reason in made.readiness.reasons())


def test_redis_that_is_lost_degrades_and_a_vault_that_is_away_stops_issuing(made: Any):
    made.lost[0] = True
    (reason,) = made.readiness.reasons()
    assert (reason.code, reason.degrades) == ("signals_lost", True)
    made.away[0] = Unavailable("The vault does not answer.")
    reasons = made.readiness.reasons()
    assert [(reason.code, reason.degrades) for reason in reasons] == [("vault_away", False), ("signals_lost", True)]


def test_a_write_that_failed_is_forgotten_by_one_that_did_not_or_after_a_while(made: Any):
    made.readiness.wrote(failed=True)
    assert codes(made) == ["ledger_unwritable"]
    made.readiness.wrote(failed=False)
    assert codes(made) == []
    made.readiness.wrote(failed=True)
    made.clock.forward(6)
    assert codes(made) == []


def test_over_http(shared: Broker):
    answer = shared.get("/readyz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready", "reasons": []})
    assert shared.get("/livez").json() == {"status": "alive"}
