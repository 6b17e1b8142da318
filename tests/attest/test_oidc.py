"""Claims of federated issuers: section C of the attack catalogue."""

import pytest
import structlog
from pydantic import ValidationError

from broker.attest import AttestationFailed, AttesterPool
from tests.jose.forge import AUDIENCE, ED, NOW, OTHER_EC, RSA, token

from .rows import (
    GITHUB,
    NOW_MS,
    OIDC,
    attest,
    cluster_claims,
    cluster_row,
    cluster_token,
    github_row,
    github_token,
    oidc_row,
    oidc_token,
    source,
)


def reason(row, bad: str) -> str:
    with pytest.raises(AttestationFailed) as refused:
        attest(row, bad)
    assert refused.value.sentence.isprintable()
    return refused.value.reason


# --- Any issuer -------------------------------------------------------------------------------------------------------


def test_an_issuers_token_shows_the_claims_that_its_row_knows() -> None:
    workload = attest(oidc_row(required=("team",)), oidc_token(level=3, root=False, email="x@y.example"))
    assert workload.claims == {"team": "pay", "level": "3", "root": "false"}
    assert (workload.issuer, workload.subject, workload.kind) == (OIDC, "user-7", "oidc")
    assert workload.proof is not None
    assert workload.proof.issuer == OIDC


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        pytest.param(oidc_token(team=None), "claim_missing", id="required-missing"),
        pytest.param(oidc_token(team=""), "claim_team", id="C38-required-empty"),
        pytest.param(oidc_token(team=["pay"]), "claim_team", id="required-list"),
        pytest.param(oidc_token(team={"a": 1}), "claim_team", id="required-object"),
        pytest.param(oidc_token(sub=None), "claim_missing", id="no-sub"),
        pytest.param(oidc_token(jti=None), "claim_missing", id="B28-no-jti"),
        pytest.param(oidc_token(iss=OIDC + "/"), "unknown_issuer", id="A22-slash"),
        pytest.param(oidc_token(iss="https://IDP.example"), "unknown_issuer", id="A22-case"),
        pytest.param(oidc_token(iss="https://idp.example@evil.example"), "unknown_issuer", id="A22-userinfo"),
        pytest.param(oidc_token(iss="https://idp.example:443"), "unknown_issuer", id="A22-port"),
        pytest.param(token({"iss": OIDC, "team": "pay"}, key=OTHER_EC), "signature", id="A22-other-issuers-key"),
        pytest.param(token({"iss": OIDC, "team": "pay"}, header={"typ": "at+jwt"}), "typ", id="A20-access-token"),
        pytest.param(token({"iss": OIDC, "team": "pay"}, header={"typ": "logout+jwt"}), "typ", id="A20-logout-token"),
    ],
)
def test_refused_issuer_tokens(bad: str, expected: str) -> None:
    assert reason(oidc_row(required=("team",)), bad) == expected


def test_a_key_of_one_issuer_does_not_sign_for_another() -> None:
    rows = [oidc_row(), oidc_row(id="other", issuer="https://other.example", jwks=source(OTHER_EC, kid="k2"))]
    assert reason(rows, token({"iss": OIDC}, key=OTHER_EC, header={"kid": "k2"})) == "unknown_key"


def test_every_unknown_claim_is_reported_once() -> None:
    pool = AttesterPool([oidc_row()])
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            pool.attest(oidc_token(**{"new": 1, "odd\nname": 2}), audiences={AUDIENCE}, now_ms=NOW_MS)
    assert sorted(entry["claim"] for entry in logs) == ["'new'", "'odd\\nname'"]
    assert {entry["trust"] for entry in logs} == {"idp"}


def test_unknown_claims_cannot_fill_the_log() -> None:
    pool = AttesterPool([oidc_row()])
    with structlog.testing.capture_logs() as logs:
        for start in range(0, 300, 50):
            changes = {f"claim{n}": 1 for n in range(start, start + 50)}
            pool.attest(oidc_token(**changes), audiences={AUDIENCE}, now_ms=NOW_MS)
    assert len(logs) == 100


def test_eddsa_by_either_name_where_the_row_allows_it() -> None:
    row = oidc_row(jwks=source(ED, alg="EdDSA"), algs=("EdDSA", "Ed25519"))
    for alg in ("EdDSA", "Ed25519"):
        assert attest(row, token({"iss": OIDC}, alg=alg))
    assert reason(oidc_row(jwks=source(ED), algs=("Ed25519",)), token({"iss": OIDC}, alg="EdDSA")) == "alg"


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"audiences": ["x"]}, id="C41-audiences"),
        pytest.param({"issuers": [OIDC]}, id="C41-issuers"),
        pytest.param({"issuer": ""}, id="C41-empty-issuer"),
        pytest.param({"issuer": "https://idp.example\n"}, id="A22-newline"),
        pytest.param({"require": ["team"]}, id="C41-require"),
        pytest.param({"kind": "oicd"}, id="C41-kind"),
    ],
)
def test_c41_a_misspelt_row_does_not_load(changes) -> None:
    with pytest.raises(ValidationError):
        oidc_row(**changes)


