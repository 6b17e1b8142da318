"""What `taskpass doctor` finds about the ledger: whether it is there, where it lies, and whether it is what it was.

It only looks: nothing in the ledger or beside it changes, and no witness is asked, for asking one shows it something.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from broker.cli.findings import Finding
from broker.cli.text import moment

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from broker.config import Config
    from broker.ledger import Ledger
    from broker.ledger.kept import Kept, Shelf

_MOVED_LATELY_MS = 30 * 86_400_000
_OTHER = "If the other one is served somewhere, stop it there: two ledgers that go on from one past both issue."


def of_ledger(config: "Config") -> Iterator[Finding]:
    """Every finding about the configured ledger."""
    from broker.errors import TaskpassError
    from broker.ledger.whereabouts import LedgerAtRest

    if config.ledger.url is not None:
        yield from _database(config)
        return
    path = config.ledger.path
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        fix = f"mkdir -m 700 {path.parent}"
        yield Finding("ledger", "wrong", f"{path.parent} is no directory that can be written", fix)
        return
    yield from _file_system(config)
    if not path.exists():
        yield Finding("ledger", "wrong", f"there is none at {path}", "Create it, once: taskpass ledger create")
        return
    try:
        with LedgerAtRest.opened(path) as ledger:
            yield _file(config, ledger.head.size)
            yield from _copied(config, ledger)
            yield from _kept(config, ledger, ledger.origin)
    except TaskpassError as error:
        yield Finding("ledger", "wrong", str(error), error.next or "`taskpass ledger verify` tells what is damaged.")


def _file(config: "Config", size: int) -> Finding:
    path = config.ledger.path
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        return Finding("ledger", "warning", f"{path} is open to others", f"chmod 600 {path}*")
    return Finding("ledger", "ok", f"{path}, {size} events; `taskpass ledger verify` audits it")


def _database(config: "Config") -> Iterator[Finding]:
    from broker.errors import TaskpassError
    from broker.stores import ledger_place, open_ledger

    try:
        with closing(open_ledger(config)) as ledger:
            detail = f"{ledger_place(config)}, {ledger.head.size} events; `taskpass ledger verify` audits it"
            yield Finding("ledger", "ok", detail)
            yield from _kept(config, ledger, ledger.origin)
    except TaskpassError as error:
        yield Finding("ledger", "wrong", str(error), error.next or "Is the server up, and the URL right?")


def _file_system(config: "Config") -> Iterator[Finding]:
    """SQLite's log is shared memory, and its locks and ours are the kernel's: of one machine."""
    from broker.ledger.whereabouts import file_system, is_shared

    kind = file_system(config.ledger.path.parent)
    if is_shared(kind):
        yield Finding(
            "ledger place",
            "wrong",
            f"{config.ledger.path.parent} is on {kind}, which other machines may have too: SQLite is not safe there",
            "Keep it on a disk of this machine; several machines share PostgreSQL: taskpass ledger export",
        )


def _copied(config: "Config", ledger: "Ledger") -> Iterator[Finding]:
    """Whether the file is the one that was served."""
    from broker.ledger.whereabouts import file_number, served_from

    with ledger.read() as r:
        served, now = served_from(r, r.head().size), r.head().time
    if not served:
        return
    last = served[-1]
    if last.file != file_number(config.ledger.path):
        yield Finding(
            "ledger copy",
            "warning",
            f"it was last served from another file (position {last.position}): this is a copy, moved or restored",
            f"{_OTHER} If this was restored from a backup: taskpass ledger accept-restore --reason ...",
        )
    elif len(served) > 1 and now - last.at < _MOVED_LATELY_MS:
        detail = f"it has been served from this file since position {last.position}, {moment(last.at)}; before, another"
        yield Finding("ledger copy", "warning", detail, _OTHER)
    else:
        yield Finding("ledger copy", "ok", f"served from this file since position {last.position}")


def _kept(config: "Config", ledger: "Ledger", origin: str) -> Iterator[Finding]:
    """Whether the ledger extends what was kept outside of the store."""
    from broker.ledger.kept import Kept
    from broker.ledger.proofs import Proofs
    from broker.ledger.witness import Witness
    from broker.stores import shelves_of

    shelves = shelves_of(config)
    if not shelves:
        yield Finding(
            "checkpoint",
            "warning",
            "none is kept outside of the store: nothing can tell that this ledger is old, or goes on elsewhere too",
            "Set kept.file, on another disk, or kept.url or kept.witness_url, on another machine.",
        )
        return
    proofs = Proofs(ledger=ledger, origin=origin, key=_signs_nothing)
    for shelf in shelves:
        if isinstance(shelf, Witness):
            detail = (
                f"{shelf.place} is a witness: the broker compares when it starts; asking it here would show it this"
            )
            yield Finding("checkpoint", "skipped", detail)
        else:
            yield _compared(shelf, Kept(ledger=ledger, origin=origin, proofs=proofs, shelves=[shelf]))


def _compared(shelf: "Shelf", kept: "Kept") -> Finding:
    from broker.ledger import LedgerStopped

    try:
        failed: Sequence[Exception] = kept.check()
    except LedgerStopped as error:
        detail = f"{error.sentence} It was restored, or goes on in another place."
        return Finding("checkpoint", "wrong", detail, f"{_OTHER} {error.next or ''}".strip())
    if failed:
        return Finding("checkpoint", "warning", str(failed[0]), "Look at it: brokers start without it, and warn.")
    return Finding("checkpoint", "ok", f"{shelf.place}: this ledger extends it")


def _signs_nothing() -> "Ed25519PrivateKey":
    raise AssertionError("no comparison needs a signature")
