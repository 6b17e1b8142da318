"""The audit of every store against tampering, with what is stored: any change of it is found, or there is a checkpoint
that was kept elsewhere.

`TASKPASS_BIT_FLIPS` sets how many random flips SQLite gets; PostgreSQL, which is slower to copy, a fifth of them.
"""

import base64
import hashlib
import json
import os
import random
from collections.abc import Iterator
from contextlib import suppress

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker.ledger import Tx, make_id
from broker.ledger.checkpoint import Checkpoint, VerifierKey, sign_checkpoint, unverified_checkpoint
from broker.ledger.events import commitment, encode, parse
from broker.ledger.merkle import Frontier, leaf_hash
from broker.ledger.report import Report
from tests.ledger.conformance.conftest import Store
from tests.ledger.kit import ORIGIN, Do, Made, Note
from tests.ledger.postgres import PostgresMade

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
    for row in (("r1", "registry", b"\x01"), ("p1", "policies", b"\x02")):
        tx.execute("INSERT INTO bundles (hash, kind, content) VALUES (?, ?, ?)", row)
    tx.head.registry_hash, tx.head.policy_hash = "r1", "p1"
    for kind, digest in (("registry", "r1"), ("policies", "p1")):
        tx.append(f"{kind}.loaded", {"hash": digest, "diff": [], "actor": "taskpass"})


class Evidence:
    """One finished ledger, with what an auditor holds beside it."""

    def __init__(self, made: Store) -> None:
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
        self.original = made

    @property
    def postgres(self) -> bool:
        return isinstance(self.original, PostgresMade)

    def audit(self, made: Store, *, kept: bool = False) -> Report:
        """What the audit of a copy says."""
        notes = [self.kept] if kept else []
        return made.verify(keys=[made.verifier_key], kept=notes, bundle_hash=bundle_hash)

    def codes(self, made: Store, *, kept: bool = False) -> set[str]:
        return {finding.code for finding in self.audit(made, kept=kept).findings}


