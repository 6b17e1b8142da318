r"""A whole ledger as one file: to move it from any store to any other, or to keep a copy of it.

One line of text each: a header; the stored hashes of events that are in the archive; every event, byte for byte as it
was hashed; every row of every other table, the sealed keys and the texts that were not erased among them; and last a
note, signed with the ledger's checkpoint key, over the SHA-256 of all lines before it.

    {"taskpass_ledger_export":1,"kind":"move","origin":...,"epoch":...,"size":...,"root":...,"columns":{...}}
    ["tiles",0,0,{"b":"..."}]
    {"seq":0,"t":...,"type":"ledger.created",...}
    ["grants",17,"tsk_...",...]
    {"note":"taskpass-ledger-export/1\nmove\n<sha256>\n\n— <origin> <signature>\n"}

What the tree covers is recomputed on both sides. What it does not cover, such as projections and last-seen times, is
covered by the note, whose key opens only with the configured encryption key.
"""

import hashlib
import os
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_der_private_key

from broker.errors import TaskpassError
from broker.jose import public_jwk
from broker.ledger import Head
from broker.ledger.checkpoint import LONGEST_NOTE, NoteInvalid, VerifierKey, open_note, sign_note
from broker.ledger.commands.admin import IN_TRANSIT
from broker.ledger.events import LONGEST_EVENT, parse
from broker.ledger.heads import MOVED, Stored, read_head
from broker.ledger.merkle import TILE_WIDTH, Frontier, complete_root, leaf_hash, split
from broker.ledger.report import Report
from broker.ledger.schema import tables
from broker.ledger.targets import Filling, Target
from broker.ledger.verify import Snapshot, Store, verify_store

FORMAT: Final = 1
_NAME: Final = "taskpass-ledger-export/1"
_LONGEST_LINE: Final = 64 * LONGEST_EVENT  # a policy bundle is one row
_AT_ONCE: Final = 500
_OWN_SECTIONS: Final = frozenset({"head", "events", "tiles"})

OpenKey = Callable[[str, str, bytes], bytes]
"""(purpose, kid, sealed) -> the private key, DER. Raises ConfigurationInvalid for a key sealed under another one."""


class ExportInvalid(TaskpassError):
    """The file is no export, or not the one that was written: cut off, changed, or of another ledger or program."""

    code = "export_invalid"
    status = 422


class LedgerUnsound(TaskpassError):
    """What is to be exported or was imported does not verify. Nothing was changed."""

    code = "ledger_unsound"
    status = 500


@dataclass(frozen=True, slots=True)
class Exported:
    """What a file holds. `root` is base64; `kind` is `move` or `copy`."""

    kind: str
    origin: str
    epoch: str
    size: int
    time: int
    archived: int
    root: str


def ensure_sound(store: Store, what: str) -> Report:
    """Audit a store before something irreversible. Raises LedgerUnsound with the first findings."""
    report = verify_store(store)
    if not report.sound:
        found = "; ".join(f"{each.position}: {each.meaning}" for each in report.findings[:3] if not each.warning)
        raise LedgerUnsound(f"{what} does not verify: {found}", next="See `taskpass ledger verify`.")
    _refuse_newer(finding.code for finding in report.findings)
    return report


def _refuse_newer(codes: Iterable[str]) -> None:
    """What a newer program's migration added would be left behind."""
    if "schema_newer" in codes:
        raise LedgerUnsound("The ledger was upgraded by a newer program: use that one for this.")


# --- Export -----------------------------------------------------------------------------------------------------------


def export_ledger(store: Store, file: Path, *, open_key: OpenKey) -> Exported:
    """Write the ledger in `store` to a new file, as a move if it is sealed as moved, else as a copy.

    The file appears under its name only when it is whole and on the disk. Raises FileExistsError, LedgerUnsound.
    """
    if file.exists():
        raise FileExistsError(f"{file} exists already")
    part = file.with_name(file.name + ".part")
    with store.opened() as snapshot, open(part, "wb", opener=_private) as raw:
        _refuse_newer(code for code, *_ in snapshot.structure())
        exported = _write(snapshot, _Lines(raw), open_key)
        raw.flush()
        os.fsync(raw.fileno())
    os.link(part, file)  # unlike a rename, it never replaces anything
    part.unlink()
    return exported


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


