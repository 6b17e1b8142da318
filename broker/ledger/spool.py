"""Reserved space for kills that the ledger cannot take: a full disk must not be a way to keep a credential alive.

The file is written full of zeros once. Later writes overwrite in place, so they need no new space. Each slot holds one
record behind its length and checksum; a record that was torn by a crash was never acknowledged, and reads as empty.
"""

import os
import threading
import zlib
from pathlib import Path
from typing import Final, Self

from broker.ledger import LedgerUnavailable

SLOT_SIZE: Final = 4096
SLOTS: Final = 256
_MAGIC: Final = b"TPK1"
_HEADER: Final = 12  # magic, length, checksum
LONGEST_RECORD: Final = SLOT_SIZE - _HEADER


class Spool:
    """The slots of one reserved file. One process owns it (the control process); its methods are thread-safe."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the file, reserving its space if that is not done yet. Raises LedgerUnavailable."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                missing = SLOTS * SLOT_SIZE - os.fstat(descriptor).st_size
                if missing > 0:  # from the end of what is there: a reservation that was interrupted goes on
                    os.pwrite(descriptor, bytes(missing), SLOTS * SLOT_SIZE - missing)
                    os.fsync(descriptor)
                if os.fstat(descriptor).st_size < SLOTS * SLOT_SIZE:
                    raise OSError("short write")
            except BaseException:
                os.close(descriptor)
                raise
        except OSError as error:
            raise LedgerUnavailable("No space could be reserved for kills.", internal=str(error)) from error
        return cls(descriptor)

    def put(self, record: bytes) -> int:
        """Write a record and return its slot, once it is on the disk.

        Raises ValueError for a record longer than LONGEST_RECORD, LedgerUnavailable when no slot is free or the disk
        fails.
        """
        if not 0 < len(record) <= LONGEST_RECORD:
            raise ValueError(f"a record has 1 to {LONGEST_RECORD} bytes")
        with self._lock:
            slot = next((slot for slot in range(SLOTS) if self._read(slot) is None), None)
            if slot is None:
                raise LedgerUnavailable("The space reserved for kills is used up.")
            self._write(slot, _MAGIC + len(record).to_bytes(4) + zlib.crc32(record).to_bytes(4) + record)
            return slot

    def entries(self) -> list[tuple[int, bytes]]:
        """(slot, record) of all that is spooled. Raises LedgerUnavailable."""
        with self._lock:
            found = ((slot, self._read(slot)) for slot in range(SLOTS))
            return [(slot, record) for slot, record in found if record is not None]

    def clear(self, slot: int) -> None:
        """Free a slot whose record is durable elsewhere now. Raises LedgerUnavailable."""
        if not 0 <= slot < SLOTS:
            raise ValueError(f"there is no slot {slot}")
        with self._lock:
            self._write(slot, bytes(_HEADER))

    def close(self) -> None:
        """Let go of the file. Later calls raise LedgerUnavailable."""
        with self._lock:
            descriptor, self._descriptor = self._descriptor, -1  # the number may soon be another file's
            os.close(descriptor)

    def _read(self, slot: int) -> bytes | None:
        try:
            raw = os.pread(self._descriptor, SLOT_SIZE, slot * SLOT_SIZE)
        except OSError as error:
            raise LedgerUnavailable("The spooled kills cannot be read.", internal=str(error)) from error
        length = int.from_bytes(raw[4:8])
        record = raw[_HEADER : _HEADER + length]
        whole = raw[:4] == _MAGIC and 0 < length <= LONGEST_RECORD and zlib.crc32(record) == int.from_bytes(raw[8:12])
        return record if whole else None

    def _write(self, slot: int, raw: bytes) -> None:
        try:
            written = os.pwrite(self._descriptor, raw, slot * SLOT_SIZE)
            os.fsync(self._descriptor)
        except OSError as error:
            raise LedgerUnavailable("The kill could not be spooled.", internal=str(error)) from error
        if written != len(raw):
            raise LedgerUnavailable("The kill could not be spooled.", internal="short write")
