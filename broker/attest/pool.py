"""All trust rows together: which one could vouch for a token, and does it?

The unverified issuer and subject are looked at for one purpose, to choose the row, by exact comparison. An issuer that
no row names is refused without any look outside.
"""

import asyncio
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from pathlib import Path
from typing import Any, assert_never

from broker.attest import fetch as fetching
from broker.attest.attester import Attester, JwtAttester
from broker.attest.errors import AttestationFailed, KeysNeeded, presented
from broker.attest.fetch import Endpoint, Fetch
from broker.attest.jwks import Clock, FetchedKeys, FileKeys, InlineKeys, Keys, monotonic_ms
from broker.attest.key import key
from broker.attest.mechanism import By, Mechanism
from broker.attest.oidc import github, kubernetes, oidc
from broker.attest.spiffe import SCHEME, spiffe, trust_domain
from broker.attest.trust import GitHubTrust, KeyTrust, KubernetesTrust, OidcTrust, SpiffeTrust, TrustRow
from broker.errors import ConfigurationInvalid, Problem
from broker.jose import HEADER_MEMBERS, JoseError, KeyRefused, KeySet, Unverified, load_jwks, parse
from broker.jose.encoding import printable
from broker.model import Workload

_HEADER_MEMBERS = HEADER_MEMBERS | {"x5t", "x5t#S256"}  # each row then allows its own