def bundle_hash(kind: str, content: bytes) -> str:
    return {("registry", b"\x01"): "r1", ("policies", b"\x02"): "p1"}.get((kind, content), "no such bundle")


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def evidence(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    if request.param == "postgres":
        return Evidence(PostgresMade(request.getfixturevalue("server")))
    return Evidence(Made(tmp_path_factory.mktemp("evidence") / "original.db"))


@pytest.fixture
def copy(evidence: Evidence) -> Iterator[Store]:
    """A fresh copy, to tamper with."""
    with evidence.original.copied() as made:
        yield made


def test_an_untouched_ledger_is_sound(evidence: Evidence, copy: Store) -> None:
    report = evidence.audit(copy, kept=True)
    assert report.sound, report.findings
    assert (report.size, report.checkpoints, report.kept) == (SIZE, 3, 1)
    assert bytes.fromhex(report.root) == unverified_checkpoint(evidence.kept).root
    assert contents(copy) == contents(evidence.original)
    assert json.loads(json.dumps(report.to_json()))["sound"] is True


# --- One change at a time ---------------------------------------------------------------------------------------------

CHANGES: dict[str, tuple[str, list[str]]] = {
    "an event's bytes": (
        "event_changed",
        ["UPDATE events SET bytes = {changed} WHERE seq = 50"],
    ),
    "an event's leaf": ("event_changed", ["UPDATE events SET leaf = {hash} WHERE seq = 50"]),
    "an event's end": ("event_changed", ["UPDATE events SET bytes = {longer} WHERE seq = 50"]),
    "an event to nothing": ("event_malformed", ["UPDATE events SET bytes = {empty} WHERE seq = 50"]),
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
    "a tile": ("tile_wrong", ["UPDATE tiles SET hashes = {tile} WHERE level = 0 AND idx = 1"]),
    "an upper tile": ("tile_wrong", ["UPDATE tiles SET hashes = {pair} WHERE level = 1"]),
    "a missing tile": ("tile_wrong", ["DELETE FROM tiles WHERE level = 0 AND idx = 0"]),
    "a tile too many": ("tile_surplus", ["INSERT INTO tiles VALUES (0, 2, {nul})"]),
    "a level too many": ("tile_surplus", ["INSERT INTO tiles VALUES (7, 0, {nul})"]),
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
    "the head's frontier": ("head_wrong", ["UPDATE head SET frontier = {hash}"]),
    "the head's registry": ("head_wrong", ["UPDATE head SET registry_hash = 'evil'"]),
    "the head's policies": ("head_wrong", ["UPDATE head SET policy_hash = ''"]),
    "no head": ("head_wrong", ["DELETE FROM head"]),
    "a checkpoint's text": (
        "checkpoint_signature",
        [f"UPDATE checkpoints SET note = replace(note, '{ORIGIN}', 'ledger.example/tess')"],
    ),
    "a checkpoint's note": ("checkpoint_malformed", ["UPDATE checkpoints SET note = 'junk' WHERE size < 200"]),
    "a checkpoint's row": ("checkpoint_malformed", [f"UPDATE checkpoints SET size = size + 1 WHERE size = {SIZE}"]),
    "a text": ("text_wrong", ["UPDATE texts SET text = 'refund Mr Noether'"]),
    "a text's salt": ("text_wrong", ["UPDATE texts SET salt = {nul}"]),
    "a text's place": ("text_wrong", ["UPDATE texts SET ref = replace(ref, 'purpose', 'task')"]),
    "a text's kind": ("text_wrong", ["UPDATE texts SET ref = replace(ref, 'tsk', 'tsl')"]),
    "a text for no event": ("text_wrong", ["INSERT INTO texts VALUES ('tsk_00000000_999999/purpose', {nul}, 'x')"]),
    "a text for nothing": ("text_wrong", ["INSERT INTO texts VALUES ('x', {nul}, 'x')"]),
    "a bundle": ("bundle_wrong", ["UPDATE bundles SET content = {two} WHERE kind = 'registry'"]),
    "swapped tables": (
        "schema_changed",
        ["ALTER TABLE texts RENAME TO t", "ALTER TABLE bundles RENAME TO texts", "ALTER TABLE t RENAME TO bundles"],
    ),
    "a missing table": ("unreadable", ["DROP TABLE checkpoints"]),
    "a view": ("schema_changed", ["CREATE VIEW fine AS SELECT 1"]),
}


_SECOND_HEAD = (
    "INSERT INTO head SELECT 2, epoch, size, time, frontier, guard_version,"
    " registry_hash, policy_hash, active_kid, issuance_stopped, floor, 0, '' FROM head"
)
ONLY: dict[str, dict[str, tuple[str, list[str]]]] = {
    "sqlite": {
        "two heads": ("head_wrong", [_SECOND_HEAD]),
        "a trigger": ("schema_changed", ["CREATE TRIGGER hide AFTER INSERT ON events BEGIN DELETE FROM texts; END"]),
        "a foreign mark": ("not_a_ledger", ["PRAGMA application_id = 7"]),
        "the version": ("schema_changed", ["PRAGMA user_version = 1"]),
    },
    "postgres": {
        "two heads": ("head_wrong", ["ALTER TABLE head DROP CONSTRAINT head_one_check", _SECOND_HEAD]),
        "a trigger": (
            "schema_changed",
            [
                "CREATE FUNCTION hide() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
                "CREATE TRIGGER hide AFTER INSERT ON events FOR EACH ROW EXECUTE FUNCTION hide()",
            ],
        ),
        "a rule": ("schema_changed", ["CREATE RULE hide AS ON INSERT TO events DO ALSO DELETE FROM texts"]),
        "a row policy": ("schema_changed", ["CREATE POLICY hide ON events USING (seq <> 50)"]),
        "a generated column": (
            "schema_changed",
            ["ALTER TABLE texts ADD COLUMN x BIGINT GENERATED ALWAYS AS (1) STORED"],
        ),
        "a default": ("schema_changed", ["ALTER TABLE head ALTER COLUMN time SET DEFAULT 0"]),
        "another order of texts": ("schema_changed", ['ALTER TABLE texts ALTER COLUMN text TYPE TEXT COLLATE "POSIX"']),
        "no book": ("not_a_ledger", ["DROP TABLE ledger_schema"]),
        "an older version": ("not_a_ledger", ["UPDATE ledger_schema SET version = 1"]),
        "a version that this program may not read": ("not_a_ledger", ["UPDATE ledger_schema SET serves_from = 99"]),
    },
}
DIALECT = {
    "sqlite": {"changed": "CAST(replace(bytes, 'note 7', 'note 8') AS BLOB)", "longer": "CAST(bytes || ' ' AS BLOB)"},
    "postgres": {
        "changed": "convert_to(replace(convert_from(bytes, 'UTF8'), 'note 7', 'note 8'), 'UTF8')",
        "longer": "bytes || ' '::bytea",
    },
}


BLOBS = {
    "empty": b"",
    "nul": b"\0",
    "two": b"\2",
    "hash": bytes(32),
    "pair": bytes(64),
    "tile": bytes(8192),
}


@pytest.mark.parametrize(
    ("evidence", "name"),
    [(store, name) for store, only in ONLY.items() for name in (*CHANGES, *only)],
    indirect=["evidence"],
)
def test_a_change_is_found(evidence: Evidence, copy: Store, name: str) -> None:
    store = "postgres" if evidence.postgres else "sqlite"
    code, statements = (CHANGES | ONLY[store])[name]
    words = DIALECT[store] | {word: copy.blob(data) for word, data in BLOBS.items()}
    for statement in statements:
        copy.behind(statement.format(**words))
    report = evidence.audit(copy)
    assert code in {finding.code for finding in report.findings}
    assert not report.sound
    assert all(finding.position and finding.detail and finding.meaning for finding in report.findings)


def test_an_erased_text_is_no_finding(evidence: Evidence, copy: Store) -> None:
    copy.behind("DELETE FROM texts")
    assert evidence.audit(copy, kept=True).sound


def test_findings_have_an_end(evidence: Evidence, copy: Store) -> None:
    copy.behind(f"UPDATE events SET bytes = {copy.blob(bytes(1))}")
    report = evidence.audit(copy)
    assert len(report.findings) == 200
    assert report.more_findings > 300
    assert not report.sound


# --- What only a kept checkpoint can tell -----------------------------------------------------------------------------


def rewrite(copy: Store, bodies: list[tuple[str, dict]], *, key: Ed25519PrivateKey) -> None:
    """Make a whole new, consistent history, signed with a key that the attacker has."""
    for table in ("events", "tiles", "checkpoints", "texts", "bundles"):
        copy.behind(f"DELETE FROM {table}")
    frontier, rows = Frontier(), []
    for seq, (type_, body) in enumerate(bodies):
        data = encode(seq, 1_700_000_000_000, type_, body)
        frontier.append(leaf_hash(data))
        rows.append(f"({seq}, {copy.blob(data)}, {copy.blob(leaf_hash(data))})")
    copy.behind(f"INSERT INTO events VALUES {', '.join(rows)}")
    note = sign_checkpoint(Checkpoint(ORIGIN, frontier.size, frontier.root()), key)
    copy.behind(f"INSERT INTO checkpoints VALUES ({frontier.size}, 0, '{note}')")
    copy.behind(
        f"UPDATE head SET epoch = '{bodies[0][1]['epoch']}', size = {frontier.size}, time = 1700000000000,"
        f" frontier = {copy.blob(frontier.encode())}, registry_hash = '', policy_hash = ''"
    )


def history(size: int) -> list[tuple[str, dict]]:
    """The first `size` bodies of a plausible history (shorter than a tile)."""
    genesis = {"epoch": "7f3a9c1e", "format": 1, "origin": ORIGIN}
    return [("ledger.created", genesis), *[("failed", {"jti": "j", "task": "t", "why": "w"})] * (size - 1)]


def test_a_rewrite_with_the_live_key_is_found_by_a_kept_checkpoint_only(evidence: Evidence, copy: Store) -> None:
    rewrite(copy, history(200), key=copy.key)
    assert evidence.audit(copy).sound
    assert evidence.codes(copy, kept=True) == {"kept_beyond"}
    older = sign_checkpoint(Checkpoint(ORIGIN, 100, bytes(32)), copy.key)
    report = copy.verify(keys=[copy.verifier_key], kept=[older])
    assert [finding.code for finding in report.findings] == ["kept_forked"]


def test_a_restored_old_copy_is_found_by_a_kept_checkpoint_only(made: Store) -> None:
    made.open().commit([Note()] * 5)
    made.close()
    with made.copied() as old:
        ledger = made.open()
        ledger.commit([Note()] * 5)
        kept = made.proofs(ledger).checkpoint()
        made.close()
        assert old.verify().sound
        report = old.verify(keys=[made.verifier_key], kept=[kept])
        assert [finding.code for finding in report.findings] == ["kept_beyond"]
    assert made.verify(keys=[made.verifier_key], kept=[kept]).kept == 1


def test_every_truncation_is_found_by_a_kept_checkpoint(made: Store) -> None:
    ledger, heads = made.open(), []
    for _ in range(12):
        heads += made.found("SELECT size, time, frontier FROM head")
        ledger.commit([Note()])
    kept = made.proofs(ledger).checkpoint()
    made.close()
    for size, time, frontier in reversed(heads):
        made.behind(f"DELETE FROM events WHERE seq >= {size}")
        made.behind(f"UPDATE head SET size = {size}, time = {time}, frontier = {made.blob(frontier)}")
        made.behind("DELETE FROM checkpoints")
        assert made.verify().sound
        assert not made.verify(keys=[made.verifier_key], kept=[kept]).sound


def test_a_kept_checkpoint_that_cannot_be_used(evidence: Evidence, copy: Store) -> None:
    stranger = Ed25519PrivateKey.generate()
    root = unverified_checkpoint(evidence.kept)
    for note in (
        "junk",
        evidence.kept.replace(f"\n{SIZE}\n", f"\n{SIZE - 1}\n"),
        sign_checkpoint(root, stranger),
        sign_checkpoint(Checkpoint("ledger.example/other", root.size, root.root), copy.key),
    ):
        report = copy.verify(keys=[copy.verifier_key], kept=[note])
        assert [finding.code for finding in report.findings] == ["kept_unusable"]


def test_without_a_key_the_ledgers_own_is_used_and_said_so(made: Store) -> None:
    ledger = made.open()
    x = base64.urlsafe_b64encode(made.verifier_key.public).rstrip(b"=").decode()
    jwk = {"kty": "OKP", "crv": "Ed25519", "x": x}
    ledger.commit([Do(lambda tx: tx.append("key.published", {"kid": "k", "purpose": "checkpoint", "jwk": jwk}))])
    kept = made.proofs(ledger).checkpoint()
    report = made.verify(kept=[kept])
    assert report.sound, report.findings
    assert (report.checkpoints, report.kept, report.keys_from_ledger) == (1, 1, True)
    assert report.keys == (f"{ORIGIN}+{made.verifier_key.id.hex()}",)
    other = VerifierKey.of(ORIGIN, Ed25519PrivateKey.generate())
    report = made.verify(keys=[other], kept=[kept])
    assert [finding.code for finding in report.findings] == ["kept_unusable"]


def test_verifying_needs_nothing_but_the_bytes(evidence: Evidence) -> None:
    """A second auditor, in ten lines: the events alone give the root that was signed."""
    rows = [bytes(data) for (data,) in evidence.original.found("SELECT bytes FROM events ORDER BY seq")]
    assert [parse(data).seq for data in rows] == list(range(SIZE))

    def root(hashes: list[bytes]) -> bytes:
        if len(hashes) == 1:
            return hashes[0]
        k = 1 << (len(hashes) - 1).bit_length() - 1
        return hashlib.sha256(b"\x01" + root(hashes[:k]) + root(hashes[k:])).digest()

    assert root([hashlib.sha256(b"\x00" + data).digest() for data in rows]) == unverified_checkpoint(evidence.kept).root


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


def contents(made: Store) -> dict[str, list[tuple]]:
    return {
        table: made.found(f"SELECT {', '.join(columns)} FROM {table} ORDER BY 1, 2")
        for table, columns in COVERED.items()
    }


def test_any_flipped_bit_in_what_is_stored_is_found(evidence: Evidence, copy: Store) -> None:
    chance = random.Random(20240607)
    known = contents(copy)
    places = [
        (table, column, row)
        for table, columns in COVERED.items()
        for column in range(len(columns))
        for row in range(len(known[table]))
    ]
    for number in range(FLIPS // 5 if evidence.postgres else FLIPS):
        # Every table and column in turn at first, then wherever.
        table, column, row = places[number * 61 % len(places)] if number < 40 else chance.choice(places)
        before = known[table][row]
        after = flip(copy, table, before, column, chance)
        assert not evidence.audit(copy).sound, f"{table}: {before!r} -> {after!r}"
        put(copy, table, after, before)
    assert contents(copy) == known
    assert evidence.audit(copy).sound


def flip(made: Store, table: str, row: tuple, column: int, chance: random.Random) -> tuple:
    """Change one bit of one value, to something that the store takes; the row as it is now."""
    for _ in range(20):
        after = (*row[:column], flipped(row[column], chance), *row[column + 1 :])
        with suppress(made.error):  # another row has this key, or no text may hold this
            put(made, table, row, after)
            return after
    raise AssertionError(f"nothing else fits into {table}.{COVERED[table][column]}")


def put(made: Store, table: str, before: tuple, after: tuple) -> None:
    """One row in place of another."""
    old, new = (
        [f"{name} = {literal(made, value)}" for name, value in zip(COVERED[table], row, strict=True)]
        for row in (before, after)
    )
    made.behind(f"UPDATE {table} SET {', '.join(new)} WHERE {' AND '.join(old)}")
    assert made.found(f"SELECT count(*) FROM {table} WHERE {' AND '.join(new)}") == [(1,)]


def literal(made: Store, value: object) -> str:
    if isinstance(value, bytes):
        return made.blob(value)
    return str(value) if isinstance(value, int) else "'" + str(value).replace("'", "''") + "'"


def flipped(value: object, chance: random.Random) -> object:
    """The value with one bit changed."""
    if isinstance(value, int):
        return value ^ (1 << chance.randrange(40))
    raw = bytearray(value.encode() if isinstance(value, str) else value)
    while True:
        copy = bytearray(raw)
        copy[chance.randrange(len(raw))] ^= 1 << chance.randrange(7 if isinstance(value, str) else 8)
        return copy.decode() if isinstance(value, str) else bytes(copy)
