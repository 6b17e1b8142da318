"""Makes tokens, good ones and every kind of bad one, without the code under test."""

import base64
import hashlib
import hmac
import json
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from broker.jose import KeySet, Profile, load_jwks, public_jwk

NOW = 1_790_000_000
ISSUER = "https://issuer.example"
AUDIENCE = "https://broker.example"

EC = ec.derive_private_key(0x5EED5EED5EED5EED5EED5EED, ec.SECP256R1())
OTHER_EC = ec.derive_private_key(0x0DDBA11, ec.SECP256R1())
EC384 = ec.derive_private_key(0x5EED384, ec.SECP384R1())
EC521 = ec.derive_private_key(0x5EED521, ec.SECP521R1())
RSA = rsa.generate_private_key(65537, 2048)
ED = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))

_HASHES = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}

KEY_OF = {
    "ES256": EC,
    "ES384": EC384,
    "ES512": EC521,
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), RSA),
    "EdDSA": ED,
    "Ed25519": ED,
}


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def jwk(private: Any = EC, **changes: Any) -> dict[str, Any]:
    """The public JWK with kid "k1"; a change to None removes the member."""
    made = {**public_jwk(private.public_key(), kid="k1"), **changes}
    return {name: value for name, value in made.items() if value is not None}


def keyset(private: Any = EC, **changes: Any) -> KeySet:
    return load_jwks({"keys": [jwk(private, **changes)]})


def claims(**changes: Any) -> dict[str, Any]:
    """Good claims; a change to None removes the claim."""
    made = {
        "iss": ISSUER,
        "sub": "invoice-bot",
        "aud": AUDIENCE,
        "iat": NOW - 10,
        "exp": NOW + 290,
        "jti": "jti-1",
        **changes,
    }
    return {name: value for name, value in made.items() if value is not None}


def profile(**changes: Any) -> Profile:
    made = {
        "kind": "test token",
        "typ": frozenset({"JWT"}),
        "issuer": ISSUER,
        "audiences": frozenset({AUDIENCE}),
        "required": ("iss", "sub", "jti"),
        "max_lifetime_s": 300,
        **changes,
    }
    return Profile(**made)


def sign(alg: str, key: Any, data: bytes) -> bytes:
    digest = _HASHES.get(alg[2:])
    if alg.startswith("ES"):
        size = (key.key_size + 7) // 8
        r, s = decode_dss_signature(key.sign(data, ec.ECDSA(digest)))
        return r.to_bytes(size, "big") + s.to_bytes(size, "big")
    if alg.startswith("RS"):
        return key.sign(data, padding.PKCS1v15(), digest)
    if alg.startswith("PS"):
        return key.sign(data, padding.PSS(padding.MGF1(digest), digest.digest_size), digest)
    if alg == "HS256":
        return hmac.new(key, data, hashlib.sha256).digest()
    return key.sign(data)


def sign_parts(header: bytes, payload: bytes, *, alg: str = "ES256", key: Any = None) -> str:
    """A correctly signed token around any bytes at all."""
    data = f"{b64(header)}.{b64(payload)}"
    return f"{data}.{b64(sign(alg, key if key is not None else KEY_OF[alg], data.encode()))}"


def token(
    changes: dict[str, Any] | None = None, *, header: dict[str, Any] | None = None, alg: str = "ES256", key: Any = None
) -> str:
    """A correctly signed token with changed claims and header; a change to None removes the member."""
    made = {"alg": alg, "typ": "JWT", "kid": "k1", **(header or {})}
    made = {name: value for name, value in made.items() if value is not None}
    return sign_parts(dump(made), dump(claims(**(changes or {}))), alg=alg, key=key)


def dump(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


HEADER = dump({"alg": "ES256", "typ": "JWT", "kid": "k1"})
PAYLOAD = dump(claims())


def spliced(insert: bytes, into: bytes = PAYLOAD) -> bytes:
    """A JSON object with raw text put in front of its first member."""
    return b"{" + insert + b"," + into[1:]
