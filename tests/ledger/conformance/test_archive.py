"""Old events move to files that still verify against the tree; what remains answers, or says where to look."""

import gzip
from contextlib import closing
from pathlib import Path

import pytest

from broker.config import Config, RetentionSection
from broker.custody import archive_events, copy_out, move_in, move_out
from broker.errors import Conflict, NotFound
from broker.ledger import Ledger
from broker.ledger.archive import Archive, Archivist, InArchive, tile_path
from broker.ledger.events import parse
from broker.ledger.external_views import external_covered
from broker.ledger.merkle import TILE_WIDTH
from broker.ledger.proofs import Proofs
from broker.ledger.report import Report
from broker.ledger.verify import verify_event_proof, verify_store
from broker.revocation import external_receipt
from broker.stores import ledger_to_verify, open_ledger
from broker.wire import Match
from tests.kit import Broker, Home
from tests.ledger.conformance.conftest import Store
from tests.ledger.kit import Do, Note
from tests.postgres import Server

DAY_MS = 86_400_000


def raised_floor(tx: object) -> None:
    tx.head.floor = tx.head.size  # type: ignore[attr-defined]


def filled(made: Store, ledger: Ledger, count: int = 1000) -> None:
    """Events of two periods: positions below `count`, and 300 of a hundred days later."""
    ledger.commit([Note() for _ in range(count - 1)])
    ledger.commit([Do(raised_floor)])
    made.clock.now += 100 * DAY_MS
    ledger.commit([Note() for _ in range(300)])


def archivist(ledger: Ledger, proofs: Proofs, archive: Archive) -> Archivist:
    return Archivist(ledger=ledger, archive=archive, checkpoint=proofs.checkpoint, root=proofs.root)


def test_what_is_archived_verifies_with_and_without_the_files(made: Store, ledger: Ledger, tmp_path: Path) -> None:
    filled(made, ledger)
    proofs, archive = made.proofs(ledger), Archive(tmp_path / "archive")
    kept = proofs.checkpoint(covering=500)
    before = made.verify(keys=[made.verifier_key])
    moved = archivist(ledger, proofs, archive).run(made.clock.now - 50 * DAY_MS)
    assert (moved.start, moved.stop) == (0, 768)
    with ledger.read() as reader:
        assert reader.head().archived == 768
        (count,) = reader.execute("SELECT count(*) FROM events WHERE seq < 768").fetchone()
        assert count == 1, "the beginning stays"
    for report in (
        made.verify(keys=[made.verifier_key], kept=[kept]),
        made.verify(keys=[made.verifier_key], kept=[kept], archive=archive),
    ):
        assert report.sound, report.findings
        assert (report.archived, report.kept, report.size) == (768, 1, before.size + 1)
    assert made.verify(keys=[made.verifier_key], archive=archive).from_archive == 767
    again = archivist(ledger, proofs, archive).run(made.clock.now - 50 * DAY_MS)
    assert again.start == again.stop == 768
    for tile in range(3):
        lines = gzip.decompress((tmp_path / f"archive/events/00{tile}.jsonl.gz").read_bytes()).splitlines()
        assert [parse(line).seq for line in lines] == list(range(tile * TILE_WIDTH, (tile + 1) * TILE_WIDTH))
    ledger.commit([Note()])
    assert made.open().head.archived == 768


def test_proofs_of_archived_positions_need_no_archive(made: Store, ledger: Ledger, tmp_path: Path) -> None:
    filled(made, ledger)
    archive = Archive(tmp_path / "archive")
    archivist(ledger, made.proofs(ledger), archive).run(made.clock.now)
    proofs = made.proofs(ledger)
    for seq in (0, 1, 255, 256, 700, 767, 768, 1100):
        proof = proofs.inclusion(seq)
        with ledger.read() as reader:
            if 0 < seq < 768:
                with pytest.raises(InArchive, match=f"Position {seq} is in the archive"):
                    proofs.event(reader, seq)
                data = archive.event(seq)
            else:
                data = proofs.event(reader, seq).data
        assert verify_event_proof(data, proof, keys=[made.verifier_key]).seq == seq
    assert proofs.consistency(3, 1200)
    with_files = Proofs(ledger=ledger, origin=ledger.origin, key=lambda: made.key, archive=archive)  # type: ignore[attr-defined]
    with ledger.read() as reader:
        assert with_files.event(reader, 700).seq == 700


def test_what_may_be_at_a_backend_keeps_its_events(made: Store, ledger: Ledger, tmp_path: Path) -> None:
    filled(made, ledger)
    insert = (
        "INSERT INTO external_grants (seq, task, agent, resource, audience, issuer, ending, state, expires, settles,"
        " next_try, over) VALUES (300, 'tsk', 'bot', 'db', 'https://db', 'db', 'revocable', 'stuck', 0, 0, 1, 1)"
    )
    ledger.commit([Do(lambda tx: tx.execute(insert))])
    runner = archivist(ledger, made.proofs(ledger), Archive(tmp_path / "archive"))
    assert runner.run(made.clock.now).stop == 256
    ledger.commit([Do(lambda tx: tx.execute("UPDATE external_grants SET next_try = NULL, gone = 1"))])
    assert runner.run(made.clock.now).stop == 768
    assert made.stored("SELECT count(*) FROM external_grants") == 0


