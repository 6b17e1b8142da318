"""The strict JOSE layer: every JWT that enters or leaves passes here. Pure: no I/O, and `now_s` is an argument.

    parse(token)                           -> Unverified     bounded, canonical, unambiguous, nothing trusted
    load_jwk(jwk) / load_jwks(document)    -> VerifyingKey / KeySet
    verify(token, keys.find, profile, now) -> Claims         or a JoseError with a `reason` and a safe sentence
    Signer(private_key=...).sign(typ, claims) -> str         ES256

It is stricter than the libraries on purpose: they take the last of two duplicate members, several spellings of one
token, keys meant for encryption. It shares no code with PyJWT, which serves as the second opinion in the tests.
"""

from broker.jose.encoding import load_json
from broker.jose.errors import (
    BadSignature,
    ClaimRefused,
    HeaderRefused,
    JoseError,
    KeyNotUsable,
    KeyRefused,
    Malformed,
    UnknownKey,
)
from broker.jose.keys import KeySet, VerifyingKey, load_jwk, load_jwks, public_jwk, thumbprint
from broker.jose.parse import HEADER_MEMBERS, MAX_TOKEN_BYTES, Header, Unverified, parse
from broker.jose.sign import Signer
from broker.jose.verify import Claims, KeyLookup, Profile, verify, verify_parsed

__all__ = [
    "HEADER_MEMBERS",
    "MAX_TOKEN_BYTES",
    "BadSignature",
    "ClaimRefused",
    "Claims",
    "Header",
    "HeaderRefused",
    "JoseError",
    "KeyLookup",
    "KeyNotUsable",
    "KeyRefused",
    "KeySet",
    "Malformed",
    "Profile",
    "Signer",
    "UnknownKey",
    "Unverified",
    "VerifyingKey",
    "load_json",
    "load_jwk",
    "load_jwks",
    "parse",
    "public_jwk",
    "thumbprint",
    "verify",
    "verify_parsed",
]
