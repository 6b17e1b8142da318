"""Faults of PostgreSQL and of the way to it. After each, what was acknowledged is there, once, and nothing half is."""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from broker.ledger import LedgerNotOpened, LedgerUnavailable, OutcomeUnknown, postgres_schema
from broker.ledger.commands.issue import Asked, Issue, Verdict
from broker.ledger.events import parse
from broker.ledger.postgres import PostgresLedger
from broker.ledger.postgres_audit import PostgresStore
from broker.ledger.transfer import LedgerUnsound, ensure_sound, export_ledger
from broker.model import Ask, Proof, Workload
from tests.invariants import next_version
from tests.ledger.kit import Note, count
from tests.ledger.postgres import PostgresMade
from tests.postgres import Server, server_or_skip
from tests.proxy import Proxy

ANSWERS_WITHIN_S = 4.0


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = server_or_skip()
    yield server
    server.close()


@pytest.fixture
def made(server: Server) -> Iterator[PostgresMade]:
    made = PostgresMade(server)
    yield made
    made.close()


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    proxy = Proxy(server.port)
    yield proxy
    proxy.close()


@pytest.fixture
def behind_proxy(made: PostgresMade, proxy: Proxy) -> PostgresLedger:
    ledger = made.open(url=made.server.url(made.database, port=proxy.port))
    ledger.commit([Note("before")])
    return ledger


def notes(made: PostgresMade) -> Counter[str]:
    """How often each text was written, read past the ledger."""
    rows = made.server.run("SELECT bytes FROM events ORDER BY seq", made.database)
    return Counter(parse(bytes(row[0])).body.get("why", "genesis") for row in rows)


def is_sound(made: PostgresMade) -> None:
    report = made.verify()
    assert report.sound, report.findings


