"""The audit against tampering of every kind, at the level of SQL and at the level of the file's bytes.

`TASKPASS_BIT_FLIPS` sets how many random flips each of the two levels gets.
"""

import base64
import hashlib
import json
import os
import random
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker.ledger import Tx, make_id
from broker.ledger.checkpoint import Checkpoint, VerifierKey, sign_checkpoint, unverified_checkpoint
from broker.ledger.events import commitment, encode, parse
from broker.ledger.merkle import Frontier, leaf_hash
from broker.ledger.report import Report
from broker.ledger.verify import verify_ledger
from tests.ledger.kit import ORIGIN, Do, Made, Note

FLIPS = int(os.environ.get("TASKPASS_BIT_FLIPS", "250"))
SIZE = 530  # two full tiles and part of a third


def open_task(tx: Tx) -> None:
    """An event with a personal text, as the broker writes them."""
    task = make_id("tsk", tx.epoch, tx.next_seq())
    salt, digest = commitment("refund Ms Noether")
    tx.execute("INSERT INTO texts (ref, salt, text) VALUES (?, ?, ?)", (f"{task}/purpose", salt, "refund Ms Noether"))
    body = {"task": task, "agent": "a", "workload": {}, "purpose": digest, "trigger": "user", "deadline": 1}
    tx.append("task.opened", body)


def load(tx: Tx) -> None:
    """A registry and a bundle in force."""
    tx.execute("INSERT INTO bundles (hash, kind, content) VALUES ('r1', 'registry', x'01'), ('p1', 'policies', x'02')")
    tx.head.registry_hash, tx.head.policy_hash = "r1", "p1"
    for kind, digest in (("registry", "r1"), ("policies", "p1")):
        tx.append(f"{kind}.loaded", {"hash": digest, "diff": [], "actor": "taskpass"})


