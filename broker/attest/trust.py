"""Who may vouch for workloads: the rows of `trust.yaml`. An issuer is data; only a new mechanism is code.

Each row says where its keys come from, which algorithms it may use, whether its tokens may be presented more than once,
and which claims it is known to carry. An unknown member in a row refuses to load: a misspelt `audience` must never be
ignored in silence.
"""

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, HttpUrl, model_validator

Issuer = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[!-~]+$")]
"""Compared with a token's `iss` character by character: a trailing slash or another case is another issuer."""

Replay = Literal["single_use", "reusable"]
SpiffeAlg = Literal["ES256", "ES384", "ES512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512"]
Alg = SpiffeAlg | Literal["Ed25519", "EdDSA"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class KeySource(_Strict):
    """Where a row's JWKS comes from: exactly one of a file, an https URL, or keys written in place.

    `allow_private` lets the URL's host resolve to private or loopback addresses (an in-cluster issuer); without it they
    are refused at connect. `ca_file` replaces the system's certificate authorities for this host.
    """

    file: str | None = None
    url: HttpUrl | None = None
    keys: list[dict[str, Any]] | None = None
    ca_file: str | None = None
    allow_private: bool = False
    refresh_s: int = Field(default=300, ge=10, le=86_400)
    max_stale_s: int = Field(default=3_600, ge=60, le=86_400)

    @model_validator(mode="after")
    def _exactly_one(self) -> "KeySource":
        if sum(part is not None for part in (self.file, self.url, self.keys)) != 1:
            raise ValueError("give exactly one of file, url or keys")
        if self.url is not None and self.url.scheme != "https":
            raise ValueError("url must be https")
        return self


class _Row(_Strict):
    id: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")
    jwks: KeySource
    max_lifetime_s: int = Field(default=3_600, ge=10, le=86_400)


class SpiffeTrust(_Row):
    """A SPIFFE trust domain; `jwks` is its bundle. JWT-SVIDs are cached and reused by design."""

    kind: Literal["spiffe"]
    trust_domain: str = Field(pattern=r"^[a-z0-9._-]{1,255}$")
    algs: tuple[SpiffeAlg, ...] = Field(default=get_args(SpiffeAlg), min_length=1)
    replay: Replay = "reusable"


class KubernetesTrust(_Row):
    """A cluster's projected service-account tokens (not legacy ones: those have no audience of ours and no expiry)."""

    kind: Literal["kubernetes"]
    issuer: Issuer
    algs: tuple[Alg, ...] = Field(default=("RS256", "ES256"), min_length=1)
    replay: Replay = "reusable"


class GitHubTrust(_Row):
    """GitHub Actions OIDC. Identities must be bound on `repository_id` and `repository_owner_id`, never on names."""

    kind: Literal["github"]
    issuer: Issuer = "https://token.actions.githubusercontent.com"
    algs: tuple[Alg, ...] = Field(default=("RS256",), min_length=1)
    replay: Replay = "single_use"
    allow_pull_requests: bool = False


class OidcTrust(_Row):
    """Any other OpenID-Connect-like issuer. Claims in neither `required` nor `known` raise an alert in the log."""

    kind: Literal["oidc"]
    issuer: Issuer
    algs: tuple[Alg, ...] = Field(default=("ES256",), min_length=1)
    replay: Replay = "single_use"
    required: tuple[str, ...] = ()
    known: tuple[str, ...] = ()


class KeyTrust(_Row):
    """Registered public keys of one client that signs its own assertions (`private_key_jwt`, RFC 7523)."""

    kind: Literal["key"]
    subject: str = Field(min_length=1, max_length=200)
    algs: tuple[Alg, ...] = Field(default=("ES256",), min_length=1)
    replay: Literal["single_use"] = "single_use"
    max_lifetime_s: int = Field(default=300, ge=10, le=600)


TrustRow = Annotated[SpiffeTrust | KubernetesTrust | GitHubTrust | OidcTrust | KeyTrust, Field(discriminator="kind")]
