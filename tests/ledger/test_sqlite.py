"""The store through its door: what commits, what does not, and what makes it stop."""

import os
import shutil
import sqlite3
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from broker.ledger import (
    Head,
    LedgerCorrupt,
    LedgerNotOpened,
    LedgerShrunk,
    LedgerStopped,
    LedgerUnavailable,
    Tx,
    parse_id,
)
from broker.ledger.events import parse
from broker.ledger.sqlite import SqliteLedger
from broker.ledger.verify import verify_ledger
from tests.ledger.kit import ORIGIN, Clock, Do, Fault, Made, Note, Poison, count, faulty

# --- Creating and opening ---------------------------------------------------------------------------------------------


def test_a_new_ledger_begins_with_its_genesis(made: Made, ledger: SqliteLedger) -> None:
    with ledger.read() as reader:
        (data,) = reader.execute("SELECT bytes FROM events").fetchone()
        head = reader.head()
    genesis = parse(data)
    assert (genesis.seq, genesis.type) == (0, "ledger.created")
    assert genesis.body == {"epoch": head.epoch, "format": 1, "origin": ORIGIN}
    assert head == Head(epoch=head.epoch, size=1, time=made.clock.now) == ledger.head
    assert parse_id(f"tsk_{head.epoch}_0").epoch == head.epoch
    assert ledger.origin == ORIGIN


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


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE head SET size = size + 1",
        "UPDATE head SET size = size - 1",
        "UPDATE head SET frontier = x'00'",
        "DELETE FROM head",
        "DELETE FROM events WHERE seq = (SELECT max(seq) FROM events)",
        "DELETE FROM events",
        "UPDATE events SET bytes = x'00' WHERE seq = 0",
        "UPDATE events SET bytes = x'00' WHERE seq = (SELECT max(seq) FROM events)",
        "INSERT INTO events SELECT seq + 1, bytes, leaf FROM events ORDER BY seq DESC LIMIT 1",
    ],
)
def test_a_head_that_does_not_fit_the_events_is_not_opened(made: Made, damage: str) -> None:
    made.open().commit([Note()] * 3)
    made.close()
    with sqlite3.connect(made.path) as connection:
        connection.execute(damage)
    connection.close()
    with pytest.raises(LedgerCorrupt):
        made.open()


# --- Committing -------------------------------------------------------------------------------------------------------


def test_positions_follow_one_another_across_batches_and_handles(made: Made, ledger: SqliteLedger) -> None:
    other = made.open()
    assert ledger.commit([Note(), Note()]) == [1, 2]
    assert other.commit([Note()]) == [3]
    assert ledger.commit([Note()] * 600) == list(range(4, 604))
    assert ledger.commit([]) == []
    report = verify_ledger(made.path)
    assert report.sound, report.findings
    assert (report.size, count(ledger, "tiles")) == (604, 3)


def test_a_command_sees_what_earlier_ones_of_its_batch_wrote(ledger: SqliteLedger) -> None:
    write = Do(lambda tx: tx.execute("INSERT INTO texts VALUES (?, x'00', 'hello')", ("a",)).rowcount)
    read = Do(lambda tx: tx.execute("SELECT text FROM texts WHERE ref = ?", ("a",)).fetchall())
    share = Do(lambda tx: tx.scratch.setdefault("shared", tx.next_seq()))
    assert ledger.commit([read, write, read, share, Note(), share]) == [[], 1, [("hello",)], 1, 1, 1]
    assert ledger.commit([share]) == [2]


def test_a_command_that_raises_fails_alone(made: Made, ledger: SqliteLedger) -> None:
    look = Do(lambda tx: (tx.head.guard_version, "poison" in tx.scratch, tx.next_seq()))
    results = ledger.commit([Note(), Poison(), look, Note(), Poison(KeyError), Note()])
    assert [results[index] for index in (0, 2, 3, 5)] == [1, (0, False, 2), 2, 3]
    assert isinstance(results[1], RuntimeError)
    assert isinstance(results[4], KeyError)
    assert ledger.head.size == 4
    assert count(ledger, "texts") == 0
    assert verify_ledger(made.path).sound