class _Lines:
    """Lines being written, and the hash of all of them."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self.digest = hashlib.sha256()

    def write(self, line: bytes) -> None:
        self.digest.update(line + b"\n")
        self._raw.write(line + b"\n")


def _write(snapshot: Snapshot, lines: _Lines, open_key: OpenKey) -> Exported:
    head, frontier = read_head(snapshot)
    root = Frontier.decode(head.size, frontier).root()
    (genesis,) = snapshot.execute("SELECT bytes FROM events WHERE seq = 0").fetchone()
    origin, kind = str(parse(genesis).body["origin"]), "move" if head.sealed == MOVED else "copy"
    exported = Exported(kind, origin, head.epoch, head.size, head.time, head.archived, b64encode(root).decode())
    columns = {name: found for name, found in tables().items() if name not in _OWN_SECTIONS}
    lines.write(orjson.dumps({"taskpass_ledger_export": FORMAT, **asdict(exported), "columns": columns}))
    computed = _write_tree(snapshot, lines, head)
    if (computed.size, computed.root()) != (head.size, root):
        raise LedgerUnsound("The ledger does not verify: its events do not give the tree of its head.")
    _write_row(lines, "head", [*asdict(head).values()])
    for name, found in columns.items():
        for row in snapshot.rows(f"SELECT {', '.join(found)} FROM {name}"):  # noqa: S608  (of our own schema)
            _write_row(lines, name, row)
    key = _checkpoint_key(snapshot, open_key)
    note = sign_note(f"{_NAME}\n{kind}\n{lines.digest.hexdigest()}\n", name=origin, key=key)
    lines.write(orjson.dumps({"note": note}))
    return exported


def _write_tree(snapshot: Snapshot, lines: _Lines, head: Head) -> Frontier:
    """Hashes of what is archived, and all events that are here; the tree over both."""
    frontier = Frontier()
    tiles = f"SELECT level, idx, hashes FROM tiles WHERE level = 0 AND idx < {head.archived // TILE_WIDTH} ORDER BY idx"  # noqa: S608
    for row in snapshot.rows(tiles):
        _write_row(lines, "tiles", row)
        for leaf in split(bytes(row[2])):
            frontier.append(leaf)
    for seq, data in snapshot.rows("SELECT seq, bytes FROM events ORDER BY seq"):
        lines.write(data)
        if seq >= head.archived:
            frontier.append(leaf_hash(data))
    return frontier


def _write_row(lines: _Lines, table: str, values: Sequence[Any]) -> None:
    written = [{"b": b64encode(each).decode()} if isinstance(each, bytes) else each for each in values]
    lines.write(orjson.dumps([table, *written]))


def _checkpoint_key(snapshot: Snapshot, open_key: OpenKey) -> Ed25519PrivateKey:
    (row,) = snapshot.execute(
        "SELECT kid, sealed FROM keys WHERE purpose = 'checkpoint' AND state = 'active'"
    ).fetchall()
    key = load_der_private_key(open_key("checkpoint", row[0], bytes(row[1])), None)
    assert isinstance(key, Ed25519PrivateKey)
    return key


# --- Import -----------------------------------------------------------------------------------------------------------


def import_ledger(file: Path, target: Target, *, open_key: OpenKey) -> Exported:
    """Put an exported ledger into an empty store. All or nothing: until it is verified as a whole, nobody can open it.

    Raises LedgerNotOpened when there is a ledger already, ExportInvalid, LedgerUnsound, ConfigurationInvalid when the
    signing keys were sealed under another encryption key than the configured one, LedgerUnavailable.
    """
    with file.open("rb") as raw:
        reading = _Reading(raw)
        header, columns = reading.header()
        with target.filling() as filling:
            try:
                root = _fill(reading, filling, header, columns, open_key)
            except (ValueError, TypeError, LookupError, UnicodeError, target.fault) as error:
                raise ExportInvalid(
                    f"{file} is not a whole export: line {reading.line}.", internal=f"{type(error).__name__}: {error}"
                ) from error
            ensure_sound(_Open(filling, target.fault), "What was imported")
            filling.finish(header.kind, root)
    return header


class _Reading:
    """Lines being read, and the hash of all before the current one."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self.line = 0
        self._digest = hashlib.sha256()
        self._last = b""

    @property
    def digest(self) -> str:
        return self._digest.hexdigest()

    def next(self) -> bytes:
        """One line without its end. Raises ExportInvalid at the end of the file."""
        self._digest.update(self._last)
        self._last = self._raw.readline(_LONGEST_LINE)
        self.line += 1
        if not self._last.endswith(b"\n"):
            raise ExportInvalid(f"The file is cut off in line {self.line}: it is not a whole export.")
        return self._last[:-1]

    def is_over(self) -> bool:
        """Whether nothing follows."""
        return not self._raw.read(1)

    def header(self) -> tuple[Exported, dict[str, list[str]]]:
        """What the file says that it holds. Raises ExportInvalid."""
        try:
            first = orjson.loads(self.next())
            if first["taskpass_ledger_export"] != FORMAT or first["kind"] not in ("move", "copy"):
                raise ValueError("another format")
            exported = Exported(**{name: first[name] for name in Exported.__dataclass_fields__})
            columns: dict[str, list[str]] = first["columns"]
            known = tables()
            foreign = [name for name, each in columns.items() if not set(each) <= set(known.get(name, ()))]
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise ExportInvalid("The file is not an export of a ledger.", internal=str(error)) from error
        if foreign:
            raise ExportInvalid(
                f"The file was written by a newer program: {', '.join(foreign)[:200]} is not known here."
            )
        return exported, columns


