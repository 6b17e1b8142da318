"""Checkpoints kept outside of the store: what tells that a ledger was rolled back or forked while nobody was looking.

A process that runs notices by itself when its ledger shrinks. One that starts on an old backup cannot, from the store
alone: it compares with what was kept elsewhere, and refuses to serve when that is not a part of its history. While it
serves, the newest checkpoint is kept again every few seconds. Failing to keep one is told, and stops nothing.
"""

import os
from base64 import b64decode, urlsafe_b64decode
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import httpx2
import orjson

from broker.errors import Unavailable
from broker.ledger import Ledger, LedgerStopped, Reader, views
from broker.ledger.checkpoint import (
    LONGEST_NOTE,
    Checkpoint,
    NoteInvalid,
    VerifierKey,
    open_checkpoint,
    unverified_checkpoint,
)
from broker.ledger.heads import COPY
from broker.ledger.proofs import Proofs

_DEADLINE_S: Final = 5.0
_ACCEPT: Final = "If the backup was restored on purpose: taskpass ledger accept-restore --reason ..."
UNKNOWN_ROOT: Final = b""
"""The root of a history that a witness does not tell: it only says how long the one is that it knows."""


class LedgerRolledBack(LedgerStopped):
    """The ledger is shorter than, or other than, a checkpoint that was kept outside: it was restored or rewritten."""

    def __init__(self, sentence: str, *, internal: str | None = None) -> None:
        super().__init__(sentence, internal=internal)
        self.next = _ACCEPT

    def __str__(self) -> str:
        return f"{self.sentence} {self.next}"


class KeepingFailed(Unavailable):
    """The place outside could not be reached, or did not do what it was asked."""


class Foreign(Exception):
    """What is kept is not of this ledger's history: how long that one is, and its root."""

    def __init__(self, sentence: str, size: int, root: bytes) -> None:
        super().__init__(sentence)
        self.size, self.root = size, root


class History(Protocol):
    """The ledger, as it is compared with what is kept."""

    def compare(self, claim: Checkpoint) -> None:
        """Raises Foreign unless the ledger extends it."""

    def opened(self, note: str) -> Checkpoint:
        """The checkpoint in a note that this ledger's own key signed. Raises NoteInvalid."""

    def newest(self, *, covering: int = -1) -> str:
        """A signed checkpoint of the ledger as it is."""

    def extension(self, first: int, second: int) -> list[str]:
        """The consistency proof between two sizes, in base64."""


class Shelf(Protocol):
    """One place outside of the store."""

    place: str

    def check(self, history: History) -> None:
        """Compare. Raises Foreign, KeepingFailed; NoteInvalid for what is no checkpoint of this ledger."""

    def keep(self, history: History) -> None:
        """Compare, and leave the newest checkpoint. Raises as `check`."""

    def replace(self, history: History) -> None:
        """Leave the newest checkpoint, whatever is there: an operator has accepted that. Raises KeepingFailed."""


class _Shelf:
    """A place that holds one note."""

    place: str

    def read(self) -> str | None:
        raise NotImplementedError

    def write(self, note: str) -> None:
        raise NotImplementedError

    def check(self, history: History) -> None:
        """See `Shelf`."""
        self._compared(history)

    def keep(self, history: History) -> None:
        """See `Shelf`."""
        kept = self._compared(history)
        note = history.newest()
        if kept is None or unverified_checkpoint(note).size > kept.size:
            self.write(note)

    def replace(self, history: History) -> None:
        """See `Shelf`."""
        self.write(history.newest())

    def _compared(self, history: History) -> Checkpoint | None:
        note = self.read()  # first: the ledger can only have grown since
        if note is None:
            return None
        claim = history.opened(note)
        history.compare(claim)
        return claim


class FileShelf(_Shelf):
    """A file, best on another disk than the ledger's. Replaced as a whole."""

    def __init__(self, path: Path) -> None:
        self.place, self._path = str(path), path

    def read(self) -> str | None:
        """The note; None where there is no file yet. Raises KeepingFailed."""
        try:
            with self._path.open("rb") as file:
                return file.read(LONGEST_NOTE + 1).decode()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise KeepingFailed(f"{self.place} cannot be read.", internal=str(error)) from error

    def write(self, note: str) -> None:
        """Raises KeepingFailed."""
        part = self._path.with_name(f"{self._path.name}.{os.getpid()}.part")
        try:
            with part.open("wb") as file:
                file.write(note.encode())
                file.flush()
                os.fsync(file.fileno())
            part.replace(self._path)
        except OSError as error:
            raise KeepingFailed(f"{self.place} cannot be written.", internal=str(error)) from error


class HttpShelf(_Shelf):
    """An object at a URL: GET reads it (404: nothing yet), PUT replaces it. No redirects, no proxies."""

    def __init__(self, url: str, *, authorization: str | None = None) -> None:
        self.place = url
        self._headers = {} if authorization is None else {"authorization": authorization}

    def read(self) -> str | None:
        """The note; None where there is no object yet. Raises KeepingFailed."""
        answer = ask("GET", self.place, headers=self._headers)
        if answer.status_code == 404:
            return None
        if answer.status_code != 200 or len(answer.content) > LONGEST_NOTE:
            raise KeepingFailed(f"{self.place} answered {answer.status_code} to GET.")
        return answer.text

    def write(self, note: str) -> None:
        """Raises KeepingFailed."""
        headers = {**self._headers, "content-type": "text/plain; charset=utf-8"}
        answer = ask("PUT", self.place, headers=headers, content=note.encode())
        if answer.status_code not in (200, 201, 204):
            raise KeepingFailed(f"{self.place} answered {answer.status_code} to PUT.")


