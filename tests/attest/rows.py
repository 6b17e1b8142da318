"""Trust rows, and tokens as each mechanism's real issuers make them."""

from typing import Any

from broker.attest import AttesterPool
from broker.attest.trust import GitHubTrust, KeySource, KeyTrust, KubernetesTrust, OidcTrust, SpiffeTrust
from tests.jose.forge import AUDIENCE, EC, NOW, RSA, dump, jwk, sign_parts, token

NOW_MS = NOW * 1000
CLUSTER = "https://kubernetes.default.svc.cluster.local"
GITHUB = "https://token.actions.githubusercontent.com"
OIDC = "https://idp.example"
SVID = "spiffe://example.org/ns/pay/sa/bot"


def source(private: Any = EC, **changes: Any) -> KeySource:
    return KeySource(keys=[jwk(private, **changes)])


def key_row(**changes: Any) -> KeyTrust:
    return KeyTrust(**{"id": "bot-key", "kind": "key", "subject": "invoice-bot", "jwks": source(), **changes})


def oidc_row(**changes: Any) -> OidcTrust:
    made = {
        "id": "idp",
        "kind": "oidc",
        "issuer": OIDC,
        "jwks": source(),
        "known": ("team", "level", "root"),
        **changes,
    }
    return OidcTrust(**made)


def github_row(**changes: Any) -> GitHubTrust:
    return GitHubTrust(**{"id": "github", "kind": "github", "jwks": source(RSA, alg="RS256"), **changes})


def cluster_row(**changes: Any) -> KubernetesTrust:
    return KubernetesTrust(**{"id": "prod", "kind": "kubernetes", "issuer": CLUSTER, "jwks": source(), **changes})


def spiffe_row(domain: str = "example.org", private: Any = EC, **changes: Any) -> SpiffeTrust:
    made = {"id": domain, "kind": "spiffe", "trust_domain": domain, "jwks": source(private, use="jwt-svid", alg=None)}
    return SpiffeTrust(**{**made, **changes})


def attest(row: Any, presented: str, *, audiences: Any = frozenset({AUDIENCE}), sole: bool = True, now_s: int = NOW):
    rows = row if isinstance(row, list) else [row]
    return AttesterPool(rows).attest(presented, audiences=audiences, sole=sole, now_ms=now_s * 1000)


def assertion(**changes: Any) -> str:
    """A client assertion (RFC 7523)."""
    return token({"iss": "invoice-bot", **changes})


def oidc_token(**changes: Any) -> str:
    return token({"iss": OIDC, "sub": "user-7", "team": "pay", **changes})


def svid(subject: Any = SVID, *, header: dict[str, Any] | None = None, private: Any = EC, **changes: Any) -> str:
    """A JWT-SVID as SPIRE makes it: no `iss`, no `jti`."""
    return token({"iss": None, "jti": None, "sub": subject, "aud": [AUDIENCE], **changes}, header=header, key=private)


def github_claims(**changes: Any) -> dict[str, Any]:
    made = {
        "jti": "6f1c5a9e-0001",
        "sub": "repo:octo-org/pay:environment:prod",
        "aud": AUDIENCE,
        "ref": "refs/heads/main",
        "sha": "3f2c1b0a",
        "repository": "octo-org/pay",
        "repository_owner": "octo-org",
        "repository_owner_id": "65",
        "repository_id": "74",
        "run_id": "30433642",
        "run_number": "10",
        "run_attempt": "2",
        "runner_environment": "github-hosted",
        "actor": "octocat",
        "actor_id": "12",
        "workflow": "deploy \U0001f680",
        "head_ref": "",
        "base_ref": "",
        "event_name": "push",
        "ref_protected": "true",
        "ref_type": "branch",
        "environment": "prod",
        "workflow_ref": "octo-org/pay/.github/workflows/deploy.yml@refs/heads/main",
        "job_workflow_ref": "octo-org/ci/.github/workflows/ship.yml@refs/tags/v3",
        "iss": GITHUB,
        "nbf": NOW - 610,
        "iat": NOW - 10,
        "exp": NOW + 290,
        **changes,
    }
    return {name: value for name, value in made.items() if value is not None}


def github_token(**changes: Any) -> str:
    """GitHub's own shape: RS256, and a certificate thumbprint in the header."""
    header = dump({"typ": "JWT", "alg": "RS256", "x5t": "ykNaY4qM_ta4k2TgZOCEYLkcYlA", "kid": "k1"})
    return sign_parts(header, dump(github_claims(**changes)), alg="RS256")


def cluster_claims(**changes: Any) -> dict[str, Any]:
    made = {
        "iss": CLUSTER,
        "aud": [AUDIENCE],
        "sub": "system:serviceaccount:pay:bot",
        "exp": NOW + 3_000,
        "iat": NOW - 10,
        "nbf": NOW - 10,
        "jti": "2a6f",
        "kubernetes.io": {
            "namespace": "pay",
            "serviceaccount": {"name": "bot", "uid": "14ee3fa4-a7e2-420f-9f9a-dbc4507c3798"},
            "pod": {"name": "bot-7d9", "uid": "5e0bd49b-f040-43b0-99b7-22765a53f7f3"},
            "node": {"name": "node-1", "uid": "f1c3"},
            "warnafter": NOW + 2_000,
        },
        **changes,
    }
    return {name: value for name, value in made.items() if value is not None}


def cluster_token(**changes: Any) -> str:
    """A projected service-account token: no `typ`."""
    return sign_parts(dump({"alg": "ES256", "kid": "k1"}), dump(cluster_claims(**changes)))
