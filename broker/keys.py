"""The broker's own signing keys: made here, sealed at rest, published before use, rotated by command and by age.

One key, one purpose, one algorithm: ES256 for access tokens, ES256 for session tokens, Ed25519 for ledger checkpoints.
Public parts live in the ledger's events; private parts are rows that `sealing` closed. The keys of access tokens may
instead stay in a vault, which then signs: their rows hold the name of the key there. While the vault is known to be
away nothing is committed that it would have to sign or open: one caller, a chore, asks it until it answers.
"""

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)

from broker.breaker import Breaker
from broker.errors import TaskpassError, Unavailable
from broker.jose import KeySet, Signer, VerifyingKey, load_jwk, load_jwks, public_jwk
from broker.jose.sign import joined, signing_input
from broker.ledger import Ledger, LedgerUnavailable, views
from broker.ledger.commands.admin import IN_TRANSIT, NewKey
from broker.sealing import Sealer
from broker.transit import Transit

Purpose = Literal["token", "session", "checkpoint"]

_PATIENCE_S: Final = 2.0
"""A vault that has not answered for so long is away: what comes meanwhile does not wait for it too."""
_ASK_AFTER_S: Final = 10.0
"""After so long without a signature the vault is asked for one, so that readiness is true of an idle broker too."""
_PROBE: Final = b"taskpass asks whether this key signs"
"""Signed to find out. It can never be a token's: what is signed of a token is base64url and a dot, without a space."""


@dataclass(frozen=True, slots=True)
class _Remote:
    """A signing key that stays in a vault."""

    name: str
    public: VerifyingKey


def make_key(purpose: Purpose, sealer: Sealer) -> NewKey:
    """A new signing key. Its kid is the RFC 7638 thumbprint of its public part."""
    private = (
        ed25519.Ed25519PrivateKey.generate() if purpose == "checkpoint" else ec.generate_private_key(ec.SECP256R1())
    )
    jwk = public_jwk(private.public_key())
    der = private.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return NewKey(kid=jwk["kid"], purpose=purpose, jwk=jwk, sealed=sealer.seal(purpose, jwk["kid"], der))


