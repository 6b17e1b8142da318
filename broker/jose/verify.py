"""The one verifier for every JWT that comes in: ours, a workload's, an operator's.

A `Profile` says what kind of token is expected, in full: nothing is optional unless the profile says so, and profiles
of different kinds do not overlap in `typ`, issuer or audience, so that no token passes for another kind.
"""

from collections.abc import Callable, Iterator, KeysView, Mapping
from dataclasses import dataclass
from typing import Any

from broker.jose.algorithms import ALL, refuse_alg
from broker.jose.encoding import printable
from broker.jose.errors import ClaimRefused, HeaderRefused
from broker.jose.keys import VerifyingKey
from broker.jose.parse import HEADER_MEMBERS, MAX_TOKEN_BYTES, NEVER, Header, Unverified, normal_typ, parse

MAX_AUDIENCES = 16
_END_OF_TIME_S = 253_402_300_800  # the year 10000
_DATES = ("exp", "nbf", "iat")
_IDS = ("iss", "sub", "jti", "client_id", "azp")

KeyLookup = Callable[[str | None, str], VerifyingKey]
"""From a header's `kid` and `alg` to the issuer's key; raises UnknownKey. `KeySet.find` is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What one kind of token must look like. Times in seconds.

    `kind` is for sentences ("access token"). `typ` holds the allowed media types. `audiences` are the values of which
    `aud` must contain one, or with `sole_audience` be one; None only for a token that has no audience by design.
    `max_ahead_s` is how far in the future `iat` and `nbf` may lie, `leeway_s` how long a token counts after `exp`.
    `max_lifetime_s` bounds `exp` minus `iat`, or minus now where there is no `iat`.
    """

    kind: str
    typ: frozenset[str]
    typ_required: bool = True
    algs: frozenset[str] = frozenset({"ES256"})
    issuer: str | None
    audiences: frozenset[str] | None
    sole_audience: bool = True
    required: tuple[str, ...] = ()  # beside `exp`, always required, and `aud` where audiences are given
    max_lifetime_s: int
    leeway_s: int = 0
    max_ahead_s: int = 0
    max_id_length: int = 255
    header_members: frozenset[str] = HEADER_MEMBERS
    max_bytes: int = MAX_TOKEN_BYTES

    def __post_init__(self) -> None:
        if not self.algs or not self.algs <= ALL:
            raise ValueError("a profile names at least one algorithm, and only known ones")
        if not NEVER.isdisjoint(self.header_members):
            raise ValueError("a profile cannot allow header members that are never allowed")
        if self.audiences is not None and not self.audiences:
            raise ValueError("an empty set of audiences would accept nothing: give None or values")
        object.__setattr__(self, "typ", frozenset(map(normal_typ, self.typ)))


@dataclass(frozen=True, slots=True)
class Claims(Mapping[str, Any]):
    """The claims of a token that passed every check. Only `verify` makes one."""

    header: Header
    members: dict[str, Any]
    audiences: tuple[str, ...]
    expires_s: int

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401  (a JSON value)
        return self.members[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.members)

    def __len__(self) -> int:
        return len(self.members)

    def keys(self) -> KeysView[str]:
        """The names, as a dictionary has them: what `Mapping` makes of the above computes a difference in Python."""
        return self.members.keys()


def verify(token: str, key_lookup: KeyLookup, profile: Profile, now_s: int) -> Claims:
    """The claims of `token`, or a JoseError that says which check failed and what was expected."""
    parsed = parse(token, max_bytes=profile.max_bytes, header_members=profile.header_members)
    return verify_parsed(parsed, key_lookup, profile, now_s)


def verify_parsed(parsed: Unverified, key_lookup: KeyLookup, profile: Profile, now_s: int) -> Claims:
    """As `verify`, for a caller that had to look at the unverified issuer first to know whose keys to use.

    The profile's `max_bytes` is for `parse`, which has happened by now; its header rules are checked here again.
    """
    header = parsed.header
    _check_header(header, profile)
    key_lookup(header.kid, header.alg).verify(header.alg, parsed.signing_input, parsed.signature)
    claims = parsed.unverified_claims  # verified from here on
    _check_ids(claims, profile)
    audiences = _check_audience(claims, profile)
    expires = _check_times(claims, profile, now_s)
    return Claims(header=header, members=claims, audiences=audiences, expires_s=expires)


