import os
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.ledger import LedgerUnavailable
from broker.ledger.spool import LONGEST_RECORD, SLOT_SIZE, SLOTS, Spool


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kills.reserve"


def test_the_space_is_reserved_once_and_private(path: Path) -> None:
    Spool.open(path).close()
    status = path.stat()
    assert (status.st_size, stat.S_IMODE(status.st_mode)) == (SLOTS * SLOT_SIZE, 0o600)
    assert status.st_blocks * 512 >= status.st_size
    Spool.open(path).close()
    assert path.stat().st_size == SLOTS * SLOT_SIZE


def test_records_survive_until_they_are_cleared(path: Path) -> None:
    spool = Spool.open(path)
    slots = [spool.put(record) for record in (b"one", b"two", b"x" * LONGEST_RECORD)]
    spool.close()
    spool = Spool.open(path)
    assert spool.entries() == list(zip(slots, (b"one", b"two", b"x" * LONGEST_RECORD), strict=True))
    spool.clear(slots[1])
    assert [record for _, record in spool.entries()] == [b"one", b"x" * LONGEST_RECORD]
    assert spool.put(b"three") == slots[1]
    assert path.stat().st_size == SLOTS * SLOT_SIZE, "nothing new is ever allocated"
    spool.close()


def test_bounds(path: Path) -> None:
    spool = Spool.open(path)
    for record in (b"", b"x" * (LONGEST_RECORD + 1)):
        with pytest.raises(ValueError, match="a record has"):
            spool.put(record)
    for slot in (-1, SLOTS):
        with pytest.raises(ValueError, match="no slot"):
            spool.clear(slot)
    for number in range(SLOTS):
        spool.put(b"%d" % number)
    with pytest.raises(LedgerUnavailable, match="used up"):
        spool.put(b"one more")
    assert len(spool.entries()) == SLOTS
    spool.close()


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 300), st.integers(0, 400), st.integers(1, 255))
def test_a_torn_or_flipped_record_reads_as_empty_or_whole(
    tmp_path_factory: pytest.TempPathFactory, length: int, place: int, mask: int
) -> None:
    path = tmp_path_factory.mktemp("spool") / "reserve"
    spool = Spool.open(path)
    record = bytes(range(1, 251)) * 2
    record = record[:length]
    slot = spool.put(record)
    raw = os.pread(spool._descriptor, SLOT_SIZE, slot * SLOT_SIZE)
    os.pwrite(spool._descriptor, bytes([raw[place] ^ mask]), slot * SLOT_SIZE + place)
    entries = spool.entries()
    assert entries == ([] if place < 12 + length else [(slot, record)])
    spool.close()


def test_an_interrupted_reservation_goes_on(path: Path) -> None:
    path.write_bytes(bytes(10_000))
    spool = Spool.open(path)
    spool.put(b"record")
    assert path.stat().st_size == SLOTS * SLOT_SIZE
    spool.close()


def test_a_kill_is_spooled_on_a_full_disk(tmp_path: Path) -> None:
    if os.geteuid() != 0 or os.system(f"mount -t tmpfs -o size=2m tmpfs {tmp_path} 2>/dev/null") != 0:
        pytest.skip("mounting a small file system needs root")
    try:
        spool = Spool.open(tmp_path / "reserve")
        with pytest.raises(OSError, match="No space"), (tmp_path / "junk").open("wb", buffering=0) as junk:  # noqa: PT012
            while True:
                assert junk.write(bytes(4096)) == 4096
        assert spool.put(b"kill") == 0
        assert spool.entries() == [(0, b"kill")]
        spool.close()
        with pytest.raises(LedgerUnavailable, match="reserved"):
            Spool.open(tmp_path / "another")
    finally:
        os.system(f"umount {tmp_path}")


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(LedgerUnavailable):
        Spool.open(tmp_path / "missing" / "reserve")


def test_a_closed_spool_says_so(path: Path) -> None:
    spool = Spool.open(path)
    spool.close()
    for use in (lambda: spool.put(b"x"), spool.entries, lambda: spool.clear(0)):
        with pytest.raises(LedgerUnavailable):
            use()