class Evidence:
    """One finished ledger on disk, with what an auditor holds beside it."""

    def __init__(self, folder: Path) -> None:
        made = Made(folder / "original.db")
        ledger, proofs = made.open(), made.proofs(made.open())
        ledger.commit([Do(open_task), Do(load)])
        for number in range((SIZE - 4) // 6):
            made.clock.now += 2000
            ledger.commit([Note(f"note {number}")] * 6)
            if number in (20, 60):
                proofs.checkpoint()
        ledger.commit([Note("last")] * (SIZE - ledger.head.size))
        made.clock.now += 2000
        self.kept = proofs.checkpoint(covering=SIZE - 1)
        assert unverified_checkpoint(self.kept).size == SIZE
        made.close()
        self.key, self.verifier_key, self.path = made.key, made.verifier_key, folder / "ledger.db"
        self.original = (folder / "original.db").read_bytes()

    def restore(self) -> None:
        """The file as it was."""
        self.path.write_bytes(self.original)

    @contextmanager
    def sql(self) -> Iterator[sqlite3.Connection]:
        """Tamper with a fresh copy."""
        self.restore()
        with closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = DELETE")
            connection.execute("PRAGMA ignore_check_constraints = ON")
            yield connection

    def audit(self, *, kept: bool = False) -> Report:
        """What the audit says now."""
        notes = [self.kept] if kept else []
        return verify_ledger(self.path, keys=[self.verifier_key], kept=notes, bundle_hash=bundle_hash)

    def codes(self, *, kept: bool = False) -> set[str]:
        return {finding.code for finding in self.audit(kept=kept).findings}


def bundle_hash(kind: str, content: bytes) -> str:
    return {("registry", b"\x01"): "r1", ("policies", b"\x02"): "p1"}.get((kind, content), "no such bundle")


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    return Evidence(tmp_path_factory.mktemp("evidence"))


def test_an_untouched_ledger_is_sound(evidence: Evidence) -> None:
    evidence.restore()
    report = evidence.audit(kept=True)
    assert report.sound, report.findings
    assert (report.size, report.checkpoints, report.kept) == (SIZE, 3, 1)
    assert bytes.fromhex(report.root) == unverified_checkpoint(evidence.kept).root
    assert evidence.path.read_bytes() == evidence.original
    assert sorted(path.name for path in evidence.path.parent.iterdir() if path.name.startswith("ledger.db")) == [
        "ledger.db"
    ]
    assert json.loads(json.dumps(report.to_json()))["sound"] is True


# --- One change at a time ---------------------------------------------------------------------------------------------

CHANGES: dict[str, tuple[str, list[str]]] = {
    "an event's bytes": (
        "event_changed",
        ["UPDATE events SET bytes = CAST(replace(bytes, 'note 7', 'note 8') AS BLOB) WHERE seq = 50"],
    ),
    "an event's leaf": ("event_changed", ["UPDATE events SET leaf = zeroblob(32) WHERE seq = 50"]),
    "an event's end": ("event_changed", ["UPDATE events SET bytes = CAST(bytes || ' ' AS BLOB) WHERE seq = 50"]),
    "an event to nothing": ("event_malformed", ["UPDATE events SET bytes = x'' WHERE seq = 50"]),
    "a deletion in the middle": ("event_missing", ["DELETE FROM events WHERE seq = 50"]),
    "a deletion at the start": ("event_missing", ["DELETE FROM events WHERE seq = 0"]),
    "a deletion at the end": ("head_wrong", [f"DELETE FROM events WHERE seq = {SIZE - 1}"]),
    "a deletion closed up": (
        "event_moved",
        [
            "DELETE FROM events WHERE seq = 50",
            "UPDATE events SET seq = -seq WHERE seq > 50",
            "UPDATE events SET seq = -seq - 1 WHERE seq < 0",
        ],
    ),
    "two events swapped": (
        "event_moved",
        [
            "UPDATE events SET seq = -1 WHERE seq = 50",
            "UPDATE events SET seq = 50 WHERE seq = 51",
            "UPDATE events SET seq = 51 WHERE seq = -1",
        ],
    ),
    "an event copied over another": (
        "event_moved",
        [("UPDATE events SET (bytes, leaf) = (SELECT bytes, leaf FROM events WHERE seq = 50) WHERE seq = 51")],
    ),
    "a duplicate at the end": (
        "event_moved",
        [f"INSERT INTO events SELECT {SIZE}, bytes, leaf FROM events WHERE seq = {SIZE - 1}"],
    ),
    "all events": ("head_wrong", ["DELETE FROM events"]),
    "an event before the first": (
        "event_missing",
        ["INSERT INTO events SELECT -1, bytes, leaf FROM events WHERE seq = 0"],
    ),
    "a tile": ("tile_wrong", ["UPDATE tiles SET hashes = zeroblob(8192) WHERE level = 0 AND idx = 1"]),
    "an upper tile": ("tile_wrong", ["UPDATE tiles SET hashes = zeroblob(64) WHERE level = 1"]),
    "a missing tile": ("tile_wrong", ["DELETE FROM tiles WHERE level = 0 AND idx = 0"]),
    "a tile too many": ("tile_surplus", ["INSERT INTO tiles VALUES (0, 2, x'00')"]),
    "a level too many": ("tile_surplus", ["INSERT INTO tiles VALUES (7, 0, x'00')"]),
    "swapped tiles": (
        "tile_wrong",
        [
            "UPDATE tiles SET idx = 9 WHERE level = 0 AND idx = 0",
            "UPDATE tiles SET idx = 0 WHERE level = 0 AND idx = 1",
            "UPDATE tiles SET idx = 1 WHERE idx = 9",
        ],
    ),
    "the head's size": ("head_wrong", ["UPDATE head SET size = size - 1"]),
    "the head's time": ("head_wrong", ["UPDATE head SET time = 5"]),
    "the head's epoch": ("head_wrong", ["UPDATE head SET epoch = 'ffffffff'"]),
    "the head's frontier": ("head_wrong", ["UPDATE head SET frontier = zeroblob(length(frontier))"]),
    "the head's registry": ("head_wrong", ["UPDATE head SET registry_hash = 'evil'"]),
    "the head's policies": ("head_wrong", ["UPDATE head SET policy_hash = ''"]),
    "no head": ("head_wrong", ["DELETE FROM head"]),
    "two heads": (
        "head_wrong",
        [
            (
                "INSERT INTO head SELECT 2, epoch, size, time, frontier, guard_version,"
                " registry_hash, policy_hash, active_kid, issuance_stopped, floor, 0, '' FROM head"
            )
        ],
    ),
    "a checkpoint's text": (
        "checkpoint_signature",
        [f"UPDATE checkpoints SET note = replace(note, '{ORIGIN}', 'ledger.example/tess')"],
    ),
    "a checkpoint's note": ("checkpoint_malformed", ["UPDATE checkpoints SET note = 'junk' WHERE size < 200"]),
    "a checkpoint's row": ("checkpoint_malformed", [f"UPDATE checkpoints SET size = size + 1 WHERE size = {SIZE}"]),
    "a text": ("text_wrong", ["UPDATE texts SET text = 'refund Mr Noether'"]),
    "a text's salt": ("text_wrong", ["UPDATE texts SET salt = x'00'"]),
    "a text's place": ("text_wrong", ["UPDATE texts SET ref = replace(ref, 'purpose', 'task')"]),
    "a text's kind": ("text_wrong", ["UPDATE texts SET ref = replace(ref, 'tsk', 'tsl')"]),
    "a text for no event": ("text_wrong", ["INSERT INTO texts VALUES ('tsk_00000000_999999/purpose', x'00', 'x')"]),
    "a text for nothing": ("text_wrong", ["INSERT INTO texts VALUES ('x', x'00', 'x')"]),
    "a bundle": ("bundle_wrong", ["UPDATE bundles SET content = x'02' WHERE kind = 'registry'"]),
    "swapped tables": (
        "schema_changed",
        ["ALTER TABLE texts RENAME TO t", "ALTER TABLE bundles RENAME TO texts", "ALTER TABLE t RENAME TO bundles"],
    ),
    "a missing table": ("unreadable", ["DROP TABLE checkpoints"]),
    "a trigger": ("schema_changed", ["CREATE TRIGGER hide AFTER INSERT ON events BEGIN DELETE FROM texts; END"]),
    "a view": ("schema_changed", ["CREATE VIEW fine AS SELECT 1"]),
    "a foreign mark": ("not_a_ledger", ["PRAGMA application_id = 7"]),
    "the version": ("schema_changed", ["PRAGMA user_version = 1"]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_found(evidence: Evidence, name: str) -> None:
    code, statements = CHANGES[name]
    with evidence.sql() as connection:
        for statement in statements:
            connection.execute(statement)
    report = evidence.audit()
    assert code in {finding.code for finding in report.findings}
    assert not report.sound
    assert all(finding.position and finding.detail and finding.meaning for finding in report.findings)


def test_an_erased_text_is_no_finding(evidence: Evidence) -> None:
    with evidence.sql() as connection:
        connection.execute("DELETE FROM texts")
    assert evidence.audit(kept=True).sound


def test_findings_have_an_end(evidence: Evidence) -> None:
    with evidence.sql() as connection:
        connection.execute("UPDATE events SET bytes = x'00'")
    report = evidence.audit()
    assert len(report.findings) == 200
    assert report.more_findings > 300
    assert not report.sound


# --- What only a kept checkpoint can tell -----------------------------------------------------------------------------


def rewrite(evidence: Evidence, bodies: list[tuple[str, dict]], *, key: Ed25519PrivateKey) -> None:
    """Make a whole new, consistent history, signed with a key that the attacker has."""
    with evidence.sql() as connection:
        for table in ("events", "tiles", "checkpoints", "texts", "bundles"):
            connection.execute(f"DELETE FROM {table}")
        frontier = Frontier()
        for seq, (type_, body) in enumerate(bodies):
            data = encode(seq, 1_700_000_000_000, type_, body)
            frontier.append(leaf_hash(data))
            connection.execute("INSERT INTO events VALUES (?, ?, ?)", (seq, data, leaf_hash(data)))
        note = sign_checkpoint(Checkpoint(ORIGIN, frontier.size, frontier.root()), key)
        connection.execute("INSERT INTO checkpoints VALUES (?, 0, ?)", (frontier.size, note))
        connection.execute(
            "UPDATE head SET (epoch, size, time, frontier, registry_hash, policy_hash) = (?, ?, ?, ?, '', '')",
            (bodies[0][1]["epoch"], frontier.size, 1_700_000_000_000, frontier.encode()),
        )


def history(size: int) -> list[tuple[str, dict]]:
    """The first `size` bodies of a plausible history (shorter than a tile)."""
    genesis = {"epoch": "7f3a9c1e", "format": 1, "origin": ORIGIN}
    return [("ledger.created", genesis), *[("failed", {"jti": "j", "task": "t", "why": "w"})] * (size - 1)]


def test_a_rewrite_with_the_live_key_is_found_by_a_kept_checkpoint_only(evidence: Evidence) -> None:
    rewrite(evidence, history(200), key=evidence.key)
    assert evidence.audit().sound
    assert evidence.codes(kept=True) == {"kept_beyond"}
    older = sign_checkpoint(Checkpoint(ORIGIN, 100, bytes(32)), evidence.key)
    report = verify_ledger(evidence.path, keys=[evidence.verifier_key], kept=[older])
    assert [finding.code for finding in report.findings] == ["kept_forked"]


def test_a_restored_old_copy_is_found_by_a_kept_checkpoint_only(tmp_path: Path) -> None:
    made = Made(tmp_path / "ledger.db")
    ledger = made.open()
    ledger.commit([Note()] * 5)
    made.close()
    shutil.copy(made.path, tmp_path / "old.db")
    ledger = made.open()
    ledger.commit([Note()] * 5)
    kept = made.proofs(ledger).checkpoint()
    made.close()
    assert verify_ledger(tmp_path / "old.db").sound
    report = verify_ledger(tmp_path / "old.db", keys=[made.verifier_key], kept=[kept])
    assert [finding.code for finding in report.findings] == ["kept_beyond"]
    assert verify_ledger(made.path, keys=[made.verifier_key], kept=[kept]).kept == 1


def test_every_truncation_is_found_by_a_kept_checkpoint(tmp_path: Path) -> None:
    made = Made(tmp_path / "ledger.db")
    ledger = made.open()
    frontiers = []
    for _ in range(12):
        with ledger.read() as reader:
            frontiers.append(reader.execute("SELECT size, time, frontier FROM head").fetchone())
        ledger.commit([Note()])
    kept = made.proofs(ledger).checkpoint()
    made.close()
    for size, time, frontier in frontiers:
        cut = tmp_path / f"cut{size}.db"
        shutil.copy(made.path, cut)
        with closing(sqlite3.connect(cut, isolation_level=None)) as connection:
            connection.execute("DELETE FROM events WHERE seq >= ?", (size,))
            connection.execute("UPDATE head SET (size, time, frontier) = (?, ?, ?)", (size, time, frontier))
            connection.execute("DELETE FROM checkpoints")
        assert verify_ledger(cut).sound
        assert not verify_ledger(cut, keys=[made.verifier_key], kept=[kept]).sound


def test_a_kept_checkpoint_that_cannot_be_used(evidence: Evidence) -> None:
    evidence.restore()
    stranger = Ed25519PrivateKey.generate()
    root = unverified_checkpoint(evidence.kept)
    for note in (
        "junk",
        evidence.kept.replace(f"\n{SIZE}\n", f"\n{SIZE - 1}\n"),
        sign_checkpoint(root, stranger),
        sign_checkpoint(Checkpoint("ledger.example/other", root.size, root.root), evidence.key),
    ):
        report = verify_ledger(evidence.path, keys=[evidence.verifier_key], kept=[note])
        assert [finding.code for finding in report.findings] == ["kept_unusable"]


def test_without_a_key_the_ledgers_own_is_used_and_said_so(tmp_path: Path) -> None:
    made = Made(tmp_path / "ledger.db")
    ledger = made.open()
    x = base64.urlsafe_b64encode(made.verifier_key.public).rstrip(b"=").decode()
    jwk = {"kty": "OKP", "crv": "Ed25519", "x": x}
    ledger.commit([Do(lambda tx: tx.append("key.published", {"kid": "k", "purpose": "checkpoint", "jwk": jwk}))])
    kept = made.proofs(ledger).checkpoint()
    report = verify_ledger(made.path, kept=[kept])
    assert report.sound, report.findings
    assert (report.checkpoints, report.kept, report.keys_from_ledger) == (1, 1, True)
    assert report.keys == (f"{ORIGIN}+{made.verifier_key.id.hex()}",)
    other = VerifierKey.of(ORIGIN, Ed25519PrivateKey.generate())
    report = verify_ledger(made.path, keys=[other], kept=[kept])
    assert [finding.code for finding in report.findings] == ["kept_unusable"]
    made.close()


# --- Random flips -----------------------------------------------------------------------------------------------------

# What the events determine. The other columns are projections, or hints that only the broker itself reads.
COVERED = {
    "events": ("seq", "bytes", "leaf"),
    "tiles": ("level", "idx", "hashes"),
    "head": ("epoch", "size", "frontier", "registry_hash", "policy_hash"),
    "checkpoints": ("size", "note"),
    "texts": ("ref", "salt", "text"),
    "bundles": ("hash", "kind", "content"),
}


def contents(connection: sqlite3.Connection) -> dict[str, list[tuple]]:
    return {
        table: connection.execute(f"SELECT {', '.join(columns)} FROM {table} ORDER BY 1, 2").fetchall()
        for table, columns in COVERED.items()
    }


def test_any_flipped_bit_in_what_is_stored_is_found(evidence: Evidence) -> None:
    chance = random.Random(20240607)
    with evidence.sql() as connection:
        known = contents(connection)
    places = [
        (table, column, row)
        for table, columns in COVERED.items()
        for column in range(len(columns))
        for row in range(len(known[table]))
    ]
    for number in range(FLIPS):
        # Every table and column in turn at first, then wherever.
        table, column, row = places[number * 61 % len(places)] if number < 40 else chance.choice(places)
        name, old = COVERED[table][column], known[table][row][column]
        new = flipped(old, chance)
        with evidence.sql() as connection:
            connection.execute("PRAGMA writable_schema = ON")
            keys = " AND ".join(f"{each} = ?" for each in COVERED[table])
            changed = connection.execute(
                f"UPDATE OR REPLACE {table} SET {name} = ? WHERE {keys}", (new, *known[table][row])
            ).rowcount
            assert changed == 1
        assert not evidence.audit().sound, f"{table}.{name} of row {row}: {old!r} -> {new!r}"


def flipped(value: object, chance: random.Random) -> object:
    """The value with one bit changed."""
    if isinstance(value, int):
        return value ^ (1 << chance.randrange(40))
    raw = bytearray(value.encode() if isinstance(value, str) else value)
    while True:
        copy = bytearray(raw)
        copy[chance.randrange(len(raw))] ^= 1 << chance.randrange(7 if isinstance(value, str) else 8)
        return copy.decode() if isinstance(value, str) else bytes(copy)


def test_any_flipped_bit_of_the_file_is_found_or_changes_nothing(evidence: Evidence) -> None:
    chance = random.Random(20240608)
    evidence.restore()
    with closing(sqlite3.connect(f"file:{evidence.path}?mode=ro&immutable=1", uri=True)) as connection:
        known = contents(connection)
    found = 0
    for _ in range(FLIPS):
        place, bit = chance.randrange(len(evidence.original)), chance.randrange(8)
        raw = bytearray(evidence.original)
        raw[place] ^= 1 << bit
        evidence.path.write_bytes(raw)
        if not evidence.audit().sound:
            found += 1
            continue
        with closing(sqlite3.connect(f"file:{evidence.path}?mode=ro&immutable=1", uri=True)) as connection:
            assert contents(connection) == known, f"byte {place} bit {bit}"
    assert found > FLIPS // 3


# --- The write-ahead log, live files and copies -----------------------------------------------------------------------


def crashed(made: Made, folder: Path) -> Path:
    """Copies of the file and its log, as a crash would leave them."""
    copy = folder / "crashed.db"
    shutil.copy(made.path, copy)
    shutil.copy(made.path.with_name(made.path.name + "-wal"), copy.with_name("crashed.db-wal"))
    return copy


def test_what_is_only_in_the_log_counts(made: Made, tmp_path: Path) -> None:
    ledger = made.open()
    ledger.commit([Note()] * 10)
    assert verify_ledger(made.path).size == 11, "beside a running broker"
    copy = crashed(made, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("crashed*")}
    report = verify_ledger(copy)
    assert (report.sound, report.size) == (True, 11), report.findings
    assert {path.name: path.read_bytes() for path in tmp_path.glob("crashed*")} == before, "evidence stays as it is"
    copy.with_name("crashed.db-wal").unlink()
    assert verify_ledger(copy).size < 11


def test_any_flipped_bit_of_the_log_is_told(made: Made, tmp_path: Path) -> None:
    ledger = made.open()
    for _ in range(5):
        ledger.commit([Note()])
    copy = crashed(made, tmp_path)
    wal = copy.with_name("crashed.db-wal")
    original, chance = wal.read_bytes(), random.Random(20240609)
    assert verify_ledger(copy).findings == []
    for _ in range(FLIPS // 5):
        raw = bytearray(original)
        raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
        wal.write_bytes(raw)
        report = verify_ledger(copy)
        assert "wal_unreadable" in {finding.code for finding in report.findings}
    wal.write_bytes(original[: len(original) // 2])
    report = verify_ledger(copy, keys=[made.verifier_key], kept=[made.proofs(ledger).checkpoint()])
    assert {finding.code for finding in report.findings} == {"kept_beyond"}


def test_no_file_and_junk(tmp_path: Path) -> None:
    for content in (None, b"", b"junk" * 5000):
        if content is not None:
            (tmp_path / "ledger.db").write_bytes(content)
        report = verify_ledger(tmp_path / "ledger.db")
        assert not report.sound
        assert {finding.code for finding in report.findings} <= {"not_a_ledger", "unreadable"}


def test_verifying_needs_nothing_but_the_bytes(evidence: Evidence) -> None:
    """A second auditor, in ten lines: the events alone give the root that was signed."""
    evidence.restore()
    with closing(sqlite3.connect(evidence.path)) as connection:
        rows = [row[0] for row in connection.execute("SELECT bytes FROM events ORDER BY seq")]
    assert [parse(data).seq for data in rows] == list(range(SIZE))

    def root(hashes: list[bytes]) -> bytes:
        if len(hashes) == 1:
            return hashes[0]
        k = 1 << (len(hashes) - 1).bit_length() - 1
        return hashlib.sha256(b"\x01" + root(hashes[:k]) + root(hashes[k:])).digest()

    assert root([hashlib.sha256(b"\x00" + data).digest() for data in rows]) == unverified_checkpoint(evidence.kept).root