# --- GitHub -----------------------------------------------------------------------------------------------------------


def test_a_github_run() -> None:
    workload = attest(github_row(), github_token())
    assert workload.claims["repository_id"] == "74"
    assert workload.claims["job_workflow_ref"].endswith("v3")
    assert not {"head_ref", "base_ref"} & workload.claims.keys(), "empty is not a value to match on"
    assert workload.instance == "30433642/2"
    assert workload.proof is not None
    assert workload.proof.issuer == GITHUB


@pytest.mark.parametrize(
    "subject",
    [
        pytest.param("repo:octo-org/pay:ref:refs/heads/main", id="names"),
        pytest.param("repo:octo-org@65/pay@74:ref:refs/heads/main", id="immutable"),
        pytest.param("repository_id:74:environment:prod", id="template"),
    ],
)
def test_c37_sub_is_text_in_either_grammar(subject: str) -> None:
    assert attest(github_row(), github_token(sub=subject)).subject == subject


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({"repository_id": None}, "claim_missing", id="C37-no-repository-id"),
        pytest.param({"repository_owner_id": None}, "claim_missing", id="C37-no-owner-id"),
        pytest.param({"repository_id": 74}, "claim_repository_id", id="C37-numeric-id"),
        pytest.param({"repository_id": "74-1"}, "claim_repository_id", id="C37-hyphen-id"),
        pytest.param({"repository_id": "*"}, "claim_repository_id", id="C37-star"),
        pytest.param({"repository_id": "\u0667\u0664"}, "claim_repository_id", id="C37-other-digits"),
        pytest.param({"repository_owner_id": ""}, "claim_repository_owner_id", id="C37-empty-id"),
        pytest.param({"event_name": "pull_request"}, "claim_event_name", id="C38-pull-request"),
        pytest.param({"event_name": "pull_request_target"}, "claim_event_name", id="C38-pull-request-target"),
        pytest.param({"event_name": "pull_request_review"}, "claim_event_name", id="C38-pull-request-review"),
        pytest.param({"event_name": "Pull_Request"}, "claim_event_name", id="C38-case"),
        pytest.param({"event_name": None}, "claim_missing", id="C38-no-event"),
        pytest.param({"event_name": ""}, "claim_event_name", id="C38-empty-event"),
        pytest.param({"repository": "octo-org/pay:x"}, "claim_repository", id="C39-colon"),
        pytest.param({"repository": "octo-org/pay@x"}, "claim_repository", id="C39-at"),
        pytest.param({"repository": "octo-org/pay\n"}, "claim_repository", id="C39-newline"),
        pytest.param({"repository": "octo-org/pay/x"}, "claim_repository", id="C42-three-parts"),
        pytest.param({"repository": "octo-org/*"}, "claim_repository", id="C42-star"),
        pytest.param({"aud": "https://github.com/octo-org"}, "audience", id="C39-default-audience"),
        pytest.param({"aud": "sts.amazonaws.com"}, "audience", id="C39-audience-of-aws"),
        pytest.param({"iss": "https://ghes.example/_services/token"}, "unknown_issuer", id="C39-ghes"),
        pytest.param({"iss": f"{GITHUB}/octo-org"}, "unknown_issuer", id="C39-enterprise-issuer"),
        pytest.param({"jti": None}, "claim_missing", id="B28-no-jti"),
        pytest.param({"iat": None}, "claim_missing", id="A18-no-iat"),
    ],
)
def test_refused_runs(changes, expected: str) -> None:
    assert reason(github_row(), github_token(**changes)) == expected


def test_c39_another_server_cannot_speak_for_github() -> None:
    """A GHES row vouches for its own issuer only, whatever claims it makes."""
    ghes = github_row(id="ghes", issuer="https://ghes.example/_services/token", jwks=source(RSA, kid="g1", alg="RS256"))
    rows = [github_row(jwks=source(OTHER_EC, alg="ES256"), algs=["ES256"]), ghes]
    assert reason(rows, github_token()) == "alg"
    assert attest([github_row(), ghes], github_token()).trust == "github"


def test_pull_requests_where_the_row_allows_them() -> None:
    assert attest(github_row(allow_pull_requests=True), github_token(event_name="pull_request"))


def test_c38_environment_absent_or_empty_is_no_environment() -> None:
    assert "environment" not in attest(github_row(), github_token(environment=None)).claims
    assert "environment" not in attest(github_row(), github_token(environment="")).claims


# --- Kubernetes -------------------------------------------------------------------------------------------------------


