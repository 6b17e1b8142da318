"""The simulation behind docs/scaling.md, against what can be said without it."""

import pytest

from bench.scaling import BATCH, Costs, most, simulate

COSTS = Costs(turn=0.002, command=0.0001)


def test_one_broker_carries_what_full_batches_allow():
    limit = BATCH / (COSTS.turn + COSTS.command * BATCH)
    assert simulate(1, limit * 2, COSTS).done_per_s == pytest.approx(limit, rel=0.05)
    assert most(1, within_s=0.25, costs=COSTS) == pytest.approx(limit, rel=0.05)


def test_little_load_waits_for_little():
    outcome = simulate(2, 20, COSTS)
    assert outcome.wait_s < 3 * COSTS.turn
    assert outcome.left <= 2


@pytest.mark.parametrize("brokers", [10, 100])
def test_idle_brokers_cost_a_turn_a_second_each(brokers: int):
    expected = brokers * (COSTS.turn + COSTS.command)
    assert simulate(brokers, 0.001, COSTS).busy == pytest.approx(expected, rel=0.15)


def test_more_brokers_never_carry_more():
    carried = [most(brokers, within_s=0.25, costs=COSTS) for brokers in (1, 10, 50, 200)]
    assert carried == sorted(carried, reverse=True)
    assert carried[-1] < carried[0] / 4
