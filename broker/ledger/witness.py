"""Another host that vouches for the ledger: a client of the C2SP witness protocol (tlog-witness, add-checkpoint).

A witness remembers, for each log, the newest checkpoint that it signed, and signs another one only when shown that it
extends that. So it cannot be talked into two histories, and its answer tells how long the one is that it knows.
"""

import hashlib
import re
from base64 import b64decode
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from broker.ledger.checkpoint import Checkpoint, NoteInvalid, unverified_checkpoint
from broker.ledger.kept import UNKNOWN_ROOT, Foreign, History, KeepingFailed, ask
from broker.ledger.merkle import HASH_SIZE

_COSIGNATURE: Final = b"\x04"
_LINE: Final = re.compile(r"— (\S+) ([A-Za-z0-9+/=]+)")
_SIZE: Final = re.compile(r"0|[1-9][0-9]{0,17}")
_NO_ROOT: Final = bytes(HASH_SIZE)  # of no tree
_TRIES: Final = 3  # another broker may be asking at the same time


class WitnessKey:
    """A witness's name and Ed25519 key for cosignatures, written `name+hash+key`. Raises NoteInvalid."""

    def __init__(self, text: str) -> None:
        self.name, _, rest = text.partition("+")
        hash_, _, encoded = rest.partition("+")
        try:
            material = b64decode(encoded, validate=True)
        except ValueError as error:
            raise NoteInvalid("not a witness key") from error
        self.id = hashlib.sha256(self.name.encode() + b"\n" + material).digest()[:4]
        if material[:1] != _COSIGNATURE or len(material) != 33 or self.id.hex() != hash_ or not self.name:
            raise NoteInvalid("not a witness key for cosignatures (algorithm 4), or its hash is wrong")
        self._public = Ed25519PublicKey.from_public_bytes(material[1:])

    def verify(self, text: str, answer: str) -> int:
        """The time, in seconds, at which the witness says that it signed `text`. Raises NoteInvalid."""
        for line in answer.splitlines():
            match = _LINE.fullmatch(line)
            raw = b64decode(match[2]) if match is not None and match[1] == self.name else b""
            if raw[:4] == self.id and len(raw) == 4 + 8 + 64:
                at = int.from_bytes(raw[4:12])
                try:
                    self._public.verify(raw[12:], f"cosignature/v1\ntime {at}\n{text}".encode())
                except InvalidSignature as error:
                    raise NoteInvalid("the witness's signature is wrong") from error
                return at
        raise NoteInvalid("no signature of the witness")


class Witness:
    """`broker.ledger.kept.Shelf` at a witness. `url` is its submission prefix."""

    def __init__(self, url: str, key: WitnessKey) -> None:
        self.place, self._key = url.rstrip("/"), key
        self._known = 0  # the size that it last signed, as far as we know

    def check(self, history: History) -> None:
        """See `Shelf`. There is no question without a checkpoint, so this keeps one too."""
        self.keep(history)

    def keep(self, history: History) -> None:
        """See `Shelf`."""
        for _ in range(_TRIES):
            note = history.newest(covering=self._known - 1)
            claim = unverified_checkpoint(note)
            if claim.size < self._known:
                history.compare(Checkpoint("", self._known, UNKNOWN_ROOT))
                raise self._keeps_to_another()  # to what an operator has given up
            status, told = self._add(history, note, claim)
            if status == 200:
                return
            if told is None or told == self._known:
                raise self._contradiction(history)
            self._known = told
            history.compare(Checkpoint("", told, UNKNOWN_ROOT))
        raise KeepingFailed(f"The witness {self.place} changes its mind.")

    def replace(self, history: History) -> None:
        """See `Shelf`. A witness never lets go of a history: its operator has to be told."""
        try:
            self.keep(history)
        except Foreign as error:
            raise self._keeps_to_another() from error

    def _contradiction(self, history: History) -> Exception:
        """Why it does not take our history for an extension of the one that it knows."""
        try:
            history.compare(Checkpoint("", self._known, _NO_ROOT))
        except Foreign:
            return Foreign(f"The first {self._known} events once were others.", self._known, UNKNOWN_ROOT)
        return self._keeps_to_another()

    def _keeps_to_another(self) -> KeepingFailed:
        return KeepingFailed(
            f"The witness {self.place} keeps to the history that was given up; only its operator ends that."
        )

    def _add(self, history: History, note: str, claim: Checkpoint) -> tuple[int, int | None]:
        """One request: the status, and the size that the witness told of instead. Raises KeepingFailed."""
        lines = history.extension(self._known, claim.size) if 0 < self._known < claim.size else []
        head = "".join(f"{line}\n" for line in (f"old {self._known}", *lines))
        answer = ask("POST", f"{self.place}/add-checkpoint", content=f"{head}\n{note}".encode())
        text = answer.text[:65_536]
        if answer.status_code == 200:
            try:
                self._key.verify(claim.text(), text)
            except (NoteInvalid, ValueError) as error:
                raise KeepingFailed(f"The witness {self.place} answered without its signature: {error}.") from error
            self._known = claim.size
        elif answer.status_code not in (409, 422):
            raise KeepingFailed(f"The witness {self.place} answered {answer.status_code}.")
        told = text.strip()
        return answer.status_code, int(told) if answer.status_code == 409 and _SIZE.fullmatch(told) else None
