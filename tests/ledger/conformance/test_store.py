"""What every store does, through its door: what commits, what does not, and what makes a process stop."""

import threading
import time
from typing import Any

import pytest

from broker.ledger import (
    Head,
    Ledger,
    LedgerCorrupt,
    LedgerShrunk,
    LedgerStopped,
    LedgerUnavailable,
    parse_id,
)
from broker.ledger.events import parse
from tests.ledger.conformance.conftest import Store
from tests.ledger.kit import ORIGIN, Do, Note, Poison, count


def test_a_new_ledger_begins_with_its_genesis(made: Store, ledger: Ledger) -> None:
    with ledger.read() as reader:
        (data,) = reader.execute("SELECT bytes FROM events").fetchone()
        head = reader.head()
    genesis = parse(data)
    assert (genesis.seq, genesis.type) == (0, "ledger.created")
    assert genesis.body == {"epoch": head.epoch, "format": 1, "origin": ORIGIN}
    assert head == Head(epoch=head.epoch, size=1, time=made.clock.now) == ledger.head
    assert parse_id(f"tsk_{head.epoch}_0").epoch == head.epoch
    assert ledger.origin == ORIGIN


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE head SET size = size + 1",
        "UPDATE head SET size = size - 1",
        "UPDATE head SET frontier = {zero}",
        "DELETE FROM head",
        "DELETE FROM events WHERE seq = (SELECT max(seq) FROM events)",
        "DELETE FROM events",
        "UPDATE events SET bytes = {zero} WHERE seq = 0",
        "UPDATE events SET bytes = {zero} WHERE seq = (SELECT max(seq) FROM events)",
        "INSERT INTO events SELECT seq + 1, bytes, leaf FROM events ORDER BY seq DESC LIMIT 1",
    ],
)
def test_a_head_that_does_not_fit_the_events_is_not_opened(made: Store, damage: str) -> None:
    made.open().commit([Note()] * 3)
    made.close()
    made.behind(damage.format(zero=made.blob(b"\0")))
    with pytest.raises(LedgerCorrupt):
        made.open()


def test_positions_follow_one_another_across_batches_and_handles(made: Store, ledger: Ledger) -> None:
    other = made.open()
    assert ledger.commit([Note(), Note()]) == [1, 2]
    assert other.commit([Note()]) == [3]
    assert ledger.commit([Note()] * 600) == list(range(4, 604))
    assert ledger.commit([]) == []
    report = made.verify()
    assert report.sound, report.findings
    assert (report.size, count(ledger, "tiles")) == (604, 3)


def test_a_command_sees_what_earlier_ones_of_its_batch_wrote(ledger: Ledger) -> None:
    write = Do(lambda tx: tx.execute("INSERT INTO texts VALUES (?, ?, 'hello')", ("a", b"salt")).rowcount)
    read = Do(lambda tx: tx.execute("SELECT text FROM texts WHERE ref = ?", ("a",)).fetchall())
    share = Do(lambda tx: tx.scratch.setdefault("shared", tx.next_seq()))
    assert ledger.commit([read, write, read, share, Note(), share]) == [[], 1, [("hello",)], 1, 1, 1]
    assert ledger.commit([share]) == [2]


def test_a_command_that_raises_fails_alone(made: Store, ledger: Ledger) -> None:
    look = Do(lambda tx: (tx.head.guard_version, "poison" in tx.scratch, tx.next_seq()))
    results = ledger.commit([Note(), Poison(), look, Note(), Poison(KeyError), Note()])
    assert [results[index] for index in (0, 2, 3, 5)] == [1, (0, False, 2), 2, 3]
    assert isinstance(results[1], RuntimeError)
    assert isinstance(results[4], KeyError)
    assert ledger.head.size == 4
    assert count(ledger, "texts") == 0
    assert made.verify().sound


def test_an_error_of_the_system_inside_a_command_is_its_own(ledger: Ledger) -> None:
    results = ledger.commit([Note(), Poison(OSError), Note()])
    assert [results[0], type(results[1]), results[2]] == [1, OSError, 2]


def test_a_batch_of_poison_only_changes_nothing(made: Store, ledger: Ledger) -> None:
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
def test_a_wrong_statement_is_its_commands_fault(made: Store, ledger: Ledger, sql: str) -> None:
    results = ledger.commit([Note(), Do(lambda tx: tx.execute(sql)), Note()])
    assert [results[0], results[2]] == [1, 2]
    assert isinstance(results[1], made.error)


@pytest.mark.parametrize("change", ["epoch = 'x'", "time = 0", "size = 99", "guard_version = -1", "floor = -1"])
def test_a_command_cannot_break_the_head(ledger: Ledger, change: str) -> None:
    field, value = change.split(" = ")
    results = ledger.commit(
        [Note(), Do(lambda tx: setattr(tx.head, field, int(value) if value[-1] != "'" else value)), Note()]
    )
    assert [results[0], results[2]] == [1, 2]
    assert isinstance(results[1], ValueError)


