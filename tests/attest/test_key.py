"""Client assertions: section B of the attack catalogue as far as it is about the assertion itself."""

import pytest
from pydantic import ValidationError

from broker.attest import AttestationFailed
from broker.attest.trust import KeySource
from broker.model import Proof
from tests.jose.forge import AUDIENCE, NOW, OTHER_EC, claims, jwk, token

from .rows import assertion, attest, key_row, source


def test_an_assertion_is_one_workload_and_one_proof() -> None:
    workload = attest(key_row(), assertion())
    assert (workload.trust, workload.kind, workload.issuer, workload.subject) == (
        "bot-key",
        "key",
        "invoice-bot",
        "invoice-bot",
    )
    assert workload.claims == {}
    assert workload.expires == claims()["exp"] * 1000
    assert workload.proof == Proof("invoice-bot", "jti-1", workload.expires)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        pytest.param(assertion(sub="other-bot"), "claim_sub", id="B29-iss-is-not-sub"),
        pytest.param(token({"iss": "other-bot", "sub": "other-bot"}), "unknown_issuer", id="B29-unknown-client"),
        pytest.param(token({"iss": "Invoice-Bot", "sub": "Invoice-Bot"}), "unknown_issuer", id="C43-case"),
        pytest.param(token({"iss": "invoice-bot ", "sub": "invoice-bot "}), "unknown_issuer", id="C43-space"),
        pytest.param(assertion(sub=None), "claim_missing", id="B29-no-sub"),
        pytest.param(token({"iss": None}), "unknown_issuer", id="B29-no-iss"),
        pytest.param(token({"iss": 7, "sub": 7}), "unknown_issuer", id="B29-iss-number"),
        pytest.param(assertion(jti=None), "claim_missing", id="B28-jti-missing"),
        pytest.param(assertion(jti=7), "claim_form", id="B28-jti-number"),
        pytest.param(assertion(jti=["a"]), "claim_form", id="B28-jti-list"),
        pytest.param(assertion(jti=""), "claim_form", id="B28-jti-empty"),
        pytest.param(assertion(jti="j" * 201), "claim_form", id="B28-jti-long"),
        pytest.param(assertion(jti="j" * 1_000_000), "too_long", id="B28-jti-1mb"),
        pytest.param(assertion(jti="a\nb"), "claim_form", id="B28-jti-control"),
        pytest.param(assertion(exp=NOW + 301), "lifetime", id="A18-lifetime"),
        pytest.param(assertion(exp=None), "claim_missing", id="A18-no-exp"),
        pytest.param(assertion(aud=f"{AUDIENCE}/oauth2/token"), "audience", id="A21-token-endpoint"),
        pytest.param(assertion(aud=[AUDIENCE, f"{AUDIENCE}/oauth2/token"]), "audience", id="A21-issuer-and-more"),
        pytest.param(assertion(aud="https://evil.example"), "audience", id="A21-injected"),
        pytest.param(token({"iss": "invoice-bot"}, key=OTHER_EC), "signature", id="B26-other-key"),
        pytest.param(token({"iss": "invoice-bot"}, header={"kid": "k2"}), "unknown_key", id="A6-other-kid"),
        *(
            pytest.param(token({"iss": "invoice-bot"}, header={"typ": typ}), "typ", id=f"A20-{typ}")
            for typ in ("at+jwt", "dpop+jwt", "session+jwt", "secevent+jwt", "statuslist+jwt", "JOSE")
        ),
        pytest.param("", "compact_form", id="A13-empty"),
        pytest.param("a.b.c", "base64url", id="A13-junk"),
    ],
)
def test_refused(bad: str, reason: str) -> None:
    with pytest.raises(AttestationFailed) as refused:
        attest(key_row(), bad)
    assert refused.value.reason == reason
    assert refused.value.retry_after_s is None
    assert refused.value.sentence.isprintable()
    assert all(value.isprintable() and len(value) <= 300 for value in refused.value.presented.values())


