"""The archive: old events as files that still verify against the tree, so that the store need not hold them for ever.

    tile/<level>/<index>         hashes, 256 to a tile, as C2SP tlog-tiles lays them out: 1234067 is x001/x234/067
    events/<index>.jsonl.gz      the 256 events under a tile of level 0, a line each, byte for byte as they were hashed
    checkpoint                   a signed checkpoint (C2SP) that covers all of it

Only whole tiles go there. Nothing leaves the store before its files were written, read back and compared. Hashes stay
in the store too, 32 bytes an event, so that every proof is served without the archive.
"""

import gzip
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from broker.errors import Conflict, NotFound
from broker.ledger import Ledger, Reader, StoredEvent
from broker.ledger.commands.custody import DeclareArchived, ForgetEvents
from broker.ledger.events import LONGEST_EVENT, EventMalformed, parse
from broker.ledger.merkle import HASH_SIZE, TILE_WIDTH, leaf_hash, split

STAY: Final = frozenset(
    {
        "ledger.created",
        "ledger.restored",
        "ledger.arrived",
        "ledger.archived",
        "key.published",
        "registry.loaded",
        "policies.loaded",
    }
)
"""Types of events that stay in the store too: few, and what an audit needs of the ledger, its keys and its rules."""

_TILES_AT_ONCE: Final = 16  # removed in one transaction: a kill waits behind it
_LARGEST_BUNDLE: Final = TILE_WIDTH * (LONGEST_EVENT + 1)


class InArchive(NotFound):
    """The event is in the archive, which is not at hand here."""


def in_archive(seq: int, archived: int) -> InArchive:
    """The refusal for one position."""
    return InArchive(
        f"Position {seq} is in the archive: this ledger's store has the events from position {archived} on.",
        next=f"taskpass ledger show {seq} --archive DIRECTORY; or configure retention.archive_path.",
    )


