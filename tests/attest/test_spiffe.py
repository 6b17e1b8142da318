"""SPIFFE JWT-SVIDs: cases 34 and 35 of the attack catalogue, and the rules of the standard."""

import pytest
from pydantic import ValidationError

from broker.attest import AttestationFailed
from broker.attest.trust import KeySource
from tests.jose.forge import AUDIENCE, EC, ED, NOW, OTHER_EC, RSA, jwk, token

from .rows import SVID, attest, source, spiffe_row, svid

PARTNER = spiffe_row("partner.example", OTHER_EC)


def test_an_svid_is_a_workload_and_may_come_again() -> None:
    workload = attest(spiffe_row(), svid())
    assert (workload.trust, workload.kind, workload.issuer, workload.subject) == (
        "example.org",
        "spiffe",
        "spiffe://example.org",
        SVID,
    )
    assert workload.claims == {"trust_domain": "example.org"}
    assert workload.proof is None


@pytest.mark.parametrize(
    "subject",
    [
        pytest.param("spiffe://Example.org/a", id="B34-upper-case-domain"),
        pytest.param("spiffe://example.org", id="B34-no-path"),
        pytest.param("spiffe://example.org/", id="B34-root"),
        pytest.param("spiffe://example.org/a/", id="B34-trailing-slash"),
        pytest.param("spiffe://example.org//a", id="B34-empty-segment"),
        pytest.param("spiffe://example.org/a//b", id="B34-empty-segment-inside"),
        pytest.param("spiffe://example.org/a/../b", id="B34-dot-dot"),
        pytest.param("spiffe://example.org/..", id="B34-dot-dot-last"),
        pytest.param("spiffe://example.org/./a", id="B34-dot"),
        pytest.param("spiffe://example.org/a%2fb", id="B34-percent"),
        pytest.param("spiffe://example.org/%61", id="B34-percent-letter"),
        pytest.param("spiffe://example.org/a?x=1", id="B34-query"),
        pytest.param("spiffe://example.org/a#x", id="B34-fragment"),
        pytest.param("spiffe://example.org:443/a", id="B34-port"),
        pytest.param("spiffe://user@example.org/a", id="B34-userinfo"),
        pytest.param("spiffe://example.org/a b", id="B34-space"),
        pytest.param("spiffe://example.org/\u00e4", id="B34-umlaut"),
        pytest.param("spiffe://example.org/a\n", id="B34-newline"),
        pytest.param("spiffe://example.org/a\\b", id="B34-backslash"),
        pytest.param("spiffe:///a", id="B34-no-domain"),
        pytest.param("spiffe://" + "d" * 256 + "/a", id="B34-long-domain"),
        pytest.param("spiffe://example.org/" + "a" * (2049 - 21), id="B34-2049-bytes"),
    ],
)
def test_b34_the_grammar(subject: str) -> None:
    with pytest.raises(AttestationFailed) as refused:
        attest(spiffe_row(), svid(subject))
    assert refused.value.reason == "claim_sub"