def _fill(
    reading: _Reading, filling: Filling, header: Exported, columns: dict[str, list[str]], open_key: OpenKey
) -> bytes:
    """Everything up to the note, which must be right. Returns the root of the tree."""
    tree, rows, head = _Tree(filling, header.archived), _Rows(filling, columns), None
    while True:
        line = reading.next()
        if line.startswith(b'{"seq":'):
            tree.event(line)
            continue
        if line.startswith(b'{"note":'):
            break
        table, *values = orjson.loads(line)
        row: list[Any] = [b64decode(each["b"], validate=True) if isinstance(each, dict) else each for each in values]
        if table == "tiles":
            tree.archived(*row)
        elif table == "head":
            head = Head(*row)
        else:
            rows.add(table, row)
    tree.finish()
    rows.finish()
    root = tree.frontier.root()
    claimed = (header.epoch, header.size, header.time, header.archived)
    if head is None or (head.epoch, head.size, head.time, head.archived) != claimed or tree.frontier.size != head.size:
        raise ValueError("header, head and events are not of one ledger")
    if b64encode(root).decode() != header.root:
        raise ExportInvalid("The file was changed: its events do not give the root in its header.")
    filling.write_head(Stored(head, tree.frontier.encode()), tree.last_leaf)
    _check_note(reading, orjson.loads(line)["note"], header, _own_keys(filling, header.origin, open_key))
    return root


def _check_note(reading: _Reading, note: object, header: Exported, keys: Sequence[VerifierKey]) -> None:
    if not isinstance(note, str) or len(note) > LONGEST_NOTE or not reading.is_over():
        raise ValueError("something else than a note at the end")
    try:
        text = open_note(note, keys=keys)
    except NoteInvalid as error:
        raise ExportInvalid(
            "The file is not signed by its ledger's own checkpoint key.", internal=str(error)
        ) from error
    if text != f"{_NAME}\n{header.kind}\n{reading.digest}\n":
        raise ExportInvalid("The file was changed after it was signed.")