class Keyring:
    """The signing keys of this ledger, opened once each. With `transit` it can use those that stay in a vault; with
    `makes_remote` it makes those of access tokens there.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        sealer: Sealer,
        now: Callable[[], int],
        transit: Transit | None = None,
        makes_remote: bool = False,
        observe: Callable[[float, bool], None] | None = None,
    ) -> None:
        """`observe` is told of each time that a vault was asked to sign: the seconds, and whether it did not."""
        self._ledger = ledger
        self._sealer = sealer
        self._now = now
        self._transit = transit
        self._makes_remote = makes_remote
        self._signing = Breaker(patience_s=_PATIENCE_S, observe=observe)
        self._opening = Breaker(patience_s=_PATIENCE_S)
        self._signers: dict[str, Signer] = {}
        self._remote: dict[str, _Remote] = {}
        self._checkpoint: dict[str, ed25519.Ed25519PrivateKey] = {}
        self._verifying: dict[Purpose, tuple[list[dict[str, Any]], KeySet]] = {}

    def make(self, purpose: Purpose) -> NewKey:
        """A new key, sealed for this ledger. Blocks while a vault is asked. Raises Unavailable."""
        if purpose == "token" and self._makes_remote and self._transit is not None:
            name = f"taskpass-token-{secrets.token_hex(8)}"  # a name for each: two brokers never meet at one
            jwk = self._transit.make_signing_key(name)
            return NewKey(kid=jwk["kid"], purpose=purpose, jwk=jwk, sealed=IN_TRANSIT + name.encode())
        return make_key(purpose, self._sealer)

    def away(self) -> Unavailable | None:
        """Why access tokens cannot be signed now, as far as is known; asks nobody."""
        kid = self._ledger.head.active_kid
        if kid in self._signers:
            return None
        breaker = self._signing if kid in self._remote else self._opening
        if not breaker.open:
            return None
        return Unavailable("The signing key's vault does not answer, so nothing is issued.", internal=f"kid {kid}")

    async def prepare(self) -> None:
        """Before a token is committed: see to it that its key is open here, or in a vault that signs, as far as is
        known. Raises Unavailable.
        """
        kid = self._ledger.head.active_kid
        if kid in self._signers:
            return
        why = self.away()
        if why is None and kid not in self._remote:
            try:
                await self.learn()
            except TaskpassError as error:
                raise _unknown(kid, error) from error
            why = None if kid in self._signers or kid in self._remote else _unknown(kid)
        if why is not None:
            raise why

    async def probe(self) -> None:
        """Ask the vault for a signature if it gave none the last time, or was not asked for a while. Nothing of it is
        kept.
        """
        key = self._remote.get(self._ledger.head.active_kid)
        if key is not None and (self._signing.open or self._signing.quiet_for(_ASK_AFTER_S)):
            await self._signatures(key, [_PROBE])

    async def sign_all(self, wanted: Sequence[tuple[str, str, Mapping[str, Any]]]) -> list[str | Exception]:
        """Compact JWTs for (kid, typ, claims), in order; the slot of one that cannot be signed holds why. Suspends only
        when a vault is needed: then for all of one key together.
        """
        kids = {kid for kid, _, _ in wanted}
        if not all(kid in self._signers or kid in self._remote for kid in kids):
            try:
                await self.learn()
            except TaskpassError as error:
                return [error] * len(wanted)
        signed: list[str | Exception] = []
        signer: Signer | None
        remote: dict[str, list[tuple[int, bytes]]] = {}
        for kid, typ, claims in wanted:
            signer = self._signers.get(kid)
            if signer is not None:
                signed.append(_or_why(signer, typ, claims))
                continue
            if kid in self._remote:
                remote.setdefault(kid, []).append((len(signed), signing_input(kid, typ, claims)))
            signed.append(_unknown(kid))
        for kid, inputs in remote.items():
            await self._sign_remotely(self._remote[kid], inputs, signed)
        return signed

    async def learn(self) -> None:
        """Open keys that were published since, ahead of their use."""
        with self._opening.call():
            await asyncio.to_thread(self.refresh)

    async def _sign_remotely(
        self, key: _Remote, inputs: Sequence[tuple[int, bytes]], signed: list[str | Exception]
    ) -> None:
        signatures = await self._signatures(key, [each for _, each in inputs])
        for (slot, each), signature in zip(inputs, signatures, strict=True):
            signed[slot] = signature if isinstance(signature, Exception) else joined(each, signature)

    async def _signatures(self, key: _Remote, inputs: Sequence[bytes]) -> Sequence[bytes | Unavailable]:
        """What the vault makes of the inputs. It is away when it makes nothing of any."""
        assert self._transit is not None
        try:
            with self._signing.call():
                signatures = await asyncio.to_thread(self._transit.sign, key.name, key.public, inputs)
                refused = [each for each in signatures if isinstance(each, Unavailable)]
                if len(refused) == len(inputs):
                    raise refused[0]
                return signatures
        except Unavailable as error:
            return [error] * len(inputs)

    def signer(self, kid: str) -> Signer:
        """The signer for a kid that the ledger names. Raises Unavailable when there is no such key."""
        if kid not in self._signers:
            self._refresh_here(kid)
        signer = self._signers.get(kid)
        if signer is None:
            raise _unknown(kid)
        return signer

    def session_signer(self) -> Signer:
        """The signer of session tokens."""
        with self._ledger.read() as r:
            rows = [row for row in views.keys(r, purpose="session") if row.state == "active"]
        if not rows:
            raise Unavailable("No session signing key is active.")
        return self.signer(rows[-1].kid)

    def verifying(self, purpose: Purpose) -> KeySet:
        """The public keys that may have signed what is still valid, for checking what comes back to us. While the
        ledger cannot be read, those that were last: an operator's session must open the kill switch then.
        """
        try:
            keys = self.public(purpose)
        except LedgerUnavailable:
            if purpose not in self._verifying:
                raise
            return self._verifying[purpose][1]
        return self._remembered(purpose, keys)

    def _remembered(self, purpose: Purpose, keys: list[dict[str, Any]]) -> KeySet:
        """The key set of these, the same one for as long as they are the same."""
        known = self._verifying.get(purpose)
        if known is None or known[0] != keys:
            known = self._verifying[purpose] = (keys, load_jwks({"keys": keys}))
        return known[1]

    def checkpoint_key(self) -> ed25519.Ed25519PrivateKey:
        """The key that signs the ledger's checkpoints."""
        with self._ledger.read() as r:
            rows = [row for row in views.keys(r, purpose="checkpoint") if row.state == "active"]
        if not rows:
            raise Unavailable("No checkpoint key is active.")
        kid = rows[-1].kid
        if kid not in self._checkpoint:
            self._refresh_here(kid)
        return self._checkpoint[kid]

    def _refresh_here(self, kid: str) -> None:
        """Look for a key at once, unless that might wait for a vault: `learn` opens those, ahead of their use."""
        if self._transit is not None:
            raise _unknown(kid)
        self.refresh()

    def refresh(self) -> None:
        """Open keys that were added since; forget killed ones. Blocks while a vault is asked. Raises Unavailable."""
        with self._ledger.read() as r:
            rows = views.keys(r)
        # Now, not when the first session comes: that may be an operator's, for a kill, when the ledger is away.
        self._remembered("session", [row.jwk for row in rows if row.purpose == "session" and row.state != "killed"])
        for row in rows:
            if row.state == "killed":
                self._signers.pop(row.kid, None)
                self._remote.pop(row.kid, None)
            elif row.sealed.startswith(IN_TRANSIT):
                if self._transit is not None and row.kid not in self._remote:
                    name = bytes(row.sealed).removeprefix(IN_TRANSIT).decode()
                    self._remote[row.kid] = _Remote(name, load_jwk(row.jwk))
            elif row.kid not in self._signers and row.kid not in self._checkpoint:
                key = load_der_private_key(self._sealer.open(row.purpose, row.kid, row.sealed), None)
                if isinstance(key, ed25519.Ed25519PrivateKey):
                    self._checkpoint[row.kid] = key
                    continue
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


def _or_why(signer: Signer, typ: str, claims: Mapping[str, Any]) -> str | Exception:
    """One that cannot be signed fails alone."""
    try:
        return signer.sign(typ, dict(claims))
    except Exception as error:  # noqa: BLE001  (whatever it is, it is in this one's slot)
        return error


def _unknown(kid: str, why: TaskpassError | None = None) -> Unavailable:
    internal = f"kid {kid}" if why is None else f"kid {kid}: {why.internal or why}"
    return Unavailable("The signing key cannot be opened, so nothing is issued.", internal=internal)