def test_what_a_kill_covered_is_counted_from_where_the_archive_ends_and_says_so(
    made: Store, ledger: Ledger, tmp_path: Path
) -> None:
    filled(made, ledger)
    insert = (
        "INSERT INTO external_grants (seq, task, agent, resource, audience, issuer, ending, state, expires, settles,"
        " next_try, over, gone, gone_seq) VALUES ({0}, 'tsk', 'bot', 'db', 'https://db', 'db', 'revocable', 'revoked',"
        " 0, 0, NULL, 1, 1, 100000)"
    )
    ledger.commit([Do(lambda tx: [tx.execute(insert.format(seq)) for seq in (300, 900)])])
    covered = [(Match.AGENT, "bot")]

    def told() -> tuple[int, object]:
        with ledger.read() as reader:
            receipt = external_receipt(external_covered(reader, covered))
        return receipt["made"], receipt.get("counted_from")

    assert told() == (2, None)
    assert archivist(ledger, made.proofs(ledger), Archive(tmp_path / "archive")).run(made.clock.now).stop == 768
    assert told() == (1, 768)


def test_an_interrupted_run_goes_on(
    made: Store, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(made, ledger)
    archive, proofs = Archive(tmp_path / "archive"), made.proofs(ledger)
    monkeypatch.setattr("broker.ledger.archive._TILES_AT_ONCE", 1)
    for stop in ("put_tile", "put_checkpoint"):
        with monkeypatch.context() as patch:
            patch.setattr(Archive, stop, _power_cut)
            with pytest.raises(KeyboardInterrupt):
                archivist(ledger, proofs, archive).run(made.clock.now)
        assert made.verify(keys=[made.verifier_key]).sound
    runner = archivist(ledger, proofs, archive)
    commits = iter([None, None])
    with monkeypatch.context() as patch:
        commit = runner._commit

        def twice(command: object) -> object:
            if next(commits, "over") == "over":
                raise KeyboardInterrupt
            return commit(command)

        patch.setattr(runner, "_commit", twice)
        with pytest.raises(KeyboardInterrupt):
            runner.run(made.clock.now)
    assert ledger.head.archived == 256
    assert made.verify(keys=[made.verifier_key], archive=archive).sound
    assert archivist(ledger, proofs, archive).run(made.clock.now).stop == 768
    assert made.verify(keys=[made.verifier_key], archive=archive).sound


def _power_cut(*_: object) -> None:
    raise KeyboardInterrupt


def test_two_archivists_at_once_do_it_once(made: Store, ledger: Ledger, tmp_path: Path) -> None:
    filled(made, ledger)
    archive, proofs = Archive(tmp_path / "archive"), made.proofs(ledger)
    other = archivist(made.open(), proofs, archive)
    planned = other.boundary(made.clock.now)
    archivist(ledger, proofs, archive).run(made.clock.now)
    other.boundary = lambda _: planned  # type: ignore[method-assign]
    with pytest.raises(Conflict):
        other.run(made.clock.now)
    assert made.verify(keys=[made.verifier_key], archive=archive).sound


CHANGES = {
    "events": lambda path: (path / "events/001.jsonl.gz").write_bytes(b"junk"),
    "another event": lambda path: _edit(path / "events/001.jsonl.gz"),
    "hashes": lambda path: (path / "tile/0/001").write_bytes(bytes(32 * TILE_WIDTH)),
    "a missing bundle": lambda path: (path / "events/001.jsonl.gz").unlink(),
}


def _edit(path: Path) -> None:
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()).replace(b"because", b"becouse", 1)))


@pytest.mark.parametrize("name", CHANGES)
def test_a_damaged_archive_is_found(made: Store, ledger: Ledger, tmp_path: Path, name: str) -> None:
    filled(made, ledger)
    archive = Archive(tmp_path / "archive")
    archivist(ledger, made.proofs(ledger), archive).run(made.clock.now)
    CHANGES[name](archive.path)
    with pytest.raises((Conflict, NotFound)):
        archive.event(300)
    assert archive.event(100)
    report = made.verify(keys=[made.verifier_key], archive=archive)
    assert not report.sound
    assert made.verify(keys=[made.verifier_key]).sound


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE tiles SET hashes = (SELECT hashes FROM tiles WHERE level = 0 AND idx = 2) WHERE level = 0 AND idx = 1",
        "DELETE FROM tiles WHERE level = 0 AND idx = 1",
        "UPDATE head SET archived = 1024",
        "UPDATE head SET archived = 512",
        "DELETE FROM events WHERE seq = 0",
    ],
)
def test_archiving_is_no_way_to_hide_a_change(made: Store, ledger: Ledger, tmp_path: Path, sql: str) -> None:
    filled(made, ledger)
    proofs = made.proofs(ledger)
    archivist(ledger, proofs, Archive(tmp_path / "archive")).run(made.clock.now - 50 * DAY_MS)
    made.behind(sql)
    assert not made.verify(keys=[made.verifier_key]).sound


