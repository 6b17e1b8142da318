"""Whether a ledger's file is the one that it was, and lies where a ledger may lie: what tells a copy from the original.

Every file has a number in its file system, which stays with it when it is renamed, and which a copy does not have. Each
process that begins to serve writes the number into the ledger, so a copy carries the evidence with it. What is restored
into the same file, or with its whole volume, keeps the number: only a checkpoint kept outside of the store tells that.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from broker.ledger import Command, LedgerCorrupt, LedgerUnavailable, Reader
from broker.ledger.events import EventMalformed, parse
from broker.ledger.heads import Queries, SnapshotReader, look
from broker.ledger.sqlite_audit import SqliteStore
from broker.ledger.sqlite_file import identity

STARTED: Final = "broker.started"
LOOKED_AT: Final = 200_000
"""How many of the last events are searched for where the ledger was served from."""
_MARK: Final = b'"type":"broker.started"'  # no text can hold this: its quotes would be escaped
_MOUNTS: Final = Path("/proc/self/mountinfo")
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")
_SHARED: Final = frozenset({"9p", "afs", "beegfs", "ceph", "cifs", "gfs2", "glusterfs", "lustre", "ncpfs", "ocfs2"})
_SHARED_LIKE: Final = (
    "nfs",
    "smb",
    "fuse.sshfs",
    "fuse.gluster",
    "fuse.ceph",
    "fuse.s3",
    "fuse.rclone",
    "fuse.juicefs",
)


@dataclass(frozen=True, slots=True)
class Served:
    """From this position on, and this time (ms), the ledger was served from the file with this number."""

    position: int
    at: int
    file: str


def file_number(path: Path) -> str | None:
    """The number of the file in its file system; None if there is none."""
    found = identity(path)
    return None if found is None else str(found[1])


def served_from(queries: Queries, size: int) -> list[Served]:
    """From which files the ledger of `size` events was lately served, the last one last. Raises LedgerCorrupt."""
    found: list[Served] = []
    rows = queries.execute(
        "SELECT bytes FROM events WHERE seq >= ? AND instr(bytes, ?) > 0 ORDER BY seq", (size - LOOKED_AT, _MARK)
    )
    for (data,) in rows:
        try:
            event = parse(data)
        except EventMalformed as error:
            raise LedgerCorrupt("An event of the ledger is damaged.", internal=str(error)) from error
        file = event.body.get("file")
        if event.type == STARTED and file is not None and (not found or found[-1].file != file):
            found.append(Served(event.seq, event.t, file))
    return found


def file_system(path: Path, mounts: str | None = None) -> str:
    """The kind of file system that a path lies on, `ext4` or `nfs4`; empty where this cannot be told. `mounts` is in
    the format of `/proc/self/mountinfo`.
    """
    if mounts is None:
        try:
            mounts = _MOUNTS.read_text()
        except OSError:
            return ""
    place, longest, kind = os.path.realpath(path), "", ""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        point = _ESCAPED.sub(lambda found: chr(int(found[1], 8)), before.split(" ")[4]) if after else ""
        inside = point and (place == point or place.startswith(point.rstrip("/") + "/"))
        if inside and len(point) >= len(longest):  # of two at one place the later hides the other
            longest, kind = point, after.split(" ")[0]
    return kind


def is_shared(kind: str) -> bool:
    """Whether several machines may have such a file system at once."""
    return kind in _SHARED or kind.startswith(_SHARED_LIKE)


class LedgerAtRest:
    """`broker.ledger.Ledger` on one snapshot of a SQLite file: only to be read, and nothing in or beside it changes."""

    def __init__(self, queries: Queries) -> None:
        self._queries = queries
        seen, self.origin = look(queries)
        self.head = seen.head
        self.synced_s = 0.0  # it never commits

    @classmethod
    @contextmanager
    def opened(cls, path: Path) -> Iterator["LedgerAtRest"]:
        """Until the context ends. Raises LedgerNotOpened, LedgerUnavailable, LedgerCorrupt."""
        try:
            with SqliteStore(path).opened() as snapshot:
                yield cls(snapshot)
        except (SqliteStore.fault, OSError) as error:
            raise LedgerUnavailable(f"{path} cannot be read.", internal=str(error)) from error

    @contextmanager
    def read(self) -> Iterator[Reader]:
        """See `broker.ledger.Ledger`."""
        yield SnapshotReader(self._queries, self.head)

    def commit(self, commands: Sequence[Command], *, priority: bool = False) -> list[Any]:  # noqa: ARG002
        """Always raises."""
        raise LedgerUnavailable("This ledger is only being looked at.")

    def data_version(self) -> int:
        """See `broker.ledger.Ledger`."""
        return 0