class AttesterPool:
    """The attesters of one registry. Rows that a reload did not change keep their keys: pass the `previous` pool."""

    def __init__(
        self,
        rows: Sequence[TrustRow],
        *,
        previous: "AttesterPool | None" = None,
        fetch: Fetch = fetching.fetch,
        clock: Clock = monotonic_ms,
    ) -> None:
        kept = previous._by_id if previous else {}  # noqa: SLF001  (another of the same)
        self._by_id: dict[str, Attester] = {}
        self._by_selector: dict[tuple[By, str], list[Attester]] = {}
        problems: list[Problem] = []
        for row in rows:
            old = kept.get(row.id)
            try:
                attester = old if old is not None and old.row == row else _attester(row, fetch, clock)
            except KeyRefused as error:
                problems.append(Problem(f"trust {row.id}: {error.sentence}"))
                continue
            rivals = self._by_selector.setdefault(attester.selector, [])
            kinds = {type(rival.row) for rival in rivals}  # only a client's keys may be spread over several rows
            if row.id in self._by_id or (rivals and kinds | {type(row)} != {KeyTrust}):
                speaks = " ".join(attester.selector)
                problems.append(Problem(f"trust {row.id}: another row has this id or speaks for the {speaks} already"))
            rivals.append(attester)
            self._by_id[row.id] = attester
        if problems:
            raise ConfigurationInvalid("The trust rows cannot be used together.", problems=problems)

    def attest(self, token: str, *, audiences: AbstractSet[str], sole: bool = True, now_ms: int) -> Workload:
        """The workload that `token` proves, with the keys at hand.

        `audiences` are the acceptable values of `aud`; with `sole`, it must have exactly one. `now_ms` is ledger time.
        The workload's `proof`, if any, is to be spent in the ledger before anything is given for it. Raises
        AttestationFailed, or KeysNeeded when `refresh` could help.
        """
        try:
            parsed = parse(token, header_members=_HEADER_MEMBERS)
        except JoseError as error:
            raise AttestationFailed(error.reason, error.sentence) from None
        unverified = parsed.unverified_claims
        try:
            candidates = self._candidates(unverified)
            return _first(candidates, parsed, frozenset(audiences), sole=sole, now_s=now_ms // 1000)
        except AttestationFailed as failed:
            failed.presented = presented(unverified)
            raise

    async def attest_fresh(
        self, token: str, *, audiences: AbstractSet[str], sole: bool = True, now_ms: int
    ) -> Workload:
        """As `attest`, asking the issuer for its keys once where that is needed."""
        try:
            return self.attest(token, audiences=audiences, sole=sole, now_ms=now_ms)
        except KeysNeeded as needed:
            await self.refresh(needed.source)
        try:
            return self.attest(token, audiences=audiences, sole=sole, now_ms=now_ms)
        except KeysNeeded as needed:  # another row of the same client; once is enough
            raise AttestationFailed(
                "unknown_key", f"The token's key is not among those of trust {needed.source}."
            ) from None

    async def refresh(self, source: str) -> None:
        """Ask the issuer of row `source` for its keys, if that is allowed now. Failures are logged, not raised."""
        attester = self._by_id.get(source)
        if attester is not None:
            await attester.keys.refresh()

    async def refresh_due(self) -> None:
        """Renew every key set that is old enough. Call it every few seconds; most calls do nothing."""
        due = [attester.keys.refresh() for attester in self._by_id.values() if attester.keys.due()]
        await asyncio.gather(*due)

    def _candidates(self, unverified: Mapping[str, Any]) -> Sequence[Attester]:
        iss, sub = unverified.get("iss"), unverified.get("sub")
        if type(sub) is str and sub.startswith(SCHEME):
            selector = (By.TRUST_DOMAIN, trust_domain(sub))
        elif printable(iss, limit=255):
            selector = (By.ISSUER, str(iss))
        else:
            raise AttestationFailed("unknown_issuer", "The claim `iss` is missing or not a short printable string.")
        found = self._by_selector.get(selector)
        if not found:
            raise AttestationFailed("unknown_issuer", f"No trust row vouches for the {selector[0]} {selector[1]!r}.")
        return found


def _first(
    candidates: Sequence[Attester], parsed: Unverified, audiences: frozenset[str], *, sole: bool, now_s: int
) -> Workload:
    """The verdict of the row that has the token's key; one client may have several rows."""
    for attester in candidates[:-1]:
        try:
            return attester.verify(parsed, audiences=audiences, sole=sole, now_s=now_s)
        except AttestationFailed as failed:
            if failed.reason not in ("unknown_key", "kid_missing"):
                raise
    return candidates[-1].verify(parsed, audiences=audiences, sole=sole, now_s=now_s)


def _attester(row: TrustRow, fetch: Fetch, clock: Clock) -> Attester:
    mechanism = _mechanism(row)
    return JwtAttester(row=row, mechanism=mechanism, keys=_keys(row, mechanism, fetch, clock))


def _mechanism(row: TrustRow) -> Mechanism:
    match row:
        case SpiffeTrust():
            return spiffe(row)
        case KubernetesTrust():
            return kubernetes(row)
        case GitHubTrust():
            return github(row)
        case OidcTrust():
            return oidc(row)
        case KeyTrust():
            return key(row)
        case _:
            assert_never(row)


def _keys(row: TrustRow, mechanism: Mechanism, fetch: Fetch, clock: Clock) -> Keys:
    source = row.jwks
    load = partial(_load, row=row, mechanism=mechanism)
    if source.keys is not None:
        return InlineKeys(load({"keys": source.keys}))
    if source.file is not None:
        return FileKeys(source=row.id, path=Path(source.file), load=load, max_stale_s=source.max_stale_s, clock=clock)
    return FetchedKeys(
        source=row.id,
        endpoint=Endpoint(str(source.url), source.ca_file, source.allow_private),
        load=load,
        refresh_s=source.refresh_s,
        max_stale_s=source.max_stale_s,
        fetch=fetch,
        clock=clock,
    )


def _load(document: bytes | Mapping[str, Any], *, row: TrustRow, mechanism: Mechanism) -> KeySet:
    keys = load_jwks(document, algs=row.algs, use=mechanism.use)
    if not keys.keys and not mechanism.may_have_no_keys:
        raise KeyRefused("There is no key for signatures that this row may use.", reason="no_key")
    return keys