def test_an_error_of_the_system_inside_a_command_is_its_own(ledger: SqliteLedger) -> None:
    results = ledger.commit([Note(), Poison(OSError), Note()])
    assert [results[0], type(results[1]), results[2]] == [1, OSError, 2]


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


def test_a_batch_of_poison_only_changes_nothing(made: Made, ledger: SqliteLedger) -> None:
    head = ledger.head
    assert [type(result) for result in ledger.commit([Poison(), Poison(ValueError)])] == [RuntimeError, ValueError]
    assert ledger.head == head
    assert count(ledger, "events") == 1


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO head SELECT * FROM head",
        "SELECT nonsense FROM nowhere",
        "not even sql",
        "UPDATE head SET size = 'x'",
    ],
)
def test_a_wrong_statement_is_its_commands_fault(ledger: SqliteLedger, sql: str) -> None:
    results = ledger.commit([Note(), Do(lambda tx: tx.execute(sql)), Note()])
    assert [results[0], results[2]] == [1, 2]
    assert isinstance(results[1], sqlite3.Error)


@pytest.mark.parametrize("change", ["epoch = 'x'", "time = 0", "size = 99", "guard_version = -1", "floor = -1"])
def test_a_command_cannot_break_the_head(ledger: SqliteLedger, change: str) -> None:
    field, value = change.split(" = ")
    results = ledger.commit(
        [Note(), Do(lambda tx: setattr(tx.head, field, int(value) if value[-1] != "'" else value)), Note()]
    )
    assert [results[0], results[2]] == [1, 2]
    assert isinstance(results[1], ValueError)


def test_what_commands_may_change_of_the_head_is_stored(made: Made, ledger: SqliteLedger) -> None:
    def change(tx: Any) -> None:
        tx.head.guard_version += 1
        tx.head.registry_hash, tx.head.policy_hash, tx.head.active_kid = "r", "p", "k"
        tx.head.issuance_stopped, tx.head.floor = "why", 1

    ledger.commit([Do(change)])
    with made.open().read() as reader:
        head = reader.head()
    assert head == ledger.head
    assert (head.guard_version, head.registry_hash, head.policy_hash, head.active_kid) == (1, "r", "p", "k")
    assert (head.issuance_stopped, head.floor) == ("why", 1)


def test_an_unregistered_event_is_refused(ledger: SqliteLedger) -> None:
    (result,) = ledger.commit([Do(lambda tx: tx.append("made.up", {}))])
    assert isinstance(result, ValueError)
    assert ledger.head.size == 1


def test_ledger_time_never_goes_back(made: Made, ledger: SqliteLedger) -> None:
    start = made.clock.now
    now = Do(lambda tx: (tx.now, tx.append("failed", {"jti": "j", "task": "t", "why": "w"}))[0])
    made.clock.now = start + 1000
    assert ledger.commit([now]) == [start + 1000]
    made.clock.now = start - 50_000
    assert ledger.commit([now, now]) == [start + 1000, start + 1000]
    assert made.open().commit([now]) == [start + 1000]
    made.clock.now = start + 1001
    assert ledger.commit([now]) == [start + 1001]


def test_time_moves_with_projections_too(made: Made, ledger: SqliteLedger) -> None:
    touch = Do(lambda tx: (tx.now, tx.execute("INSERT INTO texts VALUES ('a', x'00', 'a')"))[0])
    made.clock.now += 1000
    seen = ledger.commit([touch])
    made.clock.now -= 5000
    assert ledger.commit([Do(lambda tx: tx.now)]) == seen
    assert ledger.head.size == 1