def ask(method: str, url: str, **options: Any) -> httpx2.Response:  # noqa: ANN401  (the client's own)
    """One exchange with a place outside. Raises KeepingFailed when there is no answer."""
    try:
        with httpx2.Client(timeout=_DEADLINE_S, follow_redirects=False, trust_env=False) as http:
            return http.request(method, url, **options)
    except httpx2.HTTPError as error:
        raise KeepingFailed(f"{url} does not answer.", internal=f"{type(error).__name__}: {error}") from error


class Kept:
    """All places that a ledger's checkpoints are kept at. Blocks: call it from a thread."""

    def __init__(self, *, ledger: Ledger, origin: str, proofs: Proofs, shelves: Sequence[Shelf]) -> None:
        self._ledger, self._origin, self._proofs = ledger, origin, proofs
        self.shelves = tuple(shelves)

    def check(self) -> list[KeepingFailed]:
        """Before anything is served: compare with every place that answers; what did not is returned.

        Raises LedgerRolledBack when any of them knows another history, or this one is a copy that nobody accepted.
        """
        with self._ledger.read() as r:
            if r.head().sealed == COPY:
                raise LedgerRolledBack("This ledger was imported from a copy, which may be older than what was issued.")
        return self._each("check")

    def keep(self) -> list[KeepingFailed]:
        """Compare, and leave the newest checkpoint at every place; what failed is returned. Raises LedgerRolledBack."""
        return self._each("keep")

    def given_up(self) -> list[tuple[int, bytes]]:
        """(size, root) of what is kept and not of this ledger's history: what accepting the roll-back gives up.

        Raises KeepingFailed when a place does not answer, LedgerRolledBack for what no acceptance can mend.
        """
        found = []
        for shelf in self.shelves:
            try:
                shelf.check(self)
            except Foreign as foreign:
                found.append((foreign.size, foreign.root))
            except NoteInvalid as error:
                raise _not_ours(shelf, error) from error
        return sorted(set(found))

    def replace(self) -> list[KeepingFailed]:
        """After a roll-back was accepted: leave a checkpoint of the new history everywhere; what failed is returned."""
        failed = []
        for shelf in self.shelves:
            try:
                shelf.replace(self)
            except KeepingFailed as error:
                failed.append(error)
        return failed

    def _each(self, act: str) -> list[KeepingFailed]:
        failed = []
        for shelf in self.shelves:
            try:
                getattr(shelf, act)(self)
            except KeepingFailed as error:
                failed.append(error)
            except Foreign as error:
                raise LedgerRolledBack(f"{error} It is kept at {shelf.place}.") from error
            except NoteInvalid as error:
                raise _not_ours(shelf, error) from error
        return failed

    # --- `History` ----------------------------------------------------------------------------------------------------

    def compare(self, claim: Checkpoint) -> None:
        """See `History`."""
        with self._ledger.read() as r:
            size = r.head().size
            if (claim.size, claim.root) in _abandoned(r) or (claim.size, UNKNOWN_ROOT) in _abandoned(r):
                return
        if claim.size > size:
            raise Foreign(f"This ledger has {size} events, and once had {claim.size}.", claim.size, claim.root)
        if claim.size and claim.root not in (UNKNOWN_ROOT, self._proofs.root(claim.size)):
            raise Foreign(f"This ledger's first {claim.size} events once were others.", claim.size, claim.root)

    def opened(self, note: str) -> Checkpoint:
        """See `History`."""
        with self._ledger.read() as r:
            rows = views.keys(r, purpose="checkpoint")
        keys = [VerifierKey(self._origin, urlsafe_b64decode(row.jwk["x"] + "=")) for row in rows]
        return open_checkpoint(note, keys=keys, origin=self._origin)

    def newest(self, *, covering: int = -1) -> str:
        """See `History`. Covers all events, however young: after the last one nobody may write for hours."""
        with self._ledger.read() as r:
            size = r.head().size
        return self._proofs.checkpoint(covering=max(covering, size - 1))

    def extension(self, first: int, second: int) -> list[str]:
        """See `History`."""
        proof: list[str] = self._proofs.consistency(first, second)["proof"]
        return proof


def _abandoned(r: Reader) -> set[tuple[int, bytes]]:
    rows = r.execute("SELECT abandoned FROM epochs").fetchall()
    return {(size, b64decode(root)) for (text,) in rows for size, root in orjson.loads(text)}


def _not_ours(shelf: Shelf, error: NoteInvalid) -> LedgerStopped:
    return LedgerStopped(
        f"What is kept at {shelf.place} is not a checkpoint of this ledger ({error}): it is another ledger's, or was"
        " changed. Configure another place, or look which of the two is wrong."
    )
