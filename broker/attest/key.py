"""Clients that sign their own assertions with a registered key (`private_key_jwt`, RFC 7523)."""

from broker.attest.mechanism import MAX_AHEAD_S, STANDARD_CLAIMS, By, Facts, Mechanism, refuse
from broker.attest.trust import KeyTrust
from broker.jose import Claims, Profile


def key(row: KeyTrust) -> Mechanism:
    """One client: `iss` and `sub` are its subject, every assertion is used once."""

    def facts(claims: Claims) -> Facts:
        if claims["sub"] != row.subject:
            raise refuse("sub", "The claims `iss` and `sub` of a client assertion must both be the client's id.")
        return Facts({}, tuple(claims.keys() - STANDARD_CLAIMS))

    return Mechanism(
        selector=(By.ISSUER, row.subject),
        issuer=row.subject,
        profile=Profile(
            kind="client assertion",
            typ=frozenset({"jwt", "client-authentication+jwt"}),
            typ_required=False,
            algs=frozenset(row.algs),
            issuer=row.subject,
            audiences=None,
            required=("iss", "sub", "aud", "jti"),
            max_lifetime_s=row.max_lifetime_s,
            max_ahead_s=MAX_AHEAD_S,
        ),
        facts=facts,
        hints={
            "aud": "A client assertion names the broker's issuer URL and nothing else.",
            "jti": "Give each a new one.",
        },
    )