@pytest.mark.parametrize("typ", [None, "JWT", "client-authentication+jwt", "application/client-authentication+jwt"])
def test_typ_may_be_absent_or_right(typ: str | None) -> None:
    assert attest(key_row(), token({"iss": "invoice-bot"}, header={"typ": typ}))


@pytest.mark.parametrize("aud", [AUDIENCE, [AUDIENCE]])
def test_the_issuer_is_the_sole_audience(aud) -> None:
    assert attest(key_row(), assertion(aud=aud))


def test_a_grant_may_name_another_audience_where_the_caller_says_so() -> None:
    endpoint = f"{AUDIENCE}/oauth2/token"
    assert attest(key_row(), assertion(aud=endpoint), audiences={AUDIENCE, endpoint})
    assert attest(key_row(), assertion(aud=["https://x.example", AUDIENCE]), sole=False)


def test_b26_nothing_is_marked_before_the_signature_holds() -> None:
    """A proof comes with a verified workload only, so a forger cannot spend the victim's jti."""
    with pytest.raises(AttestationFailed):
        attest(key_row(), token({"iss": "invoice-bot"}, key=OTHER_EC))


def test_b27_marks_of_different_clients_never_meet() -> None:
    rows = [key_row(), key_row(id="other-key", subject="other-bot", jwks=source(OTHER_EC))]
    one = attest(rows, assertion())
    other = attest(rows, token({"iss": "other-bot", "sub": "other-bot"}, key=OTHER_EC))
    assert one.proof is not None
    assert other.proof is not None
    assert one.proof.jti == other.proof.jti
    assert one.proof.issuer != other.proof.issuer


def test_a19_the_mark_outlives_the_last_moment_of_acceptance() -> None:
    exp = claims()["exp"]
    workload = attest(key_row(), assertion(), now_s=exp - 1)
    assert workload.proof is not None
    assert workload.proof.expires >= exp * 1000
    with pytest.raises(AttestationFailed):
        attest(key_row(), assertion(), now_s=workload.proof.expires // 1000)


def test_without_a_kid_when_there_is_one_key() -> None:
    bare = token({"iss": "invoice-bot"}, header={"kid": None})
    assert attest(key_row(), bare)
    with pytest.raises(AttestationFailed) as refused:
        attest(key_row(jwks=KeySource(keys=[jwk(), jwk(OTHER_EC, kid="k2")])), bare)
    assert refused.value.reason == "kid_missing"


def test_one_client_may_have_its_keys_in_several_rows() -> None:
    rows = [key_row(), key_row(id="next-key", jwks=source(OTHER_EC, kid="k2"))]
    assert attest(rows, assertion()).trust == "bot-key"
    assert attest(rows, token({"iss": "invoice-bot"}, header={"kid": "k2"}, key=OTHER_EC)).trust == "next-key"
    with pytest.raises(AttestationFailed) as refused:
        attest(rows, token({"iss": "invoice-bot"}, header={"kid": "k3"}))
    assert refused.value.reason == "unknown_key"


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"audience": "x"}, id="C41-audience"),
        pytest.param({"subjects": ["x"]}, id="C41-subjects"),
        pytest.param({"replay": "reusable"}, id="B28-reusable-key"),
        pytest.param({"algs": ["HS256"]}, id="A2-hs256"),
        pytest.param({"algs": ["none"]}, id="A1-none"),
        pytest.param({"algs": []}, id="A2-no-algs"),
        pytest.param({"max_lifetime_s": 3_600}, id="A18-lifetime"),
        pytest.param({"jwks": {"keys": [], "urls": "https://x.example"}}, id="C41-urls"),
        pytest.param({"jwks": {"url": "http://x.example"}}, id="I83-http"),
        pytest.param({"jwks": {"url": "file:///etc/passwd"}}, id="I83-file"),
        pytest.param({"jwks": {"url": "gopher://x.example"}}, id="I83-gopher"),
        pytest.param({"jwks": {"url": "https://x.example", "file": "x"}}, id="C41-two-sources"),
        pytest.param({"jwks": {}}, id="C41-no-source"),
    ],
)
def test_rows_that_do_not_load(changes) -> None:
    with pytest.raises(ValidationError):
        key_row(**changes)
