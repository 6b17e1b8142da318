"""Signing what goes out: compact JWS with ES256, one key and one purpose per signer."""

from collections.abc import Mapping
from typing import Any

import orjson
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from broker.jose.algorithms import raw_ecdsa
from broker.jose.encoding import b64encode
from broker.jose.keys import public_jwk

_ES256 = ec.ECDSA(hashes.SHA256())


class Signer:
    """Signs JWTs with one ES256 key. `kid` is the key's thumbprint unless given."""

    def __init__(self, *, private_key: ec.EllipticCurvePrivateKey, kid: str | None = None) -> None:
        if not isinstance(private_key.curve, ec.SECP256R1):
            raise ValueError("ES256 needs a P-256 key")  # noqa: TRY004  (the type is right, the curve is not)
        self._key = private_key
        self._jwk = public_jwk(private_key.public_key(), alg="ES256", kid=kid)
        self.kid = self._jwk["kid"]
        self._headers: dict[str, bytes] = {}

    @property
    def jwk(self) -> dict[str, str]:
        """The public key, as published in a JWKS."""
        return dict(self._jwk)

    def sign(self, typ: str, claims: dict[str, Any]) -> str:
        """A compact JWT of media type `typ` (such as `at+jwt`) with these claims, whose values must be JSON."""
        header = self._headers.get(typ)
        if header is None:
            header = b64encode(orjson.dumps({"alg": "ES256", "typ": typ, "kid": self.kid}))
            self._headers[typ] = header  # `typ` is never a caller's text: a handful at most
        signed = b".".join((header, b64encode(orjson.dumps(claims))))
        return joined(signed, raw_ecdsa(self._key.sign(signed, _ES256)))


def signing_input(kid: str, typ: str, claims: Mapping[str, Any]) -> bytes:
    """What is to be signed with a key that is elsewhere, by ES256."""
    header = b64encode(orjson.dumps({"alg": "ES256", "typ": typ, "kid": kid}))
    return b".".join((header, b64encode(orjson.dumps(dict(claims)))))


def joined(signed: bytes, signature: bytes) -> str:
    """The compact JWT of what was signed and its signature: r and s, 64 bytes."""
    return b".".join((signed, b64encode(signature))).decode()
