"""Sealing the broker's private keys for the database: by a key of this machine, or by one that stays in a vault.

A sealed key says nothing of who may open it but whether a vault is needed: with several sealers each is asked in turn.
"""

import base64
import os
import secrets
import stat
import threading
from pathlib import Path
from typing import Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from broker.errors import ConfigurationInvalid, Problem
from broker.transit import Transit

_NONCE_BYTES: Final = 12
_KEY_BYTES: Final = 32
_ENVELOPE: Final = b"taskpass:transit:1\n"
"""What a key that needs a vault begins with. Another begins with a random nonce, which is never this."""


class Sealer(Protocol):
    """Seals private keys. Kid and purpose are authenticated with each, so rows cannot be swapped."""

    def seal(self, purpose: str, kid: str, private: bytes) -> bytes:
        """The sealed key. Raises Unavailable when a vault is needed and does not answer."""
        ...

    def open(self, purpose: str, kid: str, sealed: bytes) -> bytes:
        """The private key. Raises ConfigurationInvalid when it was sealed under another key or was changed, and
        Unavailable.
        """
        ...


class KeySealer:
    """Seals with AES-256-GCM under a key of this machine."""

    def __init__(self, key: bytes) -> None:
        if len(key) != _KEY_BYTES:
            raise ConfigurationInvalid("The key that encrypts the signing keys must be 32 bytes, base64.")
        self._aead = AESGCM(key)

    def seal(self, purpose: str, kid: str, private: bytes) -> bytes:
        """Nonce and ciphertext."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, private, f"taskpass:{purpose}:{kid}".encode())

    def open(self, purpose: str, kid: str, sealed: bytes) -> bytes:
        """See `Sealer.open`."""
        try:
            return self._aead.decrypt(
                sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], f"taskpass:{purpose}:{kid}".encode()
            )
        except InvalidTag:
            raise _does_not_open(kid) from None

    @classmethod
    def from_file(cls, path: Path) -> "KeySealer":
        """Read the sealing key. Refuses a file that others can read."""
        try:
            mode = path.stat().st_mode
            text = path.read_bytes()
        except OSError as error:
            raise ConfigurationInvalid(f"Cannot read the encryption key {path}: {error.strerror}.") from error
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigurationInvalid(
                "The encryption key file is open to others.", problems=[Problem(f"run: chmod 600 {path}", str(path))]
            )
        return cls.from_text(text)

    @classmethod
    def from_text(cls, text: bytes | str) -> "KeySealer":
        """From base64 (standard or URL-safe) text."""
        raw = text.encode() if isinstance(text, str) else text
        try:
            return cls(base64.b64decode(raw.strip().replace(b"-", b"+").replace(b"_", b"/"), validate=True))
        except ValueError:
            raise ConfigurationInvalid("The key that encrypts the signing keys is not base64.") from None

    @staticmethod
    def create_file(path: Path) -> None:
        """Write a new random sealing key, readable by its owner only. Refuses to overwrite one."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(base64.b64encode(secrets.token_bytes(_KEY_BYTES)) + b"\n")


class TransitSealer:
    """Seals under a data key, which travels with what it sealed, encrypted by a vault's transit engine.

    The vault is asked once for every data key that a process meets, and not again while the process lives.
    """

    def __init__(self, transit: Transit, *, key: str) -> None:
        self._transit = transit
        self._key = key
        self._opened: dict[bytes, KeySealer] = {}  # encrypted data key -> what it opens
        self._asking = threading.Lock()

    def seal(self, purpose: str, kid: str, private: bytes) -> bytes:
        """Mark, the encrypted data key with its length, and what it sealed."""
        wrapped = self._data_key()
        return _ENVELOPE + len(wrapped).to_bytes(2) + wrapped + self._opened[wrapped].seal(purpose, kid, private)

    def open(self, purpose: str, kid: str, sealed: bytes) -> bytes:
        """See `Sealer.open`."""
        if not sealed.startswith(_ENVELOPE):
            raise _does_not_open(kid)
        start = len(_ENVELOPE) + 2
        end = start + int.from_bytes(sealed[len(_ENVELOPE) : start])
        wrapped = sealed[start:end]
        with self._asking:
            if wrapped not in self._opened:
                try:
                    self._opened[wrapped] = KeySealer(self._transit.decrypt(self._key, wrapped.decode("ascii")))
                except UnicodeDecodeError:
                    raise _does_not_open(kid) from None
        return self._opened[wrapped].open(purpose, kid, sealed[end:])

    def _data_key(self) -> bytes:
        """One that is open here, else a new one."""
        with self._asking:
            if not self._opened:
                key = secrets.token_bytes(_KEY_BYTES)
                self._opened[self._transit.encrypt(self._key, key).encode("ascii")] = KeySealer(key)
            return next(reversed(self._opened))


class Sealers:
    """Seals with the first, and opens with whichever can: for as long as not everything is sealed anew."""

    def __init__(self, first: Sealer, *others: Sealer) -> None:
        self.first = first
        self._all = (first, *others)

    def seal(self, purpose: str, kid: str, private: bytes) -> bytes:
        """See `Sealer.seal`."""
        return self.first.seal(purpose, kid, private)

    def open(self, purpose: str, kid: str, sealed: bytes) -> bytes:
        """See `Sealer.open`."""
        for sealer in self._all:
            if isinstance(sealer, TransitSealer) != sealed.startswith(_ENVELOPE):
                continue
            try:
                return sealer.open(purpose, kid, sealed)
            except ConfigurationInvalid:
                continue
        raise _does_not_open(kid)


def _does_not_open(kid: str) -> ConfigurationInvalid:
    return ConfigurationInvalid(
        f"Signing key {kid} does not open: it was sealed under another encryption key than the configured one."
    )
