"""The audit of a SQLite ledger down to the bytes of its file and its log: whatever is flipped there is found.

`TASKPASS_BIT_FLIPS` sets how many random flips the file gets. What is stored in it: `conformance/test_tampering.py`.
"""

import os
import random
import shutil
from pathlib import Path

import pytest

from broker.ledger.verify import verify_ledger
from tests.ledger.conformance.test_tampering import Evidence, contents
from tests.ledger.kit import Made, Note

FLIPS = int(os.environ.get("TASKPASS_BIT_FLIPS", "250"))


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    return Evidence(Made(tmp_path_factory.mktemp("evidence") / "original.db"))


def test_an_audit_leaves_the_file_as_it_is(evidence: Evidence) -> None:
    with evidence.original.copied() as made:
        before = made.path.read_bytes()
        assert evidence.audit(made).sound
        assert made.path.read_bytes() == before
        assert [path.name for path in made.path.parent.glob(f"{made.path.name}*")] == [made.path.name]


def test_any_flipped_bit_of_the_file_is_found_or_changes_nothing(evidence: Evidence) -> None:
    chance = random.Random(20240608)
    known, original = contents(evidence.original), evidence.original.path.read_bytes()
    found = 0
    with evidence.original.copied() as made:
        for _ in range(FLIPS):
            place, bit = chance.randrange(len(original)), chance.randrange(8)
            raw = bytearray(original)
            raw[place] ^= 1 << bit
            made.path.write_bytes(raw)
            if not evidence.audit(made).sound:
                found += 1
                continue
            assert contents(made) == known, f"byte {place} bit {bit}"
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