def bound(**changes):
    made = {**cluster_claims()["kubernetes.io"], **changes}
    return {name: value for name, value in made.items() if value is not None}


def test_a_projected_token() -> None:
    workload = attest(cluster_row(), cluster_token())
    assert workload.claims == {
        "namespace": "pay",
        "serviceaccount": "bot",
        "serviceaccount_uid": "14ee3fa4-a7e2-420f-9f9a-dbc4507c3798",
        "pod": "bot-7d9",
        "pod_uid": "5e0bd49b-f040-43b0-99b7-22765a53f7f3",
        "node": "node-1",
        "node_uid": "f1c3",
    }
    assert workload.instance == workload.claims["pod_uid"]
    assert workload.proof is None, "projected tokens are used again until the kubelet renews them"


def test_a_token_not_bound_to_a_pod_or_to_a_node_by_name_only() -> None:
    workload = attest(cluster_row(), cluster_token(**{"kubernetes.io": bound(pod=None, node={"name": "n1"})}))
    assert workload.claims["node"] == "n1"
    assert workload.instance is None
    assert "node_uid" not in workload.claims


LEGACY = {
    "kubernetes.io/serviceaccount/namespace": "pay",
    "kubernetes.io/serviceaccount/service-account.name": "bot",
    "aud": None,
    "exp": None,
    "iat": None,
    "kubernetes.io": None,
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({"aud": None}, "claim_missing", id="C40-no-aud"),
        pytest.param({"aud": []}, "audience", id="C40-empty-aud"),
        pytest.param({"aud": ["https://kubernetes.default.svc"]}, "audience", id="C40-api-server-aud"),
        pytest.param(LEGACY, "claim_missing", id="C40-legacy"),
        pytest.param({**LEGACY, "iss": "kubernetes/serviceaccount"}, "unknown_issuer", id="C40-legacy-issuer"),
        pytest.param({"exp": None}, "claim_missing", id="C40-no-exp"),
        pytest.param({"exp": NOW + 31_536_000}, "lifetime", id="C40-a-year"),
        pytest.param({"iss": "https://other.cluster"}, "unknown_issuer", id="C40-other-cluster"),
        pytest.param({"sub": "system:serviceaccount:pay:admin"}, "claim_sub", id="C40-sub-of-another"),
        pytest.param({"sub": "system:serviceaccount:kube-system:bot"}, "claim_sub", id="C40-namespace-of-another"),
        pytest.param({"kubernetes.io": None}, "claim_missing", id="C40-unbound"),
        pytest.param({"kubernetes.io": []}, "claim_kubernetes_io", id="C40-list"),
        pytest.param({"kubernetes.io": bound(serviceaccount=None)}, "claim_kubernetes_io", id="C40-no-account"),
        pytest.param({"kubernetes.io": bound(serviceaccount={"name": "bot"})}, "claim_kubernetes_io", id="C40-no-uid"),
        pytest.param({"kubernetes.io": bound(pod="bot")}, "claim_kubernetes_io", id="C40-pod-text"),
        pytest.param({"kubernetes.io": bound(pod={"name": "bot"})}, "claim_kubernetes_io", id="C40-pod-without-uid"),
        pytest.param({"kubernetes.io": bound(namespace="pay:x")}, "claim_kubernetes_io", id="C42-colon"),
        pytest.param({"kubernetes.io": bound(namespace="Pay")}, "claim_kubernetes_io", id="C43-case"),
        pytest.param({"kubernetes.io": bound(namespace="pay\n")}, "claim_kubernetes_io", id="C43-newline"),
    ],
)
def test_refused_service_accounts(changes, expected: str) -> None:
    assert reason(cluster_row(), cluster_token(**changes)) == expected


def test_c40_a_recreated_account_has_another_uid_to_match_on() -> None:
    again = bound(serviceaccount={"name": "bot", "uid": "99999999-a7e2-420f-9f9a-dbc4507c3798"})
    one, other = (attest(cluster_row(), made) for made in (cluster_token(), cluster_token(**{"kubernetes.io": again})))
    assert one.subject == other.subject
    assert one.claims["serviceaccount_uid"] != other.claims["serviceaccount_uid"]


def test_the_refusal_says_what_to_do() -> None:
    with pytest.raises(AttestationFailed, match="projected service-account token"):
        attest(cluster_row(), cluster_token(aud=None))
    with pytest.raises(AttestationFailed, match="Ask GitHub"):
        attest(github_row(), github_token(aud="https://github.com/octo-org"))


def test_new_members_of_a_bound_token_are_reported() -> None:
    with structlog.testing.capture_logs() as logs:
        attest(cluster_row(), cluster_token(**{"kubernetes.io": bound(zone="a")}))
    assert [entry["claim"] for entry in logs] == ["'kubernetes.io/zone'"]