def _check_header(header: Header, profile: Profile) -> None:
    for name, _ in header.extra:
        if name not in profile.header_members:
            raise HeaderRefused(f"The header member {name[:40]!r} is not allowed here.", reason="header_member")
    if header.alg not in profile.algs:
        raise refuse_alg(header.alg, profile.algs)
    if header.typ is None:
        if profile.typ_required:
            raise HeaderRefused(f"The token has no `typ`; {_expected_typ(profile)}", reason="typ")
    elif header.typ not in profile.typ:
        raise HeaderRefused(f"The token's `typ` is {header.typ[:60]!r}; {_expected_typ(profile)}", reason="typ")


def _expected_typ(profile: Profile) -> str:
    return f"the {profile.kind} has {' or '.join(sorted(profile.typ))}."


def _check_ids(claims: Mapping[str, Any], profile: Profile) -> None:
    for name in _IDS:
        if name in claims and not printable(claims[name], limit=profile.max_id_length):
            raise ClaimRefused(
                f"The claim `{name}` is not a string of 1 to {profile.max_id_length} printable characters.",
                claim=name,
                reason="claim_form",
            )
    for name in profile.required:
        if name not in claims:
            raise ClaimRefused(f"The claim `{name}` is missing.", claim=name, reason="claim_missing")
    if profile.issuer is not None and claims.get("iss") != profile.issuer:
        raise ClaimRefused(f"The claim `iss` is not {profile.issuer!r}.", claim="iss", reason="issuer")


def _check_audience(claims: Mapping[str, Any], profile: Profile) -> tuple[str, ...]:
    stated = claims.get("aud")
    if stated is None and profile.audiences is None and "aud" not in claims:
        return ()
    values = tuple(stated) if type(stated) is list else (stated,)
    if not 0 < len(values) <= MAX_AUDIENCES or not all(
        printable(value, limit=profile.max_id_length) for value in values
    ):
        raise ClaimRefused(
            "The claim `aud` is missing, or not a string or a list of strings.", claim="aud", reason="audience"
        )
    if profile.audiences is None:
        return values
    if profile.sole_audience and len(values) != 1:
        raise ClaimRefused(
            f"The claim `aud` has {len(values)} values; {_expected_audience(profile)}", claim="aud", reason="audience"
        )
    if profile.audiences.isdisjoint(values):
        raise ClaimRefused(
            f"The claim `aud` is for someone else; {_expected_audience(profile)}", claim="aud", reason="audience"
        )
    return values


def _expected_audience(profile: Profile) -> str:
    count = "exactly one value, " if profile.sole_audience else ""
    return f"expected {count}{' or '.join(sorted(profile.audiences or ()))}."


def _check_times(claims: Mapping[str, Any], profile: Profile, now_s: int) -> int:
    for name in _DATES:
        if name in claims and not (type(claims[name]) is int and 0 <= claims[name] < _END_OF_TIME_S):
            raise ClaimRefused(f"The claim `{name}` is not a time in whole seconds.", claim=name, reason="time_form")
    exp, nbf, iat = claims.get("exp"), claims.get("nbf"), claims.get("iat")
    if exp is None:
        raise ClaimRefused("The claim `exp` is missing.", claim="exp", reason="claim_missing")
    if now_s >= exp + profile.leeway_s:
        raise ClaimRefused(f"The token expired {now_s - exp} s ago.", claim="exp", reason="expired")
    for name, start in (("nbf", nbf), ("iat", iat)):
        if start is None:
            continue
        if start >= exp:
            raise ClaimRefused(f"The claim `{name}` is not before `exp`.", claim=name, reason="time_order")
        if start > now_s + profile.max_ahead_s:
            raise ClaimRefused(
                f"The claim `{name}` lies {start - now_s} s in the future; is the signer's clock right?",
                claim=name,
                reason="not_yet",
            )
    lifetime = exp - (now_s if iat is None else iat)
    if lifetime > profile.max_lifetime_s:
        raise ClaimRefused(
            f"The {profile.kind} lives for {lifetime} s; at most {profile.max_lifetime_s} s are accepted.",
            claim="exp",
            reason="lifetime",
        )
    return int(exp)