def _own_keys(filling: Filling, origin: str, open_key: OpenKey) -> list[VerifierKey]:
    """The checkpoint keys; every sealed key must open here, or the imported ledger could sign nothing."""
    found = []
    rows = filling.execute("SELECT kid, purpose, jwk, sealed FROM keys WHERE state <> 'killed'")
    for kid, purpose, jwk, sealed in rows.fetchall():
        if bytes(sealed).startswith(IN_TRANSIT):  # a vault has it
            continue
        key = load_der_private_key(open_key(purpose, kid, bytes(sealed)), None)
        public = public_jwk(key.public_key())  # type: ignore[arg-type]
        if public["kid"] != kid or public["x"] != orjson.loads(jwk)["x"]:
            raise ExportInvalid(f"The sealed key {kid} is not the one that it is published as.")
        if isinstance(key, Ed25519PrivateKey):
            found.append(VerifierKey.of(origin, key))
    return found


class _Tree:
    """Events and tiles on their way into a store."""

    def __init__(self, filling: Filling, archived: int) -> None:
        self._filling, self._archived = filling, archived
        self.frontier = Frontier()
        self.last_leaf = b""
        self._events: list[tuple[int, bytes, bytes]] = []
        self._levels: list[list[bytes]] = [[]]  # the unfinished tile of each level
        self._counts = [0]

    def archived(self, level: int, index: int, hashes: bytes) -> None:
        """A tile of leaves whose events are in the archive."""
        leaves = split(hashes)
        if (level, index * TILE_WIDTH, len(leaves)) != (0, self.frontier.size, TILE_WIDTH):
            raise ValueError("a tile out of place")
        for leaf in leaves:
            self._append(leaf)

    def event(self, data: bytes) -> None:
        """One event. Of archived ones some stay; the audit compares them with their tiles."""
        seq, leaf = parse(data).seq, leaf_hash(data)
        if seq >= self._archived:
            if seq != self.frontier.size:
                raise ValueError(f"event {seq} in the place of {self.frontier.size}")
            self._append(leaf)
        self._events.append((seq, data, leaf))
        if len(self._events) == _AT_ONCE:
            self._flush()

    def finish(self) -> None:
        """The rest, and the unfinished tiles above the leaves."""
        self._flush()
        for level, hashes in enumerate(self._levels):
            if level and hashes:
                self._put(level, hashes)

    def _append(self, leaf: bytes) -> None:
        self.frontier.append(leaf)
        self.last_leaf = leaf
        level, digest = 0, leaf
        while True:
            self._levels[level].append(digest)
            if len(self._levels[level]) < TILE_WIDTH:
                return
            hashes, self._levels[level] = self._levels[level], []
            self._put(level, hashes)
            self._counts[level] += 1
            level, digest = level + 1, complete_root(hashes)
            if level == len(self._levels):
                self._levels.append([])
                self._counts.append(0)

    def _put(self, level: int, hashes: list[bytes]) -> None:
        self._filling.insert("tiles", ["level", "idx", "hashes"], [(level, self._counts[level], b"".join(hashes))])

    def _flush(self) -> None:
        if self._events:
            self._filling.insert("events", ["seq", "bytes", "leaf"], self._events)
            self._events = []


class _Rows:
    """Rows of other tables on their way into a store, several at once."""

    def __init__(self, filling: Filling, columns: dict[str, list[str]]) -> None:
        self._filling, self._columns = filling, columns
        self._table, self._waiting = "", list[Sequence[Any]]()

    def add(self, table: str, row: Sequence[Any]) -> None:
        """One row. Raises LookupError for a table that the header does not name, ValueError for a wrong length."""
        if len(row) != len(self._columns[table]) or table in _OWN_SECTIONS:
            raise ValueError(f"not a row of {table}")
        if table != self._table or len(self._waiting) == _AT_ONCE:
            self.finish()
            self._table = table
        self._waiting.append(row)

    def finish(self) -> None:
        """What waits."""
        if self._waiting:
            self._filling.insert(self._table, self._columns[self._table], self._waiting)
            self._waiting = []


class _Open:
    """`broker.ledger.verify.Store` over what is being filled."""

    def __init__(self, filling: Filling, fault: type[Exception]) -> None:
        self._filling, self.fault = filling, fault

    def warnings(self) -> Iterator[tuple[str, str, str]]:
        return iter(())

    def opened(self) -> "nullcontext[Snapshot]":
        return nullcontext(self._filling)


__all__ = ["ExportInvalid", "Exported", "LedgerUnsound", "ensure_sound", "export_ledger", "import_ledger"]