def test_another_ledgers_archive_is_left_alone(made: Store, ledger: Ledger, tmp_path: Path) -> None:
    filled(made, ledger)
    archive = Archive(tmp_path / "archive")
    archive.put_tile(0, 0, bytes(32 * TILE_WIDTH))
    with pytest.raises(Conflict, match="another ledger's archive"):
        archivist(ledger, made.proofs(ledger), archive).run(made.clock.now)
    assert ledger.head.archived == 0


def test_paths_are_those_of_tlog_tiles() -> None:
    assert [tile_path(index) for index in (0, 67, 999, 1000, 1234067)] == [
        "000",
        "067",
        "999",
        "x001/000",
        "x001/x234/067",
    ]


# --- Through the front door -------------------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "postgres"])
def home(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    if request.param == "postgres":
        server: Server = request.getfixturevalue("server")
        monkeypatch.setenv("TASKPASS_TEST_POSTGRES", server.url())
    return Home(tmp_path / "broker")


def with_archive(config: Config, path: Path | None, days: int | None = None) -> Config:
    return config.model_copy(update={"retention": RetentionSection(archive_path=path, days=days)})


def sound(config: Config, archive: Path | None = None) -> Report:
    report = verify_store(ledger_to_verify(config), archive=Archive(archive) if archive else None)
    assert report.sound, report.findings
    return report


def test_a_broker_goes_on_over_an_archive(home: Home, tmp_path: Path) -> None:
    path = tmp_path / "archive"
    with closing(Broker(home)) as broker:
        task = broker.open_task(purpose="Dispute of Mr Gauss", trigger={"kind": "user", "ref": "ticket-4711"})
        decision = broker.granted(task=task)["decision_id"]
        implicit = broker.granted()
        broker.post(f"/v1/tasks/{task}/end", {}, by="dispute-bot")
        broker.process.ledger.commit([Note() for _ in range(600)])
        home.clock.forward(40 * 86_400)
        broker.do("expire_tasks", "housekeep")
        broker.granted()
        before = broker.query("SELECT count(*) FROM texts")[0][0]
    assert before > 0
    home.config = with_archive(home.config, path, days=31)
    with closing(Broker(home)) as broker:
        broker.run(broker.process.safekeeping.archive())
        assert broker.process.ledger.head.archived >= 512
        assert broker.query("SELECT count(*) FROM texts")[0][0] == 0
        explained = broker.get(f"/v1/decisions/{decision}", by="operator").json()
        assert (explained["type"], explained["after"]["state"]) == ("issued", "over")
        receipt = broker.get(f"/v1/tasks/{task}/receipt", by="operator").json()
        assert (receipt["state"], receipt["complete"], receipt["purpose"]) == ("archived", False, None)
        receipt = broker.get(f"/v1/tasks/{implicit['task']}/receipt", by="operator").json()
        assert receipt["events"][0]["jti"]
        assert broker.active(broker.granted()["access_token"])
        assert broker.get("/v1/ledger?from=0&limit=5", by="operator").status_code == 200
    assert sound(home.config, path).from_archive > 0
    home.config = with_archive(home.config, None)
    with closing(Broker(home)) as broker:
        for asked in (f"/v1/decisions/{decision}", f"/v1/tasks/{task}/receipt"):
            answer = broker.get(asked, by="operator")
            assert answer.status_code == 404
            assert "is in the archive" in answer.text
            assert "retention.archive_path" in answer.text
        assert broker.get("/v1/ledger/proof/3", by="operator").status_code == 200


def test_nothing_that_may_be_alive_is_archived(home: Home, tmp_path: Path) -> None:
    with closing(Broker(home)) as broker:
        opened = broker.open_task(deadline_seconds=86_400)
        broker.process.ledger.commit([Note() for _ in range(600)])
        home.clock.forward(3_600)
        broker.granted()
        seq = int(opened.rpartition("_")[2])
    moved = archive_events(home.config, tmp_path / "archive", before_ms=home.clock.now + DAY_MS, now=home.clock)
    assert moved.stop <= seq


@pytest.mark.parametrize("move", [True, False])
def test_an_archived_ledger_moves_too(home: Home, tmp_path: Path, move: bool) -> None:
    with closing(Broker(home)) as broker:
        broker.granted()
        broker.process.ledger.commit([Note() for _ in range(600)])
        home.clock.forward(3_600)
        broker.do("expire_tasks", "housekeep")
    path = tmp_path / "archive"
    assert archive_events(home.config, path, before_ms=home.clock.now, now=home.clock).stop == 512
    if move:
        move_out(home.config, tmp_path / "file", actor="a", reason="r", now=home.clock)
    else:
        copy_out(home.config, tmp_path / "file")
    section = type(home.config.ledger)(path=tmp_path / "new.db")
    target = home.config.model_copy(update={"ledger": section})
    move_in(target, tmp_path / "file", now=home.clock)
    assert sound(target, path).archived == 512
    with closing(open_ledger(target, now=home.clock)) as ledger:
        assert ledger.head.archived == 512
