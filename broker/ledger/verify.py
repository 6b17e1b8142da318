"""An audit of a ledger that trusts no stored hash: everything is recomputed from the bytes of the events.

It only reads, may run beside a broker or on a copy, and does not stop at a first finding. What it cannot know from the
store alone is whether the whole of it was exchanged, or its tail cut off together with every trace of it: for that,
give it a checkpoint that was kept elsewhere.
"""

from base64 import b64decode, urlsafe_b64decode
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, Protocol

from broker.ledger import Cursor, LedgerNotOpened, StoredEvent, parse_id
from broker.ledger.archive import Archive
from broker.ledger.archived import ArchivedEvents
from broker.ledger.checkpoint import Checkpoint, NoteInvalid, VerifierKey, open_checkpoint, unverified_checkpoint
from broker.ledger.events import EventMalformed, commit_to, parse
from broker.ledger.merkle import (
    EMPTY_ROOT,
    HASH_SIZE,
    TILE_WIDTH,
    Frontier,
    ProofInvalid,
    complete_root,
    leaf_hash,
    verify_inclusion,
)
from broker.ledger.report import Report

BundleHash = Callable[[str, bytes], str]
"""(kind, content) -> the hash under which such a bundle is kept. Raises ValueError for content that is none."""


class Store(Protocol):
    """One snapshot of a store, and how to open it."""

    fault: type[Exception]
    """What reading it may raise."""

    def warnings(self) -> Iterable[tuple[str, str, str]]:
        """(code, position, detail) of what is odd about it before it is opened."""

    def opened(self) -> AbstractContextManager["Snapshot"]:
        """A snapshot. Raises LedgerNotOpened for what is no ledger, or `fault`."""


class Snapshot(Protocol):
    """What an audit asks."""

    def structure(self) -> Iterable[tuple[str, str, str]]:
        """(code, position, detail) of what is wrong with the database as such: pages, indexes, schema."""

    def execute(self, sql: str, params: Sequence[Any] = ...) -> Cursor:
        """Run one portable query."""

    def rows(self, sql: str) -> Iterator[Any]:
        """The rows of a query whose answer may be too large to hold."""


def verify_ledger(
    path: Path,
    *,
    keys: Sequence[VerifierKey] = (),
    kept: Sequence[str] = (),
    bundle_hash: BundleHash | None = None,
    archive: Archive | None = None,
) -> Report:
    """Audit the SQLite ledger at `path`. See `verify_store`."""
    from broker.ledger.sqlite_audit import SqliteStore

    return verify_store(SqliteStore(path), keys=keys, kept=kept, bundle_hash=bundle_hash, archive=archive)


def verify_store(
    store: Store,
    *,
    keys: Sequence[VerifierKey] = (),
    kept: Sequence[str] = (),
    bundle_hash: BundleHash | None = None,
    archive: Archive | None = None,
) -> Report:
    """Audit a ledger, against checkpoints `kept` elsewhere (notes) if there are any.

    `keys` are those that may have signed checkpoints, besides the ones that the ledger's own events publish. Kept
    checkpoints are believed for the given keys only; without any, for the ledger's own. Findings are never raised.
    Events that were archived are read from `archive`; without one, their stored hashes must give the signed roots.
    """
    report = Report()
    fault = store.fault
    for warning in store.warnings():
        report.add(*warning, warning=True)
    try:
        with store.opened() as snapshot:
            audit = _Audit(snapshot, report, archive)
            notes: list[tuple[int, str]] = []
            for part, step in (
                ("structure", audit.structure),
                ("checkpoints", lambda: notes.extend(audit.stored_checkpoints())),
                ("events", lambda: audit.events(_sizes([*(note for _, note in notes), *kept]))),
                ("head", audit.head),
                ("texts", audit.texts),
                ("bundles", lambda: None if bundle_hash is None else audit.bundles(bundle_hash)),
            ):
                try:
                    step()
                except (fault, TypeError, AttributeError) as error:  # rows of types that no broker writes
                    report.add("unreadable", part, f"{type(error).__name__}: {error}")
            audit.check_stored(notes, keys)
            audit.check_kept(kept, keys)
    except LedgerNotOpened as error:
        report.add("not_a_ledger", "store", str(error))
    except (fault, OSError, UnicodeDecodeError) as error:
        report.add("unreadable", "store", f"{type(error).__name__}: {error}")
    return report


