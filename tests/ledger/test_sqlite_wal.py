"""The write-ahead log does not grow with what is written."""

from pathlib import Path

import pytest

from broker.ledger import sqlite_wal
from broker.ledger.commands.admin import Started
from broker.ledger.sqlite import SqliteLedger

COMMITS = 1_500


def _written(path: Path, *, keeps: bool) -> int:
    """Bytes of log after so many commits."""
    SqliteLedger.create(path, now=lambda: 1_000, origin="test")
    ledger = SqliteLedger.open(path, now=lambda: 1_000, keeps=keeps)
    try:
        for _ in range(COMMITS):
            ledger.commit([Started("all", "0")])
        assert ledger.head.size == COMMITS + 1
        return path.with_name(path.name + "-wal").stat().st_size
    finally:
        ledger.close()


def test_a_keeper_lets_the_log_start_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sqlite_wal, "_EVERY_S", 0.001)
    without = _written(tmp_path / "without.db", keeps=False)
    assert _written(tmp_path / "with.db", keeps=True) < without / 4


def test_a_keeper_survives_what_it_cannot_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sqlite_wal, "_EVERY_S", 0.001)
    keeper = sqlite_wal.WalKeeper(tmp_path / "nothing.db")
    assert keeper._thread.is_alive()
    keeper.close()
    assert not keeper._thread.is_alive()