@pytest.mark.parametrize(
    "subject",
    [
        "spiffe://example.org/a",
        "spiffe://example.org/A/b.c/d_e-f/...",
        "spiffe://example.org/.hidden/..a",
        "spiffe://example.org/" + "a" * (2048 - 21),
    ],
)
def test_good_ids(subject: str) -> None:
    assert attest(spiffe_row(), svid(subject)).subject == subject


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        pytest.param(svid("SPIFFE://example.org/a"), "unknown_issuer", id="B34-scheme-case"),
        pytest.param(svid("spiffe://example.org.evil/a"), "unknown_issuer", id="B34-domain-prefix"),
        pytest.param(svid("spiffe://evil.example.org/a"), "unknown_issuer", id="B34-domain-suffix"),
        pytest.param(svid("https://example.org/a"), "unknown_issuer", id="B34-https"),
        pytest.param(svid(private=OTHER_EC), "signature", id="B35-key-of-another-domain"),
        pytest.param(svid(private=OTHER_EC, header={"kid": "p1"}), "unknown_key", id="B35-kid-of-another-domain"),
        pytest.param(svid("spiffe://partner.example/a", header={"kid": "k1"}), "signature", id="B35-other-way-round"),
        pytest.param(svid(aud=None), "claim_missing", id="B34-no-aud"),
        pytest.param(svid(aud=[]), "audience", id="B34-empty-aud"),
        pytest.param(svid(aud=[AUDIENCE, "x"]), "audience", id="A21-aud-and-more"),
        pytest.param(svid(exp=None), "claim_missing", id="B34-no-exp"),
        pytest.param(svid(exp=NOW + 3_700), "lifetime", id="A18-lifetime"),
        pytest.param(svid(sub=None), "unknown_issuer", id="B34-no-sub"),
        pytest.param(svid(header={"typ": "at+jwt"}), "typ", id="A20-typ"),
        pytest.param(svid(header={"x5t": "abc"}), "header_member", id="B34-other-header"),
        pytest.param(svid(header={"jku": "https://evil.example"}), "header_member", id="A5-jku"),
    ],
)
def test_refused(bad: str, reason: str) -> None:
    with pytest.raises(AttestationFailed) as refused:
        attest([spiffe_row(), PARTNER], bad)
    assert refused.value.reason == reason


def test_no_eddsa() -> None:
    row = spiffe_row(jwks=source(ED, use="jwt-svid", alg=None))
    bad = token({"iss": None, "jti": None, "sub": SVID}, alg="EdDSA")
    with pytest.raises(AttestationFailed) as refused:
        attest(row, bad)
    assert refused.value.reason == "alg"
    with pytest.raises(ValidationError):
        spiffe_row(algs=["EdDSA"])


@pytest.mark.parametrize("typ", [None, "JWT", "JOSE"])
def test_typ(typ: str | None) -> None:
    assert attest(spiffe_row(), svid(header={"typ": typ}))


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        pytest.param([jwk(use="x509-svid")], "unknown_key", id="x509-key"),
        pytest.param([jwk(use="sig")], "unknown_key", id="use-sig"),
        pytest.param([jwk(use=None)], "unknown_key", id="no-use"),
        pytest.param([], "unknown_key", id="all-revoked"),
    ],
)
def test_only_keys_with_the_svid_use(keys, reason: str) -> None:
    with pytest.raises(AttestationFailed) as refused:
        attest(spiffe_row(jwks=KeySource(keys=keys)), svid())
    assert refused.value.reason == reason


def test_an_issuer_with_a_spiffe_subject_is_judged_by_the_trust_domain_alone() -> None:
    with_issuer = svid(iss="https://oidc.example.org")
    assert attest(spiffe_row(), with_issuer).issuer == "spiffe://example.org"


def test_single_use_where_the_row_says_so() -> None:
    row = spiffe_row(replay="single_use")
    with pytest.raises(AttestationFailed):
        attest(row, svid())
    proof = attest(row, svid(jti="j")).proof
    assert proof is not None
    assert (proof.issuer, proof.jti) == ("spiffe://example.org", "j")


def test_keys_without_alg_serve_the_algorithms_of_the_row() -> None:
    row = spiffe_row(jwks=source(RSA, use="jwt-svid", alg=None))
    good = token({"iss": None, "jti": None, "sub": SVID}, alg="PS256")
    assert attest(row, good)
    with pytest.raises(AttestationFailed):
        attest(spiffe_row(jwks=source(RSA, use="jwt-svid", alg=None), algs=["RS256"]), good)


def test_domains_with_the_same_key_stay_apart() -> None:
    """The same key in two bundles: the domain of `sub` still says which workload it is."""
    rows = [spiffe_row(), spiffe_row("partner.example", EC)]
    assert attest(rows, svid("spiffe://partner.example/a")).trust == "partner.example"