def test_threads_share_one_ledger(made: Made, ledger: SqliteLedger) -> None:
    results: list[int] = []
    failed: list[Exception] = []

    def work() -> None:
        try:
            for _ in range(25):
                results.extend(ledger.commit([Note(), Note()]))
                with ledger.read() as reader:
                    (rows,) = reader.execute("SELECT count(*) FROM events").fetchone()
                    assert rows == reader.head().size
        except Exception as error:  # noqa: BLE001
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert sorted(results) == list(range(1, 201))
    assert verify_ledger(made.path).sound


# --- Reading ----------------------------------------------------------------------------------------------------------


def test_a_reader_keeps_its_snapshot(ledger: SqliteLedger) -> None:
    with ledger.read() as reader:
        before = reader.head()
        ledger.commit([Note()])
        assert reader.execute("SELECT count(*) FROM events").fetchone() == (1,)
        assert reader.head() == before
    with ledger.read() as reader:
        assert reader.head().size == 2


def test_a_reader_cannot_write(ledger: SqliteLedger) -> None:
    with pytest.raises(LedgerUnavailable), ledger.read() as reader:
        reader.execute("DELETE FROM events")
    assert count(ledger, "events") == 1


def test_what_a_reader_raises_comes_through(ledger: SqliteLedger) -> None:
    for error in (KeyError, OSError):
        with pytest.raises(error), ledger.read():
            raise error
    with pytest.raises(sqlite3.OperationalError, match="no such table"), ledger.read() as reader:
        reader.execute("SELECT * FROM nowhere")
    assert count(ledger, "events") == 1


def test_the_data_version_tells_of_every_commit_by_anyone(made: Made, ledger: SqliteLedger) -> None:
    other = made.open()
    versions = [ledger.data_version()]
    for each in (ledger, other, ledger):
        each.commit([Note()])
        versions.append(ledger.data_version())
    assert len(set(versions)) == 4
    assert ledger.data_version() == versions[-1]


def test_a_closed_ledger_says_so(ledger: SqliteLedger) -> None:
    ledger.close()
    for use in (lambda: ledger.commit([Note()]), lambda: count(ledger, "events"), ledger.data_version):
        with pytest.raises(LedgerUnavailable):
            use()


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


def replay(made: Made, ledger: SqliteLedger, script: str) -> None:
    """Change the file behind the ledger's back."""
    with sqlite3.connect(made.path) as connection:
        connection.executescript(script)
    connection.close()


ROLLBACK = "DELETE FROM events WHERE seq >= {size}; UPDATE head SET (size, frontier) = ({size}, x'{frontier}');"

# Rolled back, and then continued past the old size by somebody else.
FORK = """
    UPDATE events SET leaf = zeroblob(32) WHERE seq = 3;
    UPDATE head SET size = 5;
    INSERT INTO events VALUES (4, x'00', x'00');
"""


@pytest.mark.parametrize("use", ["commit", "read"])
@pytest.mark.parametrize(
    "script",
    [
        ROLLBACK,
        "UPDATE head SET epoch = 'ffffffff'",
        "UPDATE head SET time = time - 1",
        "UPDATE head SET frontier = zeroblob(length(frontier))",
        FORK,
    ],
)
def test_a_head_that_went_back_stops_the_process(made: Made, ledger: SqliteLedger, script: str, use: str) -> None:
    ledger.commit([Note()])
    with ledger.read() as reader:
        (frontier,) = reader.execute("SELECT frontier FROM head").fetchone()
    ledger.commit([Note(), Note()])
    replay(made, ledger, script.format(size=2, frontier=frontier.hex()))
    with pytest.raises(LedgerShrunk):
        ledger.commit([Note()]) if use == "commit" else count(ledger, "events")
    for again in (lambda: ledger.commit([Note()]), lambda: count(ledger, "events")):
        with pytest.raises(LedgerStopped):
            again()


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


def test_a_missing_head_stops_the_process(made: Made, ledger: SqliteLedger) -> None:
    replay(made, ledger, "DELETE FROM head")
    with pytest.raises(LedgerCorrupt):
        ledger.commit([Note()])
    with pytest.raises(LedgerStopped):
        ledger.commit([Note()])