def eventually(ledger: PostgresLedger, text: str) -> int:
    """Commit, as soon as the store is back."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return ledger.commit([Note(text)])[0]
        except LedgerUnavailable:
            assert time.monotonic() < deadline
            time.sleep(0.02)


# --- The answer to a COMMIT that never arrives ------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["lose_answer", "cut_answer"])
def test_a_commit_whose_answer_is_lost_counts(
    made: PostgresMade, proxy: Proxy, behind_proxy: PostgresLedger, how: str
) -> None:
    proxy.on_commit = how
    assert behind_proxy.commit([Note("in doubt"), Note("too")]) == [2, 3]
    assert behind_proxy.commit([Note("after")]) == [4]
    assert notes(made) == {"genesis": 1, "before": 1, "in doubt": 1, "too": 1, "after": 1}
    is_sound(made)


@pytest.mark.parametrize("how", ["lose_request", "cut_request"])
def test_a_commit_that_never_arrived_did_nothing(
    made: PostgresMade, proxy: Proxy, behind_proxy: PostgresLedger, how: str
) -> None:
    proxy.on_commit = how
    with pytest.raises(LedgerUnavailable) as caught:
        behind_proxy.commit([Note("in doubt")])
    assert not isinstance(caught.value, OutcomeUnknown)
    assert eventually(behind_proxy, "after") == 2
    assert notes(made) == {"genesis": 1, "before": 1, "after": 1}
    is_sound(made)


def test_another_broker_may_have_written_the_same_bytes(
    made: PostgresMade, proxy: Proxy, behind_proxy: PostgresLedger
) -> None:
    """What stands at our position proves nothing: the same request at another broker makes the same event."""
    other = made.open()
    proxy.on_commit = "cut_request"
    state = behind_proxy._resolve_doubt
    written: list[int] = []

    def first_the_other() -> bool:
        if behind_proxy._doubt and not written:
            written.append(eventually(other, "same"))
        return state()

    behind_proxy._resolve_doubt = first_the_other  # type: ignore[method-assign]
    with pytest.raises(LedgerUnavailable):
        behind_proxy.commit([Note("same")])
    assert written == [2]
    assert notes(made)["same"] == 1


@pytest.mark.parametrize("what", ["lose_request", "lose_answer"])
def test_while_nothing_can_be_looked_up_the_outcome_is_unknown(
    made: PostgresMade, proxy: Proxy, behind_proxy: PostgresLedger, what: str
) -> None:
    """All ways to the server turn into black holes; when they open again, the answer to the past is found first."""
    proxy.on_commit, proxy.then_silent = what, True
    started = time.monotonic()
    with pytest.raises(OutcomeUnknown):
        behind_proxy.commit([Note("in doubt")])
    assert time.monotonic() - started < 2 * ANSWERS_WITHIN_S
    with pytest.raises(LedgerUnavailable) as caught:
        behind_proxy.commit([Note("not this one")], priority=True)
    assert not isinstance(caught.value, OutcomeUnknown)
    proxy.silent = False
    proxy.cut()
    eventually(behind_proxy, "after")
    expected = {"genesis": 1, "before": 1, "after": 1} | ({"in doubt": 1} if what == "lose_answer" else {})
    assert notes(made) == expected
    is_sound(made)


def test_what_was_issued_without_anybody_knowing_is_recorded_as_failed(
    made: PostgresMade, proxy: Proxy, behind_proxy: PostgresLedger
) -> None:
    proxy.on_commit, proxy.then_silent = "lose_answer", True
    with pytest.raises(OutcomeUnknown):
        behind_proxy.commit([Note("in doubt"), issue(made, "one"), issue(made, "one"), issue(made, "two")])
    proxy.silent = False
    proxy.cut()
    eventually(behind_proxy, "after")
    events = [parse(bytes(row[0])) for row in made.server.run("SELECT bytes FROM events ORDER BY seq", made.database)]
    assert [event.type for event in events[2:]] == [
        "failed",  # the first note: whatever says nothing of itself is left as it is
        "issued",
        "refused",
        "issued",
        "failed",
        "failed",
        "failed",  # the last note
    ]
    assert [event.body["jti"] for event in events[6:8]] == [events[3].body["jti"], events[5].body["jti"]]
    assert count(behind_proxy, "grants") == 0
    assert count(behind_proxy, "proofs") == 2, "they stay spent"
    is_sound(made)


def issue(made: PostgresMade, jti: str) -> Issue:
    proof = Proof("https://idp.example.com", jti, made.clock() + 60_000)
    workload = Workload("idp", "oidc", proof.issuer, "bot", {}, proof.expires, proof)
    asked = Asked("bot", "team", workload, None, Ask("invoices", ("invoices:read",)))
    return Issue(asked, Verdict("automatic", ["reads"], "", ""), "https://invoices.example.com", 300_000)


# --- The server -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_server_that_restarts(made: PostgresMade, how: signal.Signals) -> None:
    ledger = made.open()
    ledger.commit([Note("one")])
    assert count(ledger, "events") == 2
    made.server.stop(how)
    for use in (lambda: ledger.commit([Note("lost")]), lambda: count(ledger, "events")):
        with pytest.raises(LedgerUnavailable):
            use()
    made.server.start()
    assert eventually(ledger, "two") == 2
    assert count(ledger, "events") == 3
    is_sound(made)


def test_a_server_killed_under_load_loses_nothing_that_was_acknowledged(made: PostgresMade) -> None:
    ledgers = [made.open() for _ in range(3)]
    acknowledged: list[str] = []
    ending = threading.Event()

    def work(name: int) -> None:
        number = 0
        while not ending.is_set():
            texts = [f"{name}.{number}.{part}" for part in range(3)]
            number += 1
            try:
                ledgers[name].commit([Note(text) for text in texts])
            except LedgerUnavailable:
                time.sleep(0.01)
            else:
                acknowledged.extend(texts)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        time.sleep(0.3)
        made.server.stop(signal.SIGKILL)
        made.server.start()
    reached = len(acknowledged)
    deadline = time.monotonic() + 20
    while len(acknowledged) < reached + 30 and time.monotonic() < deadline:
        time.sleep(0.05)
    ending.set()
    for thread in threads:
        thread.join()
    assert len(acknowledged) >= reached + 30, "they all came back"
    written = notes(made)
    assert set(acknowledged) <= written.keys()
    assert max(written.values()) == 1
    is_sound(made)


def test_a_slow_server(made: PostgresMade, proxy: Proxy, behind_proxy: PostgresLedger) -> None:
    proxy.delay_s = 5
    for use in (
        lambda: behind_proxy.commit([Note("slow")], priority=True),
        lambda: count(behind_proxy, "events"),
    ):
        started = time.monotonic()
        with pytest.raises(LedgerUnavailable):
            use()
        assert time.monotonic() - started < ANSWERS_WITHIN_S
    proxy.delay_s = 0
    proxy.cut()
    eventually(behind_proxy, "after")
    assert notes(made) == {"genesis": 1, "before": 1, "after": 1}
    is_sound(made)


def test_a_silent_server_is_noticed_by_those_who_only_listen(proxy: Proxy, behind_proxy: PostgresLedger) -> None:
    behind_proxy.data_version()
    proxy.silent = True
    deadline = time.monotonic() + 5
    with pytest.raises(LedgerUnavailable):  # noqa: PT012
        while time.monotonic() < deadline:
            behind_proxy.data_version()
            time.sleep(0.01)


def test_no_connections_left(made: PostgresMade) -> None:
    ledger = made.open()
    ledger.commit([Note("one")])
    taken: list[psycopg.Connection] = []
    try:
        with pytest.raises(psycopg.OperationalError, match="too many"):  # noqa: PT012
            while True:
                taken.append(psycopg.connect(made.url))
        with pytest.raises(LedgerUnavailable):
            PostgresLedger.open(made.url)
        assert ledger.commit([Note("two")]) == [2], "who has one keeps it"
    finally:
        for each in taken:
            each.close()
    assert count(ledger, "events") == 3


def test_a_read_only_server(made: PostgresMade) -> None:
    ledger = made.open()
    ledger.commit([Note("before")])
    made.behind(f"ALTER DATABASE {made.database} SET default_transaction_read_only = on")
    replica = made.open()
    with pytest.raises(LedgerUnavailable) as caught:
        replica.commit([Note("no")])
    assert "read-only" in str(caught.value.internal)
    assert count(replica, "events") == 2
    assert ledger.commit([Note("one")]) == [2], "a connection from before may still write"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk(made: PostgresMade) -> None:
    place = made.server.place / "small"
    place.mkdir()
    if os.system(f"mount -t tmpfs -o size=12m,mode=0777 tmpfs {place} 2>/dev/null") != 0:
        pytest.skip("mounting is not permitted here")
    try:
        os.system(f"chown --reference={made.server.place} {place}")
        made.server.run(f"CREATE TABLESPACE small LOCATION '{place}'")
        made.behind("ALTER TABLE events SET TABLESPACE small")
        ledger, done = made.open(), 1
        with pytest.raises(LedgerUnavailable) as caught:  # noqa: PT012
            while True:
                done += len(ledger.commit([Note(os.urandom(8_000).hex())] * 16))
        assert "No space left" in str(caught.value.internal)
        assert count(ledger, "events") == done
        is_sound(made)
        made.behind("ALTER TABLE events SET TABLESPACE pg_default")
        assert ledger.commit([Note("room")]) == [done]
        made.server.run("DROP TABLESPACE small")
    finally:
        os.system(f"umount {place}")


def test_a_server_that_may_lose_what_it_confirmed_is_a_concern(made: PostgresMade) -> None:
    assert made.open().concerns == []
    unsafe = server_or_skip(fsync="off")
    try:
        (concern,) = (other := PostgresMade(unsafe)).open().concerns
        assert "fsync=off" in concern
        other.close()
    finally:
        unsafe.close()


# --- Other brokers ----------------------------------------------------------------------------------------------------


def test_a_broker_that_stands_still_in_its_turn_loses_it(made: PostgresMade) -> None:
    """As after SIGSTOP, or behind a dead network: it holds the head row and says nothing."""
    still, other = made.open(), made.open()
    still._take_turn(priority=False)
    with pytest.raises(LedgerUnavailable):
        other.commit([Note("busy")])
    assert eventually(other, "goes on") == 1
    assert eventually(still, "comes back") == 2
    is_sound(made)


def test_ordinary_writers_wait_while_a_kill_is_pending(made: PostgresMade) -> None:
    holder, kill, ordinary = (made.open(turn_timeout_s=10, write_s=10) for _ in range(3))
    link, _ = holder._take_turn(priority=False)
    order: dict[int, str] = {}

    def write(ledger: PostgresLedger, text: str, *, priority: bool) -> None:
        (seq,) = ledger.commit([Note(text)], priority=priority)
        order[seq] = text

    threads = []
    for number, (ledger, text, priority) in enumerate(((ordinary, "ordinary", False), (kill, "kill", True)), 1):
        threads.append(threading.Thread(target=write, args=(ledger, text), kwargs={"priority": priority}))
        threads[-1].start()
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        while made.server.run(waiting) != [(number,)]:
            time.sleep(0.005)
    link.script("ROLLBACK")
    for thread in threads:
        thread.join(20)
    assert [order[seq] for seq in sorted(order)] == ["kill", "ordinary"]


def test_brokers_share_the_positions(made: PostgresMade) -> None:
    ledgers = [made.open() for _ in range(3)]
    taken: list[int] = []

    def work(ledger: PostgresLedger) -> None:
        for _ in range(40):
            taken.extend(ledger.commit([Note(), Note()]))

    threads = [threading.Thread(target=work, args=(ledger,)) for ledger in ledgers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(1, 241))
    is_sound(made)


# --- Versions ---------------------------------------------------------------------------------------------------------


def test_what_is_no_ledger_of_ours_is_refused(made: PostgresMade) -> None:
    empty = made.server.url(made.server.new_database())
    with pytest.raises(LedgerNotOpened, match="no ledger"):
        PostgresLedger.open(empty)
    with pytest.raises(LedgerNotOpened, match="has a ledger"):
        PostgresLedger.create(made.url, origin="x")
    with pytest.raises(LedgerUnavailable):
        PostgresLedger.open(made.server.url("nowhere"))
    made.behind("UPDATE ledger_schema SET version = version - 1, serves_from = serves_from - 1")
    with pytest.raises(LedgerNotOpened, match="needs") as caught:
        made.open()
    assert "db upgrade" in str(caught.value.next)


def test_brokers_of_this_and_the_version_before_share_one_schema(
    made: PostgresMade, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = made.open()
    before.commit([Note("before")])
    known = postgres_schema.migrations()
    version = known[-1][0]
    later = "ALTER TABLE head ADD COLUMN later TEXT NOT NULL DEFAULT '';\nCREATE TABLE later (x TEXT) STRICT;\n"

    with monkeypatch.context() as newer:
        newer.setattr(postgres_schema, "migrations", lambda: [*known, (version + 1, later)])
        with pytest.raises(LedgerNotOpened, match="needs"):
            made.open()
        assert PostgresLedger.upgrade(made.url) == (version, version + 1)
        assert PostgresLedger.upgrade(made.url) == (version + 1, version + 1)
        after = made.open()
        assert after.commit([Note("after")]) == [2]
        is_sound(made)
        assert made.verify().findings == []
    assert before.commit([Note("still there")]) == [3]
    assert made.open().commit([Note("started anew")]) == [4]
    assert after.commit([Note("beside it")]) == [5]
    made.behind(f"UPDATE ledger_schema SET version = {version + 2}, serves_from = {version + 1}")
    with pytest.raises(LedgerNotOpened, match="knows versions up to"):
        made.open()


def test_an_audit_by_the_version_before_says_what_it_cannot_check(
    made: PostgresMade, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as newer:
        later = (next_version.version() + 1, next_version.MIGRATION)
        newer.setattr(postgres_schema, "migrations", lambda: [*next_version.migrations(), later])
        PostgresLedger.upgrade(made.url)
    report = made.verify()
    assert report.sound
    assert [(found.code, found.warning) for found in report.findings] == [("schema_newer", True)]
    store = PostgresStore(made.url, "the test's database")
    for use in (
        lambda: ensure_sound(store, "It"),
        lambda: export_ledger(store, tmp_path / "copy", open_key=lambda *_: b""),
    ):
        with pytest.raises(LedgerUnsound, match="newer program"):
            use()
    made.behind("CREATE RULE quiet AS ON DELETE TO later DO INSTEAD NOTHING")
    assert not made.verify().sound, "no migration makes rules"
    made.behind("DROP RULE quiet ON later")
    assert made.verify().sound
    made.behind("DROP INDEX tasks_due")
    assert not made.verify().sound, "what this program knows must be there"
