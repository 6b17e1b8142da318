"""Issuers that speak OpenID Connect: any of them, GitHub Actions, and Kubernetes service accounts."""

import re
from collections.abc import Mapping
from typing import Any

from broker.attest.mechanism import MAX_AHEAD_S, STANDARD_CLAIMS, By, Facts, Mechanism, flat, refuse
from broker.attest.trust import GitHubTrust, KubernetesTrust, OidcTrust
from broker.jose import HEADER_MEMBERS, Claims, Profile

_THUMBPRINTS = frozenset({"x5t", "x5t#S256"})  # several issuers send them beside `kid`; nothing here reads them
_TYP = frozenset({"jwt"})

_GITHUB_REQUIRED = ("repository", "repository_id", "repository_owner", "repository_owner_id", "event_name", "run_id")
# fmt: off
_GITHUB_CLAIMS = frozenset({
    "actor", "actor_id", "base_ref", "check_run_id", "enterprise", "enterprise_id", "enterprise_slug", "environment",
    "environment_node_id", "event_name", "head_ref", "issuer_scope", "job_workflow_ref", "job_workflow_sha",
    "organization", "organization_id", "ref", "ref_protected", "ref_type", "repository", "repository_id",
    "repository_owner", "repository_owner_id", "repository_visibility", "run_attempt", "run_id", "run_number",
    "runner_environment", "sha", "workflow", "workflow_ref", "workflow_sha",
})
# fmt: on
_GITHUB_FORMS = {
    "repository": re.compile(r"[A-Za-z0-9_.-]{1,100}/[A-Za-z0-9_.-]{1,100}"),
    "repository_owner": re.compile(r"[A-Za-z0-9_.-]{1,100}"),
    "repository_id": re.compile(r"[0-9]{1,20}"),
    "repository_owner_id": re.compile(r"[0-9]{1,20}"),
    "run_id": re.compile(r"[0-9]{1,20}"),
    "event_name": re.compile(r"[a-z_]{1,60}"),
}

_SERVICE_ACCOUNT = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


def _profile(row: OidcTrust | GitHubTrust | KubernetesTrust, required: tuple[str, ...]) -> Profile:
    return Profile(
        kind=f"{row.kind} token",
        typ=_TYP,
        typ_required=False,
        algs=frozenset(row.algs),
        issuer=row.issuer,
        audiences=None,
        required=("iss", "sub", *required),
        max_lifetime_s=row.max_lifetime_s,
        max_ahead_s=MAX_AHEAD_S,
        header_members=HEADER_MEMBERS | _THUMBPRINTS,
    )


def oidc(row: OidcTrust) -> Mechanism:
    """Any issuer: the row says which claims its tokens must have and may have, and those can be matched on."""
    matched = frozenset(row.required) | frozenset(row.known)

    def facts(claims: Claims) -> Facts:
        found = flat(claims, matched)
        for name in row.required:
            if name not in found and name not in STANDARD_CLAIMS:
                raise refuse(name, f"The claim `{name}` is empty or not a plain value; trust {row.id} requires it.")
        return Facts(found, tuple(claims.keys() - matched - STANDARD_CLAIMS))

    return Mechanism(
        selector=(By.ISSUER, row.issuer), issuer=row.issuer, profile=_profile(row, row.required), facts=facts
    )


def github(row: GitHubTrust) -> Mechanism:
    """GitHub Actions. The text of `sub` has two grammars and free templates, so only the claims beside it count."""

    def facts(claims: Claims) -> Facts:
        for name, form in _GITHUB_FORMS.items():
            value = claims[name]
            if type(value) is not str or not form.fullmatch(value):
                raise refuse(name, f"The claim `{name}` does not look like GitHub's.")
        event = claims["event_name"]
        if event.startswith("pull_request") and not row.allow_pull_requests:
            raise refuse(
                "event_name",
                f"The run was started by {event}, which runs code that nobody has reviewed; trust {row.id} refuses it.",
            )
        found = flat(claims, _GITHUB_CLAIMS)
        unknown = (
            name for name in claims.keys() - _GITHUB_CLAIMS - STANDARD_CLAIMS if not name.startswith("repo_property_")
        )
        return Facts(found, tuple(unknown), f"{found['run_id']}/{found.get('run_attempt', '1')}")

    return Mechanism(
        selector=(By.ISSUER, row.issuer),
        issuer=row.issuer,
        profile=_profile(row, ("iat", *_GITHUB_REQUIRED)),
        facts=facts,
        hints={"aud": "Ask GitHub for the token with `audience` set to the expected value."},
    )


def kubernetes(row: KubernetesTrust) -> Mechanism:
    """A cluster's projected service-account tokens. Deleted pods are not noticed: that needs a TokenReview."""

    def facts(claims: Claims) -> Facts:
        bound = claims["kubernetes.io"]
        if type(bound) is not dict:
            raise refuse("kubernetes.io", "The claim `kubernetes.io` is not an object.")
        found = {"namespace": _text(bound, "namespace")}
        for kind in ("serviceaccount", "pod", "node"):
            found |= _reference(bound, kind)
        if "serviceaccount_uid" not in found:
            raise refuse("kubernetes.io", "The token is not bound to a service account with a uid.")
        if claims["sub"] != f"system:serviceaccount:{found['namespace']}:{found['serviceaccount']}":
            raise refuse("sub", "The claim `sub` is not the service account that `kubernetes.io` names.")
        known = {"namespace", "serviceaccount", "pod", "node", "secret", "warnafter"}
        unknown = [f"kubernetes.io/{name}" for name in bound.keys() - known]
        unknown += claims.keys() - STANDARD_CLAIMS - {"kubernetes.io"}
        return Facts(found, tuple(unknown), found.get("pod_uid"))

    projected = "Mount a projected service-account token with this broker's issuer URL as its audience."
    return Mechanism(
        selector=(By.ISSUER, row.issuer),
        issuer=row.issuer,
        profile=_profile(row, ("aud", "kubernetes.io")),
        facts=facts,
        hints=dict.fromkeys(("aud", "exp", "kubernetes.io"), projected),
    )


def _reference(bound: Mapping[str, Any], kind: str) -> dict[str, str]:
    reference = bound.get(kind)
    if reference is None:
        return {}
    if type(reference) is not dict:
        raise refuse("kubernetes.io", f"In `kubernetes.io`, `{kind}` is not an object.")
    found = {kind: _text(reference, "name")}
    if kind != "node" or reference.get("uid"):  # a node may be recorded by its name alone
        found[f"{kind}_uid"] = _text(reference, "uid")
    return found


def _text(holder: Mapping[str, Any], name: str) -> str:
    value = holder.get(name)
    if type(value) is not str or not _SERVICE_ACCOUNT.fullmatch(value):
        raise refuse("kubernetes.io", f"In `kubernetes.io`, `{name}` is missing or not a Kubernetes name.")
    return value
