"""Checkpoints: the tree's size and root as a signed note (C2SP signed-note and tlog-checkpoint), with Ed25519. Pure.

Public tools can read, witness and archive them. Whoever keeps one outside can later tell a ledger that lost its tail,
or was rewritten as a whole, from one that only grew: nothing inside the ledger's own file can prove that.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from broker.ledger.merkle import EMPTY_ROOT, HASH_SIZE

LONGEST_NOTE: Final = 64 * 1024
_MOST_SIGNATURES: Final = 32
_ED25519: Final = b"\x01"
_KEY_ID_SIZE: Final = 4

_NAME = re.compile(r"[^\s+\x00-\x1f\x7f]{1,255}")
_SIZE = re.compile(r"0|[1-9][0-9]{0,17}")
_SIGNATURE_LINE = re.compile(r"— ([^\s+]+) ([A-Za-z0-9+/=]+)")


class NoteInvalid(Exception):
    """The note, key or checkpoint is malformed, or carries no good signature of a known key."""


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A named Ed25519 public key, written `name+hash+key`."""

    name: str
    public: bytes

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or len(self.public) != 32:
            raise NoteInvalid("not the name or the bytes of an Ed25519 key")

    @property
    def id(self) -> bytes:
        """Four bytes that, with the name, tell which key signed. They identify; they authenticate nothing."""
        return hashlib.sha256(self.name.encode() + b"\n" + _ED25519 + self.public).digest()[:_KEY_ID_SIZE]

    @classmethod
    def of(cls, name: str, key: Ed25519PrivateKey) -> Self:
        """The public half of a private key."""
        return cls(name, key.public_key().public_bytes_raw())

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `name+hash+key`. Raises NoteInvalid."""
        name, _, rest = text.partition("+")
        id_, _, encoded = rest.partition("+")
        material = _base64(encoded)
        if material[:1] != _ED25519:
            raise NoteInvalid("not an Ed25519 verifier key")
        key = cls(name, material[1:])
        if id_ != key.id.hex():
            raise NoteInvalid("the verifier key's hash does not belong to it")
        return key

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{base64.b64encode(_ED25519 + self.public).decode()}"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One tree head: whose log (`origin`), how many leaves, which root."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    def text(self) -> str:
        """The lines that are signed."""
        root = base64.b64encode(self.root).decode()
        return "".join(f"{line}\n" for line in (self.origin, str(self.size), root, *self.extensions))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read signed lines. Raises NoteInvalid."""
        lines = text.split("\n")
        if lines.pop() != "" or len(lines) < 3 or not all(lines) or not _SIZE.fullmatch(lines[1]):
            raise NoteInvalid("not a checkpoint")
        origin, size, root, *extensions = lines
        checkpoint = cls(origin, int(size), _base64(root), tuple(extensions))
        if len(checkpoint.root) != HASH_SIZE or (checkpoint.size == 0) != (checkpoint.root == EMPTY_ROOT):
            raise NoteInvalid("not a root for that size")
        return checkpoint


def sign_note(text: str, *, name: str, key: Ed25519PrivateKey) -> str:
    """The note over `text` with one signature. Raises NoteInvalid for a text that no note can hold."""
    if not text.endswith("\n") or _has_control(text) or len(text.encode()) > LONGEST_NOTE // 2:
        raise NoteInvalid("not the text of a note")
    signature = base64.b64encode(VerifierKey.of(name, key).id + key.sign(text.encode())).decode()
    return f"{text}\n— {name} {signature}\n"


def open_note(note: str, *, keys: Sequence[VerifierKey]) -> str:
    """The text of a note that at least one of `keys` has signed. Raises NoteInvalid.

    Signatures of unknown keys are ignored; a bad one of a known key condemns the note.
    """
    text, signatures = _take_apart(note)
    good = False
    for name, id_, signature in signatures:
        for key in keys:
            if key.name == name and key.id == id_:
                try:
                    Ed25519PublicKey.from_public_bytes(key.public).verify(signature, text.encode())
                except InvalidSignature as error:
                    raise NoteInvalid(f"the signature of {name} is wrong") from error
                good = True
    if not good:
        raise NoteInvalid("no signature of a known key")
    return text


def sign_checkpoint(checkpoint: Checkpoint, key: Ed25519PrivateKey) -> str:
    """A signed checkpoint; the key's name is the origin."""
    return sign_note(checkpoint.text(), name=checkpoint.origin, key=key)


def open_checkpoint(note: str, *, keys: Sequence[VerifierKey], origin: str | None = None) -> Checkpoint:
    """The checkpoint in a note that one of `keys` signed, of the log `origin` if one is named. Raises NoteInvalid."""
    checkpoint = Checkpoint.parse(open_note(note, keys=keys))
    if origin is not None and checkpoint.origin != origin:
        raise NoteInvalid(f"a checkpoint of {checkpoint.origin!r}, not of {origin!r}")
    return checkpoint


def unverified_checkpoint(note: str) -> Checkpoint:
    """What a note claims, whoever signed it: for finding out what to check, not for believing. Raises NoteInvalid."""
    return Checkpoint.parse(_take_apart(note)[0])


def _take_apart(note: str) -> tuple[str, list[tuple[str, bytes, bytes]]]:
    """The text, and (key name, key id, signature) of each signature line."""
    if len(note) > LONGEST_NOTE or _has_control(note):
        raise NoteInvalid("too long for a note, or with control characters")
    text, blank, tail = note.rpartition("\n\n")
    lines = tail.split("\n")
    if not blank or lines.pop() != "" or not 0 < len(lines) <= _MOST_SIGNATURES:
        raise NoteInvalid("not a signed note")
    signatures = []
    for line in lines:
        match = _SIGNATURE_LINE.fullmatch(line)
        raw = _base64(match[2]) if match else b""
        if match is None or len(raw) <= _KEY_ID_SIZE:
            raise NoteInvalid("not a signature line")
        signatures.append((match[1], raw[:_KEY_ID_SIZE], raw[_KEY_ID_SIZE:]))
    return text + "\n", signatures


def _base64(text: str) -> bytes:
    """Canonical base64 only, so that one note has one spelling."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise NoteInvalid("not base64") from error
    if base64.b64encode(raw).decode() != text:
        raise NoteInvalid("not canonical base64")
    return raw


def _has_control(text: str) -> bool:
    return any((character < " " and character != "\n") or "\ud800" <= character <= "\udfff" for character in text)
