"""Whole ledgers in an operator's hands: moved to another store, copied, brought back. Commands beside a broker.

A move fences first: from one commit on no process writes the source any more, for good, whatever happens to the file or
to the import. So two ledgers never issue at once, and what was interrupted is run again.
"""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from broker.config import Config
from broker.errors import Conflict
from broker.keystore import keyring_of, sealer_of
from broker.ledger import Now
from broker.ledger.archive import Archive, Archived, Archivist
from broker.ledger.commands.custody import Accepted, AcceptRestore, Move
from broker.ledger.heads import COPY, MOVED, read_head
from broker.ledger.kept import Kept
from broker.ledger.proofs import Proofs
from broker.ledger.spool import Spool
from broker.ledger.transfer import Exported, ensure_sound, export_ledger, import_ledger
from broker.stores import ledger_to_verify, open_ledger, shelves_of, target_of, wall_clock


def move_out(config: Config, file: Path, *, actor: str, reason: str, now: Now = wall_clock) -> Exported:
    """Seal the configured ledger for good, and write all of it to a new file. May be run again after it failed.

    Raises FileExistsError, LedgerUnsound (then nothing was sealed), Conflict while kills wait to be entered.
    """
    store, open_key = ledger_to_verify(config), sealer_of(config).open
    if file.exists():
        raise FileExistsError(f"{file} exists already")
    if _sealed(config) != MOVED:
        ensure_sound(store, "The ledger")
        _refuse_while_kills_wait(config)
        with closing(open_ledger(config, now=now)) as ledger:
            (moved,) = ledger.commit([Move(actor, reason)])
        if isinstance(moved, Exception):
            raise Conflict("The ledger cannot move: it is a copy that nobody has accepted.") from moved
    return export_ledger(store, file, open_key=open_key)


def copy_out(config: Config, file: Path) -> Exported:
    """Write a copy of the configured ledger to a new file. Brokers may go on meanwhile.

    What is imported from a copy is treated as a restored backup. Raises FileExistsError, LedgerUnsound.
    """
    return export_ledger(ledger_to_verify(config), file, open_key=sealer_of(config).open)


def move_in(config: Config, file: Path, *, now: Now = wall_clock) -> Exported:
    """Import a file into the configured store, which must be empty. See `broker.ledger.transfer.import_ledger`."""
    config.ledger.side_file("").parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return import_ledger(file, target_of(config, now=now), open_key=sealer_of(config).open)


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What accepting a restored ledger did. `given_up` are sizes of kept checkpoints that are not of its history."""

    accepted: Accepted
    given_up: list[int]
    not_kept: list[str]  # why the new history's checkpoint could not be kept, for each place


def accept(config: Config, *, actor: str, reason: str, hold: bool, now: Now = wall_clock) -> Acceptance:
    """Begin a new epoch on a ledger that was restored: new keys; all that was ever issued is dead.

    Stop the brokers first: those that have the ledger open end themselves. Raises LedgerMoved, KeepingFailed when a
    kept checkpoint cannot be read: what is given up has to be known.
    """
    with closing(open_ledger(config, now=now)) as ledger:
        keyring = keyring_of(config, ledger, now=ledger.clock)
        proofs = Proofs(ledger=ledger, origin=ledger.origin, key=keyring.checkpoint_key)
        kept = Kept(ledger=ledger, origin=ledger.origin, proofs=proofs, shelves=shelves_of(config))
        given_up = kept.given_up()
        command = AcceptRestore(
            token_keys=(keyring.make("token"), keyring.make("token")),
            session_key=keyring.make("session"),
            abandoned=given_up,
            actor=actor,
            reason=reason,
            hold=hold,
        )
        (accepted,) = ledger.commit([command], priority=True)
        if isinstance(accepted, Exception):
            raise accepted
    # The new epoch is another ledger to whoever has the old one open, ourselves included.
    with closing(open_ledger(config, now=now)) as ledger:
        keyring = keyring_of(config, ledger, now=ledger.clock)
        proofs = Proofs(ledger=ledger, origin=ledger.origin, key=keyring.checkpoint_key)
        failed = Kept(ledger=ledger, origin=ledger.origin, proofs=proofs, shelves=shelves_of(config)).replace()
    return Acceptance(accepted, [size for size, _ in given_up], [error.sentence for error in failed])


def archive_events(
    config: Config, directory: Path, *, before_ms: int, dry_run: bool = False, now: Now = wall_clock
) -> Archived:
    """Move events older than a time into the archive at `directory`. See `broker.ledger.archive.Archivist`."""
    with closing(open_ledger(config, now=now)) as ledger:
        keyring = keyring_of(config, ledger, now=ledger.clock)
        proofs = Proofs(ledger=ledger, origin=ledger.origin, key=keyring.checkpoint_key)
        archivist = Archivist(ledger=ledger, archive=Archive(directory), checkpoint=proofs.checkpoint, root=proofs.root)
        return archivist.boundary(before_ms) if dry_run else archivist.run(before_ms)


def is_unaccepted_copy(config: Config) -> bool:
    """Whether the configured ledger was imported from a copy, and no operator has accepted that yet."""
    return _sealed(config) == COPY


def _sealed(config: Config) -> str:
    with ledger_to_verify(config).opened() as snapshot:
        return read_head(snapshot).head.sealed


def _refuse_while_kills_wait(config: Config) -> None:
    path = config.ledger.side_file(".spool")
    if path.exists():
        with closing(Spool.open(path)) as spool:
            waiting = len(spool.entries())
        if waiting:
            raise Conflict(
                f"{waiting} kills wait to be entered in this ledger.",
                next="Start the broker, then move.",
            )
