"""The store through its door: what commits, what does not, and what makes it stop."""

import os
import shutil
import sqlite3
import stat
from pathlib import Path
from typing import Any

import pytest

from broker.ledger import (
    LedgerCorrupt,
    LedgerNotOpened,
    LedgerShrunk,
    LedgerUnavailable,
    Tx,
)
from broker.ledger.sqlite import SqliteLedger
from broker.ledger.verify import verify_ledger
from tests.ledger.kit import ORIGIN, Clock, Do, Fault, Made, Note, count, faulty

# --- Creating and opening ---------------------------------------------------------------------------------------------


def test_only_we_can_read_the_files(made: Made, ledger: SqliteLedger) -> None:
    ledger.commit([Note()])
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in made.path.parent.iterdir()}
    assert set(modes.values()) == {0o600}, modes


def test_the_store_is_as_durable_as_sqlite_can_be(tmp_path: Path) -> None:
    fault = Fault()
    Made(tmp_path / "ledger.db").open(connection_type=faulty(fault)).close()
    assert "PRAGMA synchronous = FULL" in fault.statements
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_a_ledger_is_never_created_over_something(made: Made, tmp_path: Path) -> None:
    before = made.path.read_bytes()
    with pytest.raises(LedgerNotOpened, match="exists already"):
        SqliteLedger.create(made.path, now=Clock(), origin=ORIGIN)
    assert made.path.read_bytes() == before
    with pytest.raises(LedgerNotOpened, match="cannot be created"):
        SqliteLedger.create(tmp_path / "missing" / "ledger.db", now=Clock(), origin=ORIGIN)


def test_a_creation_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def broken_clock() -> int:
        raise RuntimeError("no clock")

    with pytest.raises(RuntimeError, match="no clock"):
        SqliteLedger.create(tmp_path / "ledger.db", now=broken_clock, origin=ORIGIN)
    assert not (tmp_path / "ledger.db").exists()


def test_a_missing_ledger_is_not_made_by_opening_it(tmp_path: Path) -> None:
    with pytest.raises(LedgerNotOpened, match="no ledger at"):
        SqliteLedger.open(tmp_path / "ledger.db", now=Clock())
    assert list(tmp_path.iterdir()) == []


def text_file(path: Path) -> None:
    path.write_text("hello " * 1000)


def empty_file(path: Path) -> None:
    path.touch()