def verify_event_proof(
    data: bytes, proof: Mapping[str, Any], *, keys: Sequence[VerifierKey], origin: str | None = None
) -> StoredEvent:
    """Follow an event's bytes through an inclusion proof (as `Proofs.inclusion` gives it) to a signed checkpoint.

    Raises ProofInvalid, NoteInvalid or EventMalformed; KeyError, TypeError or ValueError for a proof of another shape.
    """
    event = parse(data)
    checkpoint = open_checkpoint(proof["checkpoint"], keys=keys, origin=origin)
    if (event.seq, checkpoint.size) != (proof["seq"], proof["size"]):
        raise ProofInvalid("the proof is for another event or checkpoint")
    hashes = [_from_base64(text) for text in proof["proof"]]
    verify_inclusion(index=event.seq, size=checkpoint.size, leaf=leaf_hash(data), proof=hashes, root=checkpoint.root)
    return event


def _sizes(notes: Sequence[str]) -> set[int]:
    """The sizes that these notes claim to be of."""
    sizes = set()
    for note in notes:
        with suppress(NoteInvalid):
            sizes.add(unverified_checkpoint(note).size)
    return sizes


def _from_base64(text: str) -> bytes:
    digest = b64decode(text, validate=True)
    if len(digest) != HASH_SIZE:
        raise ProofInvalid("a hash of the wrong length")
    return digest


