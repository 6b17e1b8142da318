"""The signature algorithms, on `cryptography` directly. A closed table: what is not in it does not exist here.

There is no `none` and no HMAC, so confusing a public key with a shared secret is not possible, whatever a header says.
"""

from collections.abc import Callable, Collection
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from broker.jose.errors import BadSignature, HeaderRefused

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey

_Check = Callable[[Any, bytes, bytes], None]
"""Takes a key of its algorithm's kind: `keys` pairs them, once, when a key is loaded."""


def _ecdsa(curve: ec.EllipticCurve, size: int, digest: hashes.HashAlgorithm) -> _Check:
    algorithm = ec.ECDSA(digest)
    order = curve.group_order

    def check(key: ec.EllipticCurvePublicKey, signing_input: bytes, signature: bytes) -> None:
        if len(signature) != 2 * size:  # raw r and s only: DER has another length, and another spelling
            raise InvalidSignature
        r, s = int.from_bytes(signature[:size]), int.from_bytes(signature[size:])
        if not (0 < r < order and 0 < s < order):  # CVE-2022-21449 and its kin, whatever the library does
            raise InvalidSignature
        key.verify(encode_dss_signature(r, s), signing_input, algorithm)

    return check


def _pkcs1(digest: hashes.HashAlgorithm) -> _Check:
    scheme = padding.PKCS1v15()

    def check(key: rsa.RSAPublicKey, signing_input: bytes, signature: bytes) -> None:
        key.verify(signature, signing_input, scheme, digest)

    return check


def _pss(digest: hashes.HashAlgorithm) -> _Check:
    scheme = padding.PSS(padding.MGF1(digest), digest.digest_size)

    def check(key: rsa.RSAPublicKey, signing_input: bytes, signature: bytes) -> None:
        key.verify(signature, signing_input, scheme, digest)

    return check


def _ed25519(key: ed25519.Ed25519PublicKey, signing_input: bytes, signature: bytes) -> None:
    key.verify(signature, signing_input)


_SHA256, _SHA384, _SHA512 = hashes.SHA256(), hashes.SHA384(), hashes.SHA512()
_CHECKS: dict[str, _Check] = {
    "ES256": _ecdsa(ec.SECP256R1(), 32, _SHA256),
    "ES384": _ecdsa(ec.SECP384R1(), 48, _SHA384),
    "ES512": _ecdsa(ec.SECP521R1(), 66, _SHA512),
    "RS256": _pkcs1(_SHA256),
    "RS384": _pkcs1(_SHA384),
    "RS512": _pkcs1(_SHA512),
    "PS256": _pss(_SHA256),
    "PS384": _pss(_SHA384),
    "PS512": _pss(_SHA512),
    "Ed25519": _ed25519,
    "EdDSA": _ed25519,  # the older name of the same (RFC 9864)
}

ALL = frozenset(_CHECKS)
RSA = frozenset(alg for alg in ALL if alg[:2] in ("RS", "PS"))
ED25519 = frozenset({"Ed25519", "EdDSA"})

_OF_CURVE = {"P-256": frozenset({"ES256"}), "P-384": frozenset({"ES384"}), "P-521": frozenset({"ES512"})}


def of_curve(crv: str) -> frozenset[str]:
    """The one algorithm that a NIST curve is used with."""
    return _OF_CURVE[crv]


def same_as(alg: str) -> frozenset[str]:
    """The names of the algorithm that `alg` names."""
    return ED25519 if alg in ED25519 else frozenset({alg})


def refuse_alg(alg: str, expected: Collection[str]) -> HeaderRefused:
    """The refusal of a header's `alg`, naming what was expected."""
    return HeaderRefused(f"The token's `alg` is {alg!r}; expected {' or '.join(sorted(expected))}.", reason="alg")


def verify(alg: str, key: PublicKey, signing_input: bytes, signature: bytes) -> None:
    """Return if `signature` is good, else raise BadSignature. `alg` must be in ALL and fit the key."""
    try:
        _CHECKS[alg](key, signing_input, signature)
    except InvalidSignature:
        raise BadSignature("The signature does not verify with the issuer's key.") from None


def raw_ecdsa(der: bytes, size: int = 32) -> bytes:
    """A DER signature as JOSE writes it: r and s, `size` bytes each."""
    r, s = decode_dss_signature(der)
    return r.to_bytes(size) + s.to_bytes(size)
