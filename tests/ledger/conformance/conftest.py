"""Every test of this directory runs on every store."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.ledger import Ledger
from tests.ledger.kit import Made
from tests.ledger.postgres import PostgresMade
from tests.postgres import Server, server_or_skip

Store = Made | PostgresMade


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A server for all tests that do not harm it; not forced to the disk, which only the tests of faults need."""
    server = server_or_skip(fsync="off")
    yield server
    server.close()


@pytest.fixture(params=["sqlite", "postgres"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """A new ledger on each store."""
    sqlite = request.param == "sqlite"
    made = Made(tmp_path / "ledger.db") if sqlite else PostgresMade(request.getfixturevalue("server"))
    yield made
    made.close()


@pytest.fixture
def ledger(made: Store) -> Ledger:
    """It, opened."""
    return made.open()
