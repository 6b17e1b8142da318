from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.ledger.sqlite import SqliteLedger
from tests.ledger.kit import Made


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Made]:
    made = Made(tmp_path / "ledger.db")
    yield made
    made.close()


@pytest.fixture
def ledger(made: Made) -> SqliteLedger:
    return made.open()