class _Audit:
    """One pass over one snapshot."""

    def __init__(self, snapshot: Snapshot, report: Report, archive: Archive | None) -> None:
        self._snapshot = snapshot
        self._report = report
        self._archived = ArchivedEvents(snapshot, archive)
        self._declared = 0  # by the events: everything before is in the archive
        self._frontier = Frontier()
        self._tiles = _TileCheck(snapshot, report)
        self._roots: dict[int, bytes] = {}  # at the sizes that checkpoints name
        self._in_force = {"registry.loaded": "", "policies.loaded": ""}
        self._published: list[VerifierKey] = []

    def structure(self) -> None:
        """The database as such: pages, indexes, schema."""
        for finding in self._snapshot.structure():
            self._report.add(*finding, warning=finding[0] == "schema_newer")

    def stored_checkpoints(self) -> list[tuple[int, str]]:
        """(size, note) of all that are stored."""
        return [
            (size, note) for size, note in self._snapshot.execute("SELECT size, note FROM checkpoints ORDER BY size")
        ]

    def events(self, sizes: Collection[int]) -> None:
        """Every event's bytes, and the tree over them; the roots at `sizes` are remembered."""
        expected = 0
        self._report.archived = self._archived.before()
        for seq, data, leaf in self._snapshot.rows("SELECT seq, bytes, leaf FROM events ORDER BY seq"):
            expected = self._fill(expected, min(seq, self._report.archived), sizes)
            if seq != expected:
                self._report.add("event_missing", f"event {expected}", f"the next one stored is {seq}")
                self._tiles.give_up()
            if not isinstance(data, bytes):
                self._report.add("event_malformed", f"event {seq}", "not bytes")
                data = b""  # noqa: PLW2901
            self._event(seq, data)
            computed = leaf_hash(data)
            if computed != leaf:
                self._report.add("event_changed", f"event {seq}", f"the leaf hash of its bytes is {computed.hex()}")
            self._append(computed, sizes)
            expected = seq + 1
        self._tiles.finish()
        if self._report.archived > self._declared:
            self._report.add("archived_undeclared", f"events before {self._report.archived}", "no event says so")
        self._report.size, self._report.root = self._frontier.size, self._frontier.root().hex()

    def _append(self, leaf: bytes, sizes: Collection[int]) -> None:
        self._frontier.append(leaf)
        self._tiles.append(leaf)
        if self._frontier.size in sizes:
            self._roots[self._frontier.size] = self._frontier.root()

    def _fill(self, start: int, stop: int, sizes: Collection[int]) -> int:
        """Events that are in the archive: read there, or else taken by the hashes that stayed. Returns the next one."""
        for seq in range(start, stop):
            found = self._archived.at(seq)
            if isinstance(found, str):
                self._report.add("event_missing", f"event {seq}", found)
                self._tiles.give_up()
                return seq
            leaf, data = found
            if data is not None:
                self._event(seq, data)
                self._report.from_archive += 1
                if leaf_hash(data) != leaf:
                    self._report.add(
                        "event_changed", f"event {seq}", "the archive has another than the ledger's hashes"
                    )
                    leaf = leaf_hash(data)
            self._append(leaf, sizes)
        return max(start, stop)

    def _event(self, seq: int, data: bytes) -> None:
        """What one event says about itself."""
        report = self._report
        try:
            event = parse(data)
        except EventMalformed as error:
            report.add("event_malformed", f"event {seq}", str(error))
            return
        if event.seq != seq:
            report.add("event_moved", f"event {seq}", f"it says that it is event {event.seq}")
        if event.t < report.time:
            report.add("time_backwards", f"event {seq}", f"{event.t} after {report.time}")
        report.time = max(report.time, event.t)
        if seq == 0:
            self._genesis(event)
        elif event.type == "ledger.restored":
            report.epoch = str(event.body.get("epoch"))
        elif event.type == "ledger.archived":
            self._declared = max(self._declared, int(event.body.get("before", 0)))
        elif event.type in self._in_force:
            self._in_force[event.type] = str(event.body.get("hash"))
        elif event.type == "key.published" and event.body.get("purpose") == "checkpoint":
            with suppress(NoteInvalid, KeyError, TypeError, ValueError):
                self._published.append(VerifierKey(report.origin, urlsafe_b64decode(event.body["jwk"]["x"] + "=")))

    def _genesis(self, event: StoredEvent) -> None:
        if event.type != "ledger.created":
            self._report.add("no_genesis", "event 0", f"it is a {event.type!r} event")
        self._report.epoch, self._report.origin = str(event.body.get("epoch")), str(event.body.get("origin"))

    def head(self) -> None:
        """The head row against the events."""
        rows = self._snapshot.execute(
            "SELECT epoch, size, time, frontier, registry_hash, policy_hash FROM head"
        ).fetchall()
        if len(rows) != 1:
            self._report.add("head_wrong", "head", f"{len(rows)} rows")
            return
        epoch, size, time, frontier, registry, policies = rows[0]
        report, loaded = self._report, self._in_force
        for name, stored, computed in (
            ("epoch", epoch, report.epoch),
            ("size", size, report.size),
            ("time", time, max(time, report.time)),
            ("frontier", frontier.hex(), self._frontier.encode().hex()),
            ("registry_hash", registry, loaded["registry.loaded"]),
            ("policy_hash", policies, loaded["policies.loaded"]),
        ):
            if stored != computed:
                report.add("head_wrong", f"head {name}", f"stored {stored}, by the events {computed}")

    def check_stored(self, notes: Sequence[tuple[int, str]], keys: Sequence[VerifierKey]) -> None:
        """Stored checkpoints: signature, and the root that the events give for their size."""
        for size, note in notes:
            position = f"checkpoint {size}"
            try:
                claim = unverified_checkpoint(note)
            except NoteInvalid as error:
                self._report.add("checkpoint_malformed", position, str(error))
                continue
            try:
                open_checkpoint(note, keys=(*keys, *self._published), origin=self._report.origin)
            except NoteInvalid as error:
                self._report.add("checkpoint_signature", position, str(error))
            if claim.size != size:
                self._report.add("checkpoint_malformed", position, f"it is for size {claim.size}")
            elif self._fits(claim, position, "checkpoint"):
                self._report.checkpoints += 1

    def check_kept(self, notes: Sequence[str], keys: Sequence[VerifierKey]) -> None:
        """Checkpoints that were kept elsewhere: does this ledger still extend them?"""
        self._report.keys = tuple(f"{key.name}+{key.id.hex()}" for key in keys or self._published)
        self._report.keys_from_ledger = not keys
        for number, note in enumerate(notes, start=1):
            position = f"kept checkpoint {number}"
            try:
                claim = open_checkpoint(note, keys=keys or self._published, origin=self._report.origin)
            except NoteInvalid as error:
                self._report.add("kept_unusable", position, str(error))
                continue
            if self._fits(claim, f"{position} (size {claim.size})", "kept"):
                self._report.kept += 1

    def _fits(self, claim: Checkpoint, position: str, prefix: str) -> bool:
        if claim.size > self._frontier.size:
            self._report.add(f"{prefix}_beyond", position, f"the ledger has {self._frontier.size} events")
            return False
        root = self._roots.get(claim.size, EMPTY_ROOT)
        if root != claim.root:
            self._report.add(f"{prefix}_forked", position, f"signed {claim.root.hex()}, by the events {root.hex()}")
            return False
        return True

    def texts(self) -> None:
        """Personal texts that were not erased, against the commitments in their events."""
        for ref, salt, text in self._snapshot.execute("SELECT ref, salt, text FROM texts"):
            id_, _, name = ref.partition("/")
            try:
                seq = parse_id(id_).seq
                row = self._snapshot.execute("SELECT bytes FROM events WHERE seq = ?", (seq,)).fetchone()
                body = parse(row[0]).body
                matches = id_ in body.values() and body.get(name) == commit_to(salt, text)
            except (TypeError, ValueError):  # not an id, no such event, not an event
                matches = False
            if not matches:
                self._report.add("text_wrong", f"text {ref}", "no event holds its commitment there")

    def bundles(self, bundle_hash: BundleHash) -> None:
        """Kept registries and policy bundles, against the hashes that events name."""
        for digest, kind, content in self._snapshot.execute("SELECT hash, kind, content FROM bundles"):
            try:
                computed = bundle_hash(kind, content)
            except ValueError as error:
                computed = str(error)
            if computed != digest:
                self._report.add("bundle_wrong", f"bundle {digest}", computed)


