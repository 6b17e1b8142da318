import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.kit import Broker, Home

# The gate repeats: the same examples for the same code. Whoever develops gets fresh ones with every run.
settings.register_profile("gate", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("gate")

# Any Redis, a lying one too: every broker of every test then uses it, and every answer must be the same.
if "TASKPASS_TEST_SIGNALS" in os.environ:
    os.environ["TASKPASS_SIGNALS__URL"] = os.environ["TASKPASS_TEST_SIGNALS"]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A broker's directory, not running."""
    return Home(tmp_path / "broker")


@pytest.fixture
def start(home: Home) -> Iterator[Callable[..., Broker]]:
    """Starts processes on `home`; all are stopped with the test."""
    started: list[Broker] = []

    def starter(**options: object) -> Broker:
        started.append(Broker(home, **options))  # type: ignore[arg-type]
        return started[-1]

    yield starter
    for each in started:
        each.close()


@pytest.fixture
def broker(start: Callable[..., Broker]) -> Broker:
    """A running broker of this test alone."""
    return start()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A running broker that the tests of a module share: they must neither kill nor move the clock."""
    running = Broker(Home(tmp_path_factory.mktemp("shared") / "broker"))
    yield running
    running.close()
