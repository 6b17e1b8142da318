"""What a mechanism of workload identity is: the rules beyond what every signed token must keep.

A mechanism is a value made from a trust row. The checks themselves run in one place (`attester`), the same for all.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from broker.attest.errors import AttestationFailed
from broker.jose import Claims, Profile
from broker.jose.keys import Use

STANDARD_CLAIMS = frozenset({"iss", "sub", "aud", "exp", "nbf", "iat", "jti"})

MAX_AHEAD_S = 30
"""How far a signer's clock may be ahead of ours. There is no leeway after `exp`."""

MAX_JTI_LENGTH = 200


class By(StrEnum):
    """What, in an unverified token, says which row could vouch for it."""

    TRUST_DOMAIN = "trust domain"  # of `sub`, where that is a SPIFFE ID
    ISSUER = "issuer"  # `iss`; a client that signs for itself is its own


class Facts(NamedTuple):
    """What a mechanism reads from verified claims: strings to match identities on, and claims it does not know."""

    claims: Mapping[str, str]
    unknown: tuple[str, ...] = ()
    instance: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mechanism:
    """One row's rules. `hints` tell, by claim, what to do when that claim is refused.

    `profile` has no audiences: those are the caller's, per request. `issuer` names the row's authority in workloads and
    in replay marks, so that one issuer's marks never meet another's.
    """

    selector: tuple[By, str]
    issuer: str
    profile: Profile
    facts: Callable[[Claims], Facts]
    use: Use = "sig"
    may_have_no_keys: bool = False  # an empty set means "all revoked", not "broken"
    hints: Mapping[str, str] = field(default_factory=dict)


def refuse(claim: str, sentence: str) -> AttestationFailed:
    """A refusal by a mechanism's own rule about `claim`."""
    return AttestationFailed(f"claim_{claim.replace('.', '_')}", sentence)


def flat(claims: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    """The named claims as strings that identities can be compared with; booleans and integers as JSON writes them.

    What is absent or empty is left out, so that no identity can match on nothing.
    """
    found: dict[str, str] = {}
    for name in names:
        value = claims.get(name)
        if type(value) is bool:
            found[name] = "true" if value else "false"
        elif type(value) is int:
            found[name] = str(value)
        elif type(value) is str and value:
            found[name] = value
    return found