class _TileCheck:
    """Stored tiles, compared with those that the events give."""

    def __init__(self, snapshot: Snapshot, report: Report) -> None:
        self._snapshot, self._report = snapshot, report
        self._open: list[list[bytes]] = [[]]  # the unfinished tile of each level
        self._count = [0]  # full tiles of each level
        self._comparing = True

    def append(self, leaf: bytes) -> None:
        """One more leaf."""
        level, digest = 0, leaf
        while True:
            hashes = self._open[level]
            hashes.append(digest)
            if len(hashes) < TILE_WIDTH:
                return
            self._compare(level, hashes)
            self._open[level] = []
            self._count[level] += 1
            level, digest = level + 1, complete_root(hashes)
            if level == len(self._open):
                self._open.append([])
                self._count.append(0)

    def give_up(self) -> None:
        """After a gap every later tile differs; saying so each time would tell nothing."""
        self._comparing = False

    def finish(self) -> None:
        """The unfinished tiles above the leaves, and that there are no others."""
        if not self._comparing:
            return
        for level, hashes in enumerate(self._open):
            if level > 0 and hashes:
                self._compare(level, hashes)
        for level, index in self._snapshot.execute("SELECT level, idx FROM tiles ORDER BY level, idx").fetchall():
            known = 0 <= level < len(self._open) and self._count[level] + (level > 0 and bool(self._open[level]))
            if not 0 <= index < known:
                self._report.add("tile_surplus", f"tile {level}/{index}", "no events for it")

    def _compare(self, level: int, hashes: list[bytes]) -> None:
        if not self._comparing:
            return
        key = (level, self._count[level])
        row = self._snapshot.execute("SELECT hashes FROM tiles WHERE level = ? AND idx = ?", key).fetchone()
        if row is None or row[0] != b"".join(hashes):
            detail = "not stored" if row is None else "other hashes"
            self._report.add("tile_wrong", f"tile {level}/{key[1]}", detail)
