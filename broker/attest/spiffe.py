"""SPIFFE JWT-SVIDs. The ID is compared as raw text: nothing decodes, folds or normalises it."""

import re

from broker.attest.mechanism import MAX_AHEAD_S, STANDARD_CLAIMS, By, Facts, Mechanism, refuse
from broker.attest.trust import SpiffeTrust
from broker.jose import Claims, Profile

SCHEME = "spiffe://"
MAX_ID_BYTES = 2048

_ID = re.compile(r"spiffe://([a-z0-9._-]{1,255})((?:/[A-Za-z0-9._-]+)+)")
_DOTS = re.compile(r"/\.\.?(?=/|$)")


def trust_domain(subject: str) -> str:
    """The trust domain of a workload's SPIFFE ID; AttestationFailed unless the text follows the grammar exactly.

    A bare trust domain is not a workload, so a path is required.
    """
    match = _ID.fullmatch(subject) if len(subject) <= MAX_ID_BYTES else None
    if match is None or _DOTS.search(match[2]):
        raise refuse(
            "sub",
            "The claim `sub` is not a SPIFFE ID: spiffe://, a lower-case trust domain, and a path of plain segments; "
            f"no port, query, %-encoding or empty segment, at most {MAX_ID_BYTES} bytes.",
        )
    return match[1]


def spiffe(row: SpiffeTrust) -> Mechanism:
    """One trust domain. Its bundle verifies the SVIDs of this domain and no other."""
    authority = f"{SCHEME}{row.trust_domain}"

    def facts(claims: Claims) -> Facts:
        if trust_domain(claims["sub"]) != row.trust_domain:
            raise refuse("sub", f"The claim `sub` is not in the trust domain {row.trust_domain}.")
        return Facts({"trust_domain": row.trust_domain}, tuple(claims.keys() - STANDARD_CLAIMS))

    return Mechanism(
        selector=(By.TRUST_DOMAIN, row.trust_domain),
        issuer=authority,
        profile=Profile(
            kind="JWT-SVID",
            typ=frozenset({"jwt", "jose"}),
            typ_required=False,
            algs=frozenset(row.algs),
            issuer=None,
            audiences=None,
            required=("sub", "aud"),
            max_lifetime_s=row.max_lifetime_s,
            max_ahead_s=MAX_AHEAD_S,
            max_id_length=MAX_ID_BYTES,
        ),
        facts=facts,
        use="jwt-svid",
        may_have_no_keys=True,
        hints={"aud": "Fetch the JWT-SVID for the expected audience."},
    )
