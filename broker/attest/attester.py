"""One trust row at work: from a parsed, unverified token to a workload, or to the reason why not."""

from dataclasses import replace
from typing import Protocol

import structlog

from broker.attest.errors import AttestationFailed
from broker.attest.jwks import Keys
from broker.attest.mechanism import MAX_JTI_LENGTH, By, Facts, Mechanism
from broker.attest.trust import TrustRow
from broker.jose import ClaimRefused, Claims, JoseError, Profile, Unverified, verify_parsed
from broker.jose.encoding import printable
from broker.model import Proof, Workload

_MAX_PROFILES = 32
_MAX_ALERTS = 100

log = structlog.get_logger()


class Attester(Protocol):
    """Checks one row's tokens. New mechanisms that are not JWTs implement this too."""

    row: TrustRow
    keys: Keys

    @property
    def selector(self) -> tuple[By, str]:
        """Which tokens are this row's to judge. No other row judges them."""
        ...

    def verify(self, token: Unverified, *, audiences: frozenset[str], sole: bool, now_s: int) -> Workload:
        """The workload, when every check passed. Raises AttestationFailed or KeysNeeded."""
        ...


class JwtAttester:
    """The attester of every mechanism whose tokens are JWTs."""

    def __init__(self, *, row: TrustRow, mechanism: Mechanism, keys: Keys) -> None:
        self.row = row
        self.keys = keys
        self._mechanism = mechanism
        self._single_use = row.replay == "single_use"
        base = mechanism.profile
        self._base = replace(base, required=(*base.required, "jti")) if self._single_use else base
        self._profiles: dict[tuple[frozenset[str], bool], Profile] = {}
        self._alerted: set[str] = set()

    @property
    def selector(self) -> tuple[By, str]:
        """See Attester."""
        return self._mechanism.selector

    def verify(self, token: Unverified, *, audiences: frozenset[str], sole: bool, now_s: int) -> Workload:
        """See Attester."""
        profile = self._profile(audiences, sole=sole)
        try:
            claims = verify_parsed(token, self.keys.find, profile, now_s)
        except JoseError as error:
            hint = self._mechanism.hints.get(error.claim, "") if isinstance(error, ClaimRefused) else ""
            raise AttestationFailed(error.reason, f"{error.sentence} {hint}".rstrip()) from None
        facts = self._mechanism.facts(claims)
        self._account_for(facts)
        return Workload(
            trust=self.row.id,
            kind=self.row.kind,
            issuer=self._mechanism.issuer,
            subject=claims["sub"],
            claims=facts.claims,
            expires=claims.expires_s * 1000,
            proof=self._proof(claims, profile),
            instance=facts.instance,
        )

    def _profile(self, audiences: frozenset[str], *, sole: bool) -> Profile:
        profile = self._profiles.get((audiences, sole))
        if profile is None:
            if len(self._profiles) >= _MAX_PROFILES:
                self._profiles.clear()
            profile = replace(self._base, audiences=audiences, sole_audience=sole)
            self._profiles[audiences, sole] = profile
        return profile

    def _proof(self, claims: Claims, profile: Profile) -> Proof | None:
        if not self._single_use:
            return None
        jti = claims["jti"]
        if not printable(jti, limit=MAX_JTI_LENGTH):
            raise AttestationFailed("claim_form", f"The claim `jti` is longer than {MAX_JTI_LENGTH} characters.")
        # The mark must outlive the last moment at which the token would still be accepted.
        return Proof(self._mechanism.issuer, jti, (claims.expires_s + profile.leeway_s) * 1000)

    def _account_for(self, facts: Facts) -> None:
        """Tell the operator, once, of each claim that nobody has said what it means."""
        for name in facts.unknown:
            if name not in self._alerted and len(self._alerted) < _MAX_ALERTS:
                self._alerted.add(name)
                log.warning("trust_unknown_claim", trust=self.row.id, claim=ascii(name[:80]))
