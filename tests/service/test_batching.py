"""How requests come together in batches: one at a time, the next with everybody who came meanwhile."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from hypothesis import given
from hypothesis import strategies as st

from broker.service.batching import Batcher

_ENOUGH, _MOST = 32, 256


class _Pipeline:
    """Takes batches and holds each until it is let go."""

    def __init__(self, *, overlap: bool = False) -> None:
        self.batches: list[list[int]] = []
        self.answers: dict[int, int | Exception] = {}
        self.observed: list[int] = []
        self.two_batches = asyncio.Event()
        self._held: list[asyncio.Future[None]] = []
        self.batcher: Batcher[int, int] = Batcher(
            self._process, observe=lambda items, *_: self.observed.append(len(items)), overlap=lambda: overlap
        )

    async def _process(self, items: Sequence[int]) -> Sequence[int | Exception]:
        self.batches.append(list(items))
        if len(self.batches) == 2:
            self.two_batches.set()
        held = asyncio.get_running_loop().create_future()
        self._held.append(held)
        await held
        return [-item for item in items]

    def submit(self, *items: int) -> None:
        for item in items:
            self.batcher.submit(item, lambda answer, item=item: self.answers.update({item: answer}))

    def submit_one_a_turn(self, number: int, first: int = 0) -> None:
        if first < number:
            asyncio.get_running_loop().call_soon(self.submit_one_a_turn, number, first + 1)
            self.submit(first)

    def let_go(self, *, failing: Exception | None = None) -> None:
        held = self._held.pop(0)
        held.set_result(None) if failing is None else held.set_exception(failing)


def _run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(scenario())


async def _turns(number: int = 10) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


def test_a_lone_request_is_a_batch_at_once():
    async def scenario():
        pipeline = _Pipeline()
        pipeline.submit(1)
        await _turns(3)
        assert pipeline.batches == [[1]]
        pipeline.let_go()
        await _turns()
        assert pipeline.answers == {1: -1}

    _run(scenario)


def test_who_comes_while_a_batch_is_under_way_is_the_next_one():
    async def scenario():
        pipeline = _Pipeline()
        pipeline.submit(1)
        await _turns()
        pipeline.submit(2)
        await _turns()
        pipeline.submit(3, 4)
        await _turns()
        assert pipeline.batches == [[1]]
        pipeline.let_go()
        await _turns()
        assert pipeline.batches == [[1], [2, 3, 4]]
        pipeline.let_go()
        await _turns()
        assert pipeline.answers == {1: -1, 2: -2, 3: -3, 4: -4}
        assert pipeline.observed == [1, 3]

    _run(scenario)


def test_a_batch_waits_for_as_long_as_each_turn_of_the_loop_brings_somebody():
    async def scenario():
        pipeline = _Pipeline()
        pipeline.submit_one_a_turn(5)
        await _turns(3)
        assert pipeline.batches == []
        await _turns()
        assert pipeline.batches == [[0, 1, 2, 3, 4]]

    _run(scenario)


def test_a_crowd_does_not_put_off_a_batch_for_ever():
    async def scenario():
        pipeline = _Pipeline()
        pipeline.submit_one_a_turn(2 * _MOST)
        await _turns(2 * _MOST + 10)
        assert pipeline.batches == [list(range(_MOST))]
        pipeline.let_go()
        await _turns()
        assert pipeline.batches[1] == list(range(_MOST, 2 * _MOST))

    _run(scenario)


def test_nobody_waits_for_ever_for_a_batch_that_is_stuck():
    async def scenario():
        pipeline = _Pipeline()
        pipeline.submit(1)
        await _turns()
        pipeline.submit(2)
        await asyncio.wait_for(pipeline.two_batches.wait(), 10)
        assert pipeline.batches == [[1], [2]]

    _run(scenario)


def test_on_a_slow_disk_as_many_as_are_enough_do_not_wait_for_it():
    async def scenario():
        pipeline = _Pipeline(overlap=True)
        pipeline.submit(*range(2 * _ENOUGH))
        await _turns()
        assert [len(batch) for batch in pipeline.batches] == [_ENOUGH, _ENOUGH]
        pipeline.submit(*range(100, 100 + _ENOUGH - 1))
        await _turns()
        assert len(pipeline.batches) == 2
        pipeline.submit(200)
        await _turns()
        assert len(pipeline.batches) == 3

    _run(scenario)


def test_a_batch_that_fails_fails_its_own_requests_and_no_others():
    async def scenario():
        pipeline = _Pipeline()
        pipeline.submit(1)
        await _turns()
        pipeline.submit(2)
        broken = RuntimeError("broken")
        pipeline.let_go(failing=broken)
        await _turns()
        pipeline.let_go()
        await _turns()
        assert pipeline.answers == {1: broken, 2: -2}

    _run(scenario)


@given(st.lists(st.sampled_from(["submit", "turn", "let go"]), max_size=200), st.booleans())
def test_every_request_is_in_one_batch_and_answered_once_in_order(steps: list[str], overlap: bool):
    async def scenario():
        pipeline, submitted = _Pipeline(overlap=overlap), 0
        told: list[int] = []
        for step in steps:
            if step == "submit":
                pipeline.batcher.submit(submitted, lambda _, item=submitted: told.append(item))
                submitted += 1
            elif step == "turn":
                await asyncio.sleep(0)
            elif pipeline._held:
                pipeline.let_go()
        while len(told) < submitted:
            if pipeline._held:
                pipeline.let_go()
            await asyncio.sleep(0)
        assert [item for batch in pipeline.batches for item in batch] == list(range(submitted))
        assert sorted(told) == list(range(submitted))
        assert overlap or told == sorted(told)
        assert sum(pipeline.observed) == submitted

    _run(scenario)
