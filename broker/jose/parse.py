"""Compact JWS, taken apart without trusting a byte of it. What comes out is still unverified, and named so."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from broker.jose.encoding import b64decode, load_object, printable
from broker.jose.errors import HeaderRefused, Malformed

MAX_TOKEN_BYTES = 8192
MAX_KID_LENGTH = 200

HEADER_MEMBERS = frozenset({"alg", "typ", "kid"})
NEVER = frozenset({"crit", "b64", "zip", "jku", "x5u", "x5c", "enc", "epk", "p2c", "p2s"})
"""Members that no kind of token may have here: they change what is signed, or name keys to be trusted or fetched."""


@dataclass(frozen=True, slots=True)
class Header:
    """A protected header in which every member was allowed. `typ` is normalised: lower case, no `application/`."""

    alg: str
    typ: str | None
    kid: str | None
    extra: tuple[tuple[str, Any], ...] = ()


class Unverified(NamedTuple):
    """A token that was parsed and nothing more. Only `verify` turns it into claims."""

    header: Header
    unverified_claims: dict[str, Any]
    signing_input: bytes
    signature: bytes


def parse(
    token: str, *, max_bytes: int = MAX_TOKEN_BYTES, header_members: frozenset[str] = HEADER_MEMBERS
) -> Unverified:
    """Take a compact JWS apart. Raises Malformed or HeaderRefused.

    `max_bytes` can only lower the bound of 8 KiB. `header_members` are all members that may occur; what a mechanism
    adds to the default it must also check.
    """
    if len(token) > min(max_bytes, MAX_TOKEN_BYTES):
        raise Malformed("The token is too long.", reason="too_long")
    if not token.isascii():
        raise Malformed("The token is not ASCII.", reason="base64url")
    parts = token.encode().split(b".")
    if len(parts) != 3:
        raise Malformed("The token is not a compact JWS: three parts, separated by dots.", reason="compact_form")
    header_part, payload_part, signature_part = parts
    return Unverified(
        header=_header(header_part, header_members),
        unverified_claims=load_object(b64decode(payload_part), what="token's payload"),
        signing_input=b".".join((header_part, payload_part)),
        signature=b64decode(signature_part),
    )


def normal_typ(typ: str) -> str:
    """A media type as `typ` values compare: case-insensitive, `application/` left out (RFC 7515 section 4.1.9)."""
    return typ.lower().removeprefix("application/")


@lru_cache(maxsize=256)  # an issuer uses one header for all its tokens
def _header(part: bytes, allowed: frozenset[str]) -> Header:
    members = load_object(b64decode(part), what="token's header")
    for name in members:
        if name not in allowed or name in NEVER:
            raise HeaderRefused(f"The header member {name[:40]!r} is not allowed here.", reason="header_member")
    alg, typ, kid = members.get("alg"), members.get("typ"), members.get("kid")
    if not printable(alg, limit=20):
        raise HeaderRefused("The header has no usable `alg`.", reason="alg")
    if "typ" in members and not printable(typ, limit=100):
        raise HeaderRefused("The header's `typ` is not a media type.", reason="typ")
    if "kid" in members and not printable(kid, limit=MAX_KID_LENGTH):
        raise HeaderRefused(
            f"The header's `kid` is not a string of 1 to {MAX_KID_LENGTH} printable characters.", reason="kid"
        )
    extra = tuple((name, value) for name, value in members.items() if name not in HEADER_MEMBERS)
    return Header(alg=str(alg), typ=None if typ is None else normal_typ(typ), kid=kid, extra=extra)