def foreign_database(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE head (one)")
    connection.close()


def newer_version(path: Path) -> None:
    Made(path)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 999")
    connection.close()


def directory(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("what", [text_file, empty_file, foreign_database, newer_version, directory])
def test_what_is_no_ledger_of_ours_is_refused(tmp_path: Path, what: Any) -> None:
    what(tmp_path / "ledger.db")
    with pytest.raises(LedgerNotOpened) as caught:
        SqliteLedger.open(tmp_path / "ledger.db", now=Clock())
    assert str(tmp_path / "ledger.db") in str(caught.value)


def test_an_older_schema_is_brought_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from broker.ledger import sqlite_file

    made = Made(tmp_path / "ledger.db")
    known = sqlite_file.migrations()
    added = (
        known[-1][0] + 1,
        "CREATE TABLE later (x TEXT) STRICT; -- one; two\nCREATE INDEX later_x\n ON later (x);\n",
    )
    monkeypatch.setattr(sqlite_file, "migrations", lambda: [*known, added])
    assert count(made.open(), "later") == 0
    assert verify_ledger(made.path).sound
    made.close()


# --- Committing -------------------------------------------------------------------------------------------------------


def test_nothing_is_written_after_a_swallowed_fault(made: Made, ledger: SqliteLedger) -> None:
    """SQLite may give up on a transaction by itself; what a careless command writes then must not commit alone."""

    def careless(tx: Tx) -> None:
        ledger._connection.execute("ROLLBACK")
        tx.execute("INSERT INTO texts VALUES ('a', x'00', 'a')")

    with pytest.raises(LedgerUnavailable):
        ledger.commit([Note(), Do(careless), Note()])
    with pytest.raises(LedgerUnavailable):
        ledger.commit([Note(), Do(lambda tx: ledger._connection.execute("ROLLBACK")), Note()])
    assert (count(ledger, "texts"), count(ledger, "events")) == (0, 1)
    assert ledger.commit([Note()]) == [1]
    assert verify_ledger(made.path).sound


# --- Faults of the store ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("code", [sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY])
def test_any_statement_may_fail_and_nothing_half_stays(made: Made, code: int, after: bool) -> None:
    """Fail the n-th statement of a commit, n = 1, 2, ... until one commit runs clean."""
    fault = Fault(code=code, after=after)
    ledger = made.open(connection_type=faulty(fault))
    sizes, number = 1, 0
    while True:
        number += 1
        fault.at, fault.statements[:] = number, []
        try:
            results = ledger.commit([Note(), Note()])
        except LedgerUnavailable:
            fault.at = 0
            assert ledger.commit([]) == []
            assert count(ledger, "events") == sizes
        else:
            assert results == [sizes, sizes + 1]
            sizes += 2
            if len(fault.statements) < number:
                break
    assert number > 4
    assert verify_ledger(made.path).sound


def test_a_commit_that_fails_after_it_took_effect_counts(made: Made) -> None:
    fault = Fault(after=True)
    ledger = made.open(connection_type=faulty(fault))
    fault.statements.clear()
    ledger.commit([Note()])
    fault.at, fault.statements[:] = fault.statements.index("COMMIT") + 1, []
    assert ledger.commit([Note()]) == [2]
    assert fault.statements[-1] != "COMMIT", "it looked what is stored"
    assert count(made.open(), "events") == 3


def test_a_full_disk_changes_nothing_and_passes(made: Made, ledger: SqliteLedger) -> None:
    # SQLite's own page limit gives the same error as a disk without space.
    (pages,) = ledger._connection.execute("PRAGMA page_count").fetchone()
    ledger._connection.execute(f"PRAGMA max_page_count = {pages + 4}")
    done = 1
    with pytest.raises(LedgerUnavailable) as caught:  # noqa: PT012
        while True:
            done += len(ledger.commit([Note("x" * 3000)]))
    assert "full" in str(caught.value.internal)
    assert ledger.head.size == count(ledger, "events") == done
    ledger._connection.execute("PRAGMA max_page_count = 100000")
    assert ledger.commit([Note("x" * 3000)]) == [done]
    assert verify_ledger(made.path).sound


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    if os.system(f"mount -t tmpfs -o size=1m tmpfs {tmp_path} 2>/dev/null") != 0:
        pytest.skip("mounting is not permitted here")
    try:
        made = Made(tmp_path / "ledger.db")
        ledger, done = made.open(), 1
        with pytest.raises(LedgerUnavailable) as caught:  # noqa: PT012
            while True:
                done += len(ledger.commit([Note("x" * 5000)] * 4))
        assert "full" in str(caught.value.internal)
        assert count(ledger, "events") == done
        made.close()
        report = verify_ledger(tmp_path / "ledger.db")
        assert (report.sound, report.size) == (True, done), report.findings
    finally:
        os.system(f"umount {tmp_path}")


def test_a_file_locked_by_a_stranger(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.ledger.sqlite_file._BUSY_S", 0.05)
    ledger = made.open()
    stranger = sqlite3.connect(made.path, isolation_level=None)
    stranger.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerUnavailable) as caught:
        ledger.commit([Note()])
    assert "locked" in str(caught.value.internal)
    assert count(ledger, "events") == 1
    stranger.execute("ROLLBACK")
    stranger.close()
    assert ledger.commit([Note()]) == [1]


def test_a_process_that_keeps_the_turn(made: Made) -> None:
    patient, other = made.open(turn_timeout_s=0.05), made.open()
    with other._turns.taken(priority=False):
        for priority in (False, True):
            with pytest.raises(LedgerUnavailable, match="busy"):
                patient.commit([Note()], priority=priority)
    assert patient.commit([Note()]) == [1]


def test_a_read_only_ledger_can_be_read(made: Made) -> None:
    fault = Fault(code=sqlite3.SQLITE_READONLY)
    ledger = made.open(connection_type=faulty(fault))
    fault.statements.clear()
    fault.at = 1
    with pytest.raises(LedgerUnavailable):
        ledger.commit([Note()])
    assert count(ledger, "events") == 1


# --- What makes a process stop ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("use", ["commit", "read"])
@pytest.mark.parametrize("how", ["moved over", "removed"])
def test_a_file_that_is_no_longer_ours(made: Made, ledger: SqliteLedger, how: str, use: str) -> None:
    backup = made.path.with_name("backup")
    shutil.copy(made.path, backup)
    ledger.commit([Note()])
    backup.replace(made.path) if how == "moved over" else made.path.unlink()
    with pytest.raises(LedgerShrunk, match="replaced or removed"):
        ledger.commit([Note()]) if use == "commit" else count(ledger, "events")


def test_damage_stops_the_process(made: Made) -> None:
    fault = Fault(code=sqlite3.SQLITE_CORRUPT)
    ledger = made.open(connection_type=faulty(fault))
    fault.statements.clear()
    fault.at = 2
    with pytest.raises(LedgerCorrupt):
        ledger.commit([Note()])
    with pytest.raises(LedgerCorrupt):
        ledger.commit([Note()])
