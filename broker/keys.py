"""The broker's own signing keys: made here, sealed at rest, published before use, rotated by command and by age.

One key, one purpose, one algorithm: ES256 for access tokens, ES256 for session tokens, Ed25519 for ledger checkpoints.
Public parts live in the ledger's events; private parts are rows sealed with AES-256-GCM under a key that is not in the
database (a file with checked permissions, or the environment).
"""

import base64
import os
import secrets
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)

from broker.errors import ConfigurationInvalid, Problem, Unavailable
from broker.jose import KeySet, Signer, load_jwks, public_jwk
from broker.ledger import Ledger, LedgerUnavailable, views
from broker.ledger.commands.admin import NewKey

Purpose = Literal["token", "session", "checkpoint"]
_NONCE_BYTES = 12


class Sealer:
    """Seals private keys for the database. Kid and purpose are authenticated with each, so rows cannot be swapped."""

    def __init__(self, key: bytes) -> None:
        if len(key) != 32:
            raise ConfigurationInvalid("The key that encrypts the signing keys must be 32 bytes, base64.")
        self._aead = AESGCM(key)

    def seal(self, purpose: Purpose, kid: str, private: bytes) -> bytes:
        """Nonce and ciphertext."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, private, f"taskpass:{purpose}:{kid}".encode())

    def open(self, purpose: Purpose, kid: str, sealed: bytes) -> bytes:
        """The private key. Raises ConfigurationInvalid when it was sealed under another key or was changed."""
        try:
            return self._aead.decrypt(
                sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], f"taskpass:{purpose}:{kid}".encode()
            )
        except InvalidTag:
            raise ConfigurationInvalid(
                f"Signing key {kid} does not open: it was sealed under another encryption key than the configured one."
            ) from None

    @classmethod
    def from_file(cls, path: Path) -> "Sealer":
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
    def from_text(cls, text: bytes | str) -> "Sealer":
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
            file.write(base64.b64encode(secrets.token_bytes(32)) + b"\n")


def make_key(purpose: Purpose, sealer: Sealer) -> NewKey:
    """A new signing key. Its kid is the RFC 7638 thumbprint of its public part."""
    private = (
        ed25519.Ed25519PrivateKey.generate() if purpose == "checkpoint" else ec.generate_private_key(ec.SECP256R1())
    )
    jwk = public_jwk(private.public_key())
    der = private.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return NewKey(kid=jwk["kid"], purpose=purpose, jwk=jwk, sealed=sealer.seal(purpose, jwk["kid"], der))


class Keyring:
    """The signing keys of this ledger, opened once each."""

    def __init__(self, *, ledger: Ledger, sealer: Sealer, now: Callable[[], int]) -> None:
        self._ledger = ledger
        self._sealer = sealer
        self._now = now
        self._signers: dict[str, Signer] = {}
        self._verifying: dict[Purpose, tuple[list[dict[str, Any]], KeySet]] = {}

    def make(self, purpose: Purpose) -> NewKey:
        """A new key, sealed for this ledger."""
        return make_key(purpose, self._sealer)

    def signer(self, kid: str) -> Signer:
        """The signer for a kid that the ledger names. Raises Unavailable when there is no such key."""
        signer = self._signers.get(kid)
        if signer is None:
            self.refresh()
            signer = self._signers.get(kid)
            if signer is None:
                raise Unavailable("The signing key of this commit cannot be opened.", internal=f"kid {kid}")
        return signer

    def session_signer(self) -> Signer:
        """The signer of session tokens."""
        with self._ledger.read() as r:
            rows = [row for row in views.keys(r, purpose="session") if row.state == "active"]
        if not rows:
            raise Unavailable("No session signing key is active.")
        return self.signer(rows[-1].kid)

    def verifying(self, purpose: Purpose) -> KeySet:
        """The public keys that may have signed what is still valid, for checking what comes back to us. While the ledger
        cannot be read, those that were last: an operator's session must open the kill switch then.
        """
        known = self._verifying.get(purpose)
        try:
            keys = self.public(purpose)
        except LedgerUnavailable:
            if known is None:
                raise
            return known[1]
        if known is None or known[0] != keys:
            known = self._verifying[purpose] = (keys, load_jwks({"keys": keys}))
        return known[1]

    def checkpoint_key(self) -> ed25519.Ed25519PrivateKey:
        """The key that signs the ledger's checkpoints."""
        with self._ledger.read() as r:
            rows = [row for row in views.keys(r, purpose="checkpoint") if row.state == "active"]
        if not rows:
            raise Unavailable("No checkpoint key is active.")
        key = load_der_private_key(self._sealer.open("checkpoint", rows[-1].kid, rows[-1].sealed), None)
        assert isinstance(key, ed25519.Ed25519PrivateKey)
        return key

    def refresh(self) -> None:
        """Open keys that were added since; forget killed ones."""
        with self._ledger.read() as r:
            rows = [row for row in views.keys(r) if row.purpose in ("token", "session")]
        for row in rows:
            if row.state == "killed":
                self._signers.pop(row.kid, None)
            elif row.kid not in self._signers:
                key = load_der_private_key(self._sealer.open(_purpose(row), row.kid, row.sealed), None)
                assert isinstance(key, ec.EllipticCurvePrivateKey)
                self._signers[row.kid] = Signer(private_key=key, kid=row.kid)

    def public(self, purpose: Purpose) -> list[dict[str, Any]]:
        """The public keys of a purpose that may have signed, or will sign, what is still valid."""
        with self._ledger.read() as r:
            return [row.jwk for row in views.keys(r, purpose=purpose) if row.state != "killed"]

    def jwks(self, *, keep_retired_ms: int) -> dict[str, Sequence[dict[str, Any]]]:
        """The published key set (RFC 7517): next, active, and retired keys whose tokens may still be alive."""
        with self._ledger.read() as r:
            rows = views.keys(r, purpose="token")
        oldest = self._now() - keep_retired_ms
        published = [
            row.jwk
            for row in rows
            if row.state in ("next", "active") or (row.state == "retired" and (row.retired or 0) > oldest)
        ]
        return {"keys": published}


def _purpose(row: views.KeyRow) -> Purpose:
    return "session" if row.purpose == "session" else "token"