class Archive:
    """The files of one ledger."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def leaf_tile(self, index: int) -> list[bytes]:
        """The hashes of 256 events. Raises OSError, ValueError."""
        hashes = split(self._tile(0, index).read_bytes())
        if len(hashes) != TILE_WIDTH:
            raise ValueError(f"tile 0/{index} is not whole")
        return hashes

    def events(self, index: int) -> list[bytes]:
        """256 events, compared with their hashes. Raises NotFound when they are not here, Conflict when damaged."""
        try:
            with gzip.open(self._bundle(index)) as file:
                lines = file.read(_LARGEST_BUNDLE).split(b"\n")
            hashes = self.leaf_tile(index)
        except FileNotFoundError as error:
            raise NotFound(
                f"The archive has no events {index * TILE_WIDTH} to {(index + 1) * TILE_WIDTH - 1}."
            ) from error
        except (OSError, EOFError, zlib.error, ValueError) as error:
            raise Conflict(f"The archive is damaged at {self._bundle(index)}.", internal=str(error)) from error
        if lines.pop() != b"" or [leaf_hash(line) for line in lines] != hashes:
            raise Conflict(f"The archive is damaged: {self._bundle(index)} does not give the hashes of its tile.")
        return lines

    def event(self, seq: int) -> bytes:
        """One event. Raises as `events`."""
        index, place = divmod(seq, TILE_WIDTH)
        return self.events(index)[place]

    def put_events(self, index: int, events: list[bytes], hashes: bytes) -> None:
        """Write one tile's events and hashes, and read them back. What is there already must be the same."""
        if len(events) != TILE_WIDTH or b"".join(map(leaf_hash, events)) != hashes:
            raise Conflict(f"Events {index * TILE_WIDTH} and on do not give their stored hashes. See `ledger verify`.")
        self.put_tile(0, index, hashes)
        if not self._bundle(index).exists():
            packed = gzip.compress(b"".join(event + b"\n" for event in events), mtime=0)
            self._write(self._bundle(index), packed)
        if self.events(index) != events:
            raise Conflict(f"{self._bundle(index)} holds other events: it is another ledger's archive.")

    def put_tile(self, level: int, index: int, hashes: bytes) -> None:
        """Write one whole tile. Raises Conflict when another is there."""
        path = self._tile(level, index)
        if not path.exists():
            self._write(path, hashes)
        if path.read_bytes() != hashes:
            raise Conflict(f"{path} holds other hashes: it is another ledger's archive.")

    def put_checkpoint(self, note: str) -> None:
        """Replace the checkpoint."""
        self._write(self.path / "checkpoint", note.encode())

    def _tile(self, level: int, index: int) -> Path:
        return self.path / "tile" / str(level) / tile_path(index)

    def _bundle(self, index: int) -> Path:
        path = self.path / "events" / tile_path(index)
        return path.with_name(f"{path.name}.jsonl.gz")

    @staticmethod
    def _write(path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def tile_path(index: int) -> str:
    """Three digits to a part, all but the last marked with an x, so that no directory grows beyond a thousand."""
    parts = [f"{index % 1000:03}"]
    while index >= 1000:
        index //= 1000
        parts.append(f"x{index % 1000:03}")
    return "/".join(reversed(parts))


@dataclass(frozen=True, slots=True)
class Archived:
    """What a run moved: the events of [start, stop)."""

    start: int
    stop: int


class Archivist:
    """Moves old events of one ledger into its archive. Blocks: call it from a thread."""

    def __init__(
        self, *, ledger: Ledger, archive: Archive, checkpoint: Callable[[], str], root: Callable[[int], bytes]
    ) -> None:
        self._ledger, self._archive = ledger, archive
        self._checkpoint, self._root = checkpoint, root

    def boundary(self, before_ms: int) -> Archived:
        """What can be moved: whole tiles of events older than `before_ms`, below everything that is still alive."""
        with self._ledger.read() as r:
            head = r.head()
            low, high = head.archived, head.size
            while low < high:  # ledger time never decreases
                middle = (low + high) // 2
                if _event(r, middle).t < before_ms:
                    low = middle + 1
                else:
                    high = middle
            (oldest_task,) = r.execute("SELECT min(opened_seq) FROM tasks WHERE state = 'active'").fetchone()
            (oldest_there,) = r.execute("SELECT min(seq) FROM external_grants WHERE next_try IS NOT NULL").fetchone()
        stop = min(low, head.floor, *(seq for seq in (oldest_task, oldest_there) if seq is not None))
        return Archived(head.archived, max(stop // TILE_WIDTH * TILE_WIDTH, head.archived))

    def run(self, before_ms: int) -> Archived:
        """Write the files, compare them, say so in the ledger, and only then remove the events, a part at a time.

        May be interrupted anywhere and run again. Raises Conflict for an archive or store that is not as it should be,
        OSError for files that cannot be written, LedgerUnavailable.
        """
        planned = self.boundary(before_ms)
        if planned.stop == planned.start:
            return planned
        first, last = planned.start // TILE_WIDTH, planned.stop // TILE_WIDTH
        removals = [self._copy(index) for index in range(first, last)]
        self._copy_upper_tiles(last)
        self._archive.put_checkpoint(self._checkpoint())
        self._commit(DeclareArchived(planned.stop, self._root(planned.stop)))
        for start in range(0, len(removals), _TILES_AT_ONCE):
            part = removals[start : start + _TILES_AT_ONCE]
            begin = (first + start) * TILE_WIDTH
            stay = [seq for each in part for seq in each[0]]
            tasks = [task for each in part for task in each[1]]
            if not self._commit(ForgetEvents(begin, begin + len(part) * TILE_WIDTH, stay, tasks)):
                break  # another broker is at it
        return planned

    def _copy(self, index: int) -> tuple[list[int], list[str]]:
        """One tile into files; the positions that stay, and the tasks that were opened in it."""
        stay: list[int] = []
        tasks: list[str] = []
        with self._ledger.read() as r:
            rows = r.execute(
                "SELECT seq, bytes FROM events WHERE seq >= ? AND seq < ? ORDER BY seq",
                (index * TILE_WIDTH, (index + 1) * TILE_WIDTH),
            ).fetchall()
            tile = r.execute("SELECT hashes FROM tiles WHERE level = 0 AND idx = ?", (index,)).fetchone()
        for seq, data in rows:
            event = parse(bytes(data))
            if event.type in STAY:
                stay.append(seq)
            elif event.type == "task.opened":
                tasks.append(str(event.body["task"]))
        self._archive.put_events(index, [bytes(data) for _, data in rows], bytes(tile[0]) if tile else b"")
        return stay, tasks

    def _copy_upper_tiles(self, leaf_tiles: int) -> None:
        level, count = 1, leaf_tiles // TILE_WIDTH
        while count:
            for index in range(count):
                with self._ledger.read() as r:
                    (hashes,) = r.execute(
                        "SELECT hashes FROM tiles WHERE level = ? AND idx = ?", (level, index)
                    ).fetchone()
                if len(hashes) == TILE_WIDTH * HASH_SIZE:
                    self._archive.put_tile(level, index, bytes(hashes))
            level, count = level + 1, count // TILE_WIDTH

    def _commit(self, command: Any) -> Any:  # noqa: ANN401  (each command has its own outcome)
        (outcome,) = self._ledger.commit([command])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def _event(r: Reader, seq: int) -> StoredEvent:
    (data,) = r.execute("SELECT bytes FROM events WHERE seq = ?", (seq,)).fetchone()
    try:
        return parse(bytes(data))
    except EventMalformed as error:
        raise Conflict(f"Event {seq} is damaged. See `taskpass ledger verify`.", internal=str(error)) from error