def test_what_commands_may_change_of_the_head_is_stored(made: Store, ledger: Ledger) -> None:
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


def test_an_unregistered_event_is_refused(ledger: Ledger) -> None:
    (result,) = ledger.commit([Do(lambda tx: tx.append("made.up", {}))])
    assert isinstance(result, ValueError)
    assert ledger.head.size == 1


def test_ledger_time_never_goes_back(made: Store, ledger: Ledger) -> None:
    start = made.clock.now
    now = Do(lambda tx: (tx.now, tx.append("failed", {"jti": "j", "task": "t", "why": "w"}))[0])
    made.clock.now = start + 1000
    assert ledger.commit([now]) == [start + 1000]
    made.clock.now = start - 50_000
    assert ledger.commit([now, now]) == [start + 1000, start + 1000]
    assert made.open().commit([now]) == [start + 1000]
    made.clock.now = start + 1001
    assert ledger.commit([now]) == [start + 1001]


def test_time_moves_with_projections_too(made: Store, ledger: Ledger) -> None:
    touch = Do(lambda tx: (tx.now, tx.execute("INSERT INTO texts VALUES ('a', ?, 'a')", (b"salt",)))[0])
    made.clock.now += 1000
    seen = ledger.commit([touch])
    made.clock.now -= 5000
    assert ledger.commit([Do(lambda tx: tx.now)]) == seen
    assert ledger.head.size == 1


def test_threads_share_one_ledger(made: Store, ledger: Ledger) -> None:
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
    assert made.verify().sound


def test_a_reader_keeps_its_snapshot(ledger: Ledger) -> None:
    with ledger.read() as reader:
        before = reader.head()
        ledger.commit([Note()])
        assert reader.execute("SELECT count(*) FROM events").fetchone() == (1,)
        assert reader.head() == before
    with ledger.read() as reader:
        assert reader.head().size == 2


def test_a_reader_cannot_write(ledger: Ledger) -> None:
    with pytest.raises(LedgerUnavailable), ledger.read() as reader:
        reader.execute("DELETE FROM events")
    assert count(ledger, "events") == 1


def test_what_a_reader_raises_comes_through(made: Store, ledger: Ledger) -> None:
    for error in (KeyError, OSError):
        with pytest.raises(error), ledger.read():
            raise error
    with pytest.raises(made.error, match="nowhere"), ledger.read() as reader:
        reader.execute("SELECT * FROM nowhere")
    assert count(ledger, "events") == 1


def test_the_data_version_tells_of_every_commit_by_anyone(made: Store, ledger: Ledger) -> None:
    other = made.open()
    for each in (ledger, other, ledger):
        before, deadline = ledger.data_version(), time.monotonic() + 5
        each.commit([Note()])
        while ledger.data_version() == before:
            assert time.monotonic() < deadline
    time.sleep(made.echo_s)
    quiet = ledger.data_version()
    time.sleep(made.echo_s)
    assert ledger.data_version() == quiet


def test_a_closed_ledger_says_so(ledger: Ledger) -> None:
    ledger.close()
    for use in (lambda: ledger.commit([Note()]), lambda: count(ledger, "events"), ledger.data_version):
        with pytest.raises(LedgerUnavailable):
            use()


FORK = (
    "UPDATE events SET leaf = {zeros} WHERE seq = 3; UPDATE head SET size = 5;"
    " INSERT INTO events VALUES (4, {zero}, {zero})"
)
"""Rolled back, and then continued past the old size by somebody else."""


@pytest.mark.parametrize("use", ["commit", "read"])
@pytest.mark.parametrize(
    "script",
    [
        "DELETE FROM events WHERE seq >= 2; UPDATE head SET size = 2; UPDATE head SET frontier = {frontier}",
        "UPDATE head SET epoch = 'ffffffff'",
        "UPDATE head SET time = time - 1",
        "UPDATE head SET frontier = {zeros}",
        FORK,
    ],
)
def test_a_head_that_went_back_stops_the_process(made: Store, ledger: Ledger, script: str, use: str) -> None:
    ledger.commit([Note()])
    with ledger.read() as reader:
        (frontier,) = reader.execute("SELECT frontier FROM head").fetchone()
    ledger.commit([Note(), Note()])
    for statement in script.split(";"):
        made.behind(statement.format(frontier=made.blob(frontier), zero=made.blob(b"\0"), zeros=made.blob(bytes(32))))
    with pytest.raises(LedgerShrunk):
        ledger.commit([Note()]) if use == "commit" else count(ledger, "events")
    for again in (lambda: ledger.commit([Note()]), lambda: count(ledger, "events")):
        with pytest.raises(LedgerStopped):
            again()


def test_a_missing_head_stops_the_process(made: Store, ledger: Ledger) -> None:
    made.behind("DELETE FROM head")
    with pytest.raises(LedgerCorrupt):
        ledger.commit([Note()])
    with pytest.raises(LedgerStopped):
        ledger.commit([Note()])
