"""A breaker opens by failures and by silence, and is closed by an answer."""

from contextlib import suppress

import pytest

from broker.breaker import Breaker


class Side:
    """The other side, with a clock and a record of what was observed."""

    def __init__(self) -> None:
        self.now = 0.0
        self.seen: list[tuple[float, bool]] = []
        self.breaker = Breaker(patience_s=2.0, observe=self._see, clock=lambda: self.now)

    def _see(self, seconds: float, failed: bool) -> None:
        self.seen.append((seconds, failed))

    def fail(self) -> None:
        with suppress(OSError), self.breaker.call():
            raise OSError

    def answer(self, after: float = 0.0) -> None:
        with self.breaker.call():
            self.now += after


def test_a_failure_opens_it_and_an_answer_closes_it():
    side = Side()
    assert not side.breaker.open
    side.fail()
    assert side.breaker.open
    side.answer(0.5)
    assert not side.breaker.open
    assert side.seen == [(0.0, True), (0.5, False)]


def test_who_asks_gets_the_error():
    with pytest.raises(OSError, match="away"), Side().breaker.call():
        raise OSError("away")


def test_it_is_open_while_a_call_hangs_however_many_come_after_it():
    side = Side()
    with side.breaker.call():
        side.now += 1.9
        side.answer()
        assert not side.breaker.open
        side.now += 0.2
        assert side.breaker.open
        side.answer()
        assert side.breaker.open
    assert not side.breaker.open


def test_a_call_that_is_cancelled_says_nothing():
    side = Side()
    side.fail()
    with suppress(KeyboardInterrupt), side.breaker.call():
        raise KeyboardInterrupt
    assert side.breaker.open
    assert len(side.seen) == 1


def test_silence_is_counted_from_the_last_call_and_never_during_one():
    side = Side()
    assert side.breaker.quiet_for(10.0), "it was never asked"
    side.answer()
    assert not side.breaker.quiet_for(10.0)
    side.now += 10.0
    with side.breaker.call():
        assert not side.breaker.quiet_for(10.0)
    assert not side.breaker.quiet_for(10.0)
