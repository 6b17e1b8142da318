"""The one schema of the registry files: what an entry of each kind looks like, checked on its own.

Validation is strict (no coercion) and unknown keys are refused, so a misspelt key can never be ignored in silence.
References between entries are the business of `check`. An agent's row has a default for every field, because a broken
agent must still load as far as it can be understood: what it lacks is reported by `check` as that agent's problem.
"""

import re
from collections.abc import Mapping
from datetime import date
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from broker.attest.trust import GitHubTrust, KeySource, KeyTrust, KubernetesTrust, OidcTrust, SpiffeTrust, TrustRow
from broker.jose import JoseError, load_jwk
from broker.model import ACCESS_TOKEN, ParameterType, Right
from broker.registry.text import shown, unsafe_character

ID_RULE = "1 to 63 of a-z, 0-9, '.', '_', '-', beginning with a letter or digit"
_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_SCOPE_TOKEN = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,100}")  # RFC 6749 section 3.3
_PARAMETER = re.compile(r"(?!__)[A-Za-z_][A-Za-z0-9_]{0,62}")
_URI = re.compile(r"[a-z][a-z0-9+.-]*:[A-Za-z0-9\-._~:/?\[\]@!$&'()*+,;=%]+")
RESERVED_IDS = frozenset({"taskpass", "all"})  # the broker's own name in the ledger, and "every owner"
OPERATOR_TRUST = "operator."  # operators' keys vouch for them under trust ids of this form
ALL_OWNERS = ("all",)

Bounded = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]


def _matching(pattern: re.Pattern[str], rule: str) -> AfterValidator:
    def check(value: str) -> str:
        if not pattern.fullmatch(value):
            raise ValueError(f"{shown(value)} is not allowed here: {rule}")
        return value

    return AfterValidator(check)


def _readable(value: str) -> str:
    character = unsafe_character(value)
    if character is not None:
        raise ValueError(f"the character {character} is not allowed")
    return value


def _one_line(value: str) -> str:
    if "\n" in value or "\t" in value:
        raise ValueError("must be one line of text")
    return _readable(value)


def _unreserved(value: str) -> str:
    if value in RESERVED_IDS:
        raise ValueError(f"{shown(value)} is reserved")
    return value


def _all_or_list(value: Any) -> Any:  # noqa: ANN401  (whatever was written; the type after it decides)
    if value == "all":
        return ALL_OWNERS
    return tuple(value) if isinstance(value, list) else value


def _distinct(values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(set(values)))


def _iso_date(value: str) -> str:
    try:
        date.fromisoformat(value)
    except ValueError:
        raise ValueError("must be a date such as 2026-12-31") from None
    if len(value) != len("2026-12-31"):
        raise ValueError("must be a date such as 2026-12-31")
    return value


def _absolute_uri(value: str) -> str:
    if "#" in value:
        raise ValueError("must not have a fragment ('#')")
    if not _URI.fullmatch(value) or (value.startswith(("http:", "https:")) and not urlsplit(value).hostname):
        raise ValueError("must be an absolute URI such as https://invoices.example.com")
    return value


def _operator_key(value: dict[str, Any]) -> dict[str, Any]:
    if "file" in value:  # still here only where reading it has failed, which is reported
        return value
    if "kty" not in value:
        raise ValueError("must be a public JWK (with 'kty') or {file: path}")
    try:
        load_jwk(value, algs=("ES256",))
    except JoseError as error:
        raise ValueError(f"not a public key for ES256: {error}") from None
    return value


Id = Annotated[str, _matching(_ID, ID_RULE)]
OwnId = Annotated[str, _matching(_ID, ID_RULE), AfterValidator(_unreserved)]
ScopeToken = Annotated[str, _matching(_SCOPE_TOKEN, "printable ASCII without space, '\"' and '\\', at most 100")]
ParameterName = Annotated[str, _matching(_PARAMETER, "letters, digits and '_', not beginning with '__' or a digit")]
Exact = Annotated[str, StringConstraints(min_length=1, max_length=500), AfterValidator(_one_line)]
Line = Annotated[str, StringConstraints(min_length=1, max_length=200, strip_whitespace=True), AfterValidator(_one_line)]
TextOrNone = Annotated[str, StringConstraints(max_length=4000, strip_whitespace=True), AfterValidator(_readable)]
Text = Annotated[TextOrNone, StringConstraints(min_length=1)]
Date = Annotated[str, AfterValidator(_iso_date)]
Audience = Annotated[str, StringConstraints(max_length=200), AfterValidator(_absolute_uri)]
Jwk = Annotated[dict[str, Any], AfterValidator(_operator_key)]
Distinct = AfterValidator(_distinct)


def id_problem(kind: str, value: str) -> str | None:
    """Why `value` cannot be the id of an entry of this kind, or None."""
    if not _ID.fullmatch(value):
        return f"not an id: {ID_RULE}"
    if kind == "trust":
        return f"ids beginning with {OPERATOR_TRUST!r} are reserved" if value.startswith(OPERATOR_TRUST) else None
    return "this id is reserved" if value in RESERVED_IDS and kind != "resources" else None


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class OwnerRow(_Row):
    """Who answers for agents, resources and verifiers."""

    name: Line
    contact: Line
    backup: Line
    escalation: Line


class IdentityRow(_Row):
    """One way for a workload to be this agent or verifier. What it lists must be equal, exactly."""

    trust: Id
    subject: Exact | None = None
    subject_prefix: Exact | None = None
    claims: dict[Exact, Exact] = {}

    @model_validator(mode="after")
    def _one_subject(self) -> "IdentityRow":
        if self.subject is not None and self.subject_prefix is not None:
            raise ValueError("give subject or subject_prefix, not both")
        return self


class ReviewRow(_Row):
    """Who reviewed the boundary, when, and the last day (UTC) on which that review holds."""

    reviewer: Line
    reviewed: Date
    expires: Date

    @model_validator(mode="after")
    def _in_order(self) -> "ReviewRow":
        if self.expires < self.reviewed:
            raise ValueError("expires before it was reviewed")
        return self


class LimitsRow(_Row):
    """Ceilings of one agent, in seconds and counts."""

    token_ttl_s: int = Field(default=300, ge=10, le=3_600)
    task_ttl_s: int = Field(default=3_600, ge=10, le=30 * 86_400)
    open_tasks: int = Field(default=1_000, ge=1, le=10_000)  # the end of one task may have to name them all


class AgentRow(_Row):
    """A registered non-human identity."""

    owner: str = ""
    purpose: TextOrNone = ""
    workflow: TextOrNone = ""
    identities: tuple[IdentityRow, ...] = ()
    boundary: dict[str, Annotated[tuple[str, ...], Distinct]] = {}
    review: ReviewRow | None = None
    limits: LimitsRow = LimitsRow()
    retired: bool = False


class ParameterRow(_Row):
    """One typed parameter of an action. Money is an integer in minor units."""

    type: ParameterType
    required: bool = False
    values: tuple[Exact, ...] = ()
    minimum: Bounded | None = None
    maximum: Bounded | None = None
    max_length: int | None = Field(default=None, ge=1, le=4_096)

    @model_validator(mode="after")
    def _fits_its_type(self) -> "ParameterRow":
        if self.type is not ParameterType.INTEGER and (self.minimum is not None or self.maximum is not None):
            raise ValueError("minimum and maximum are for integers")
        if self.type is not ParameterType.STRING and (self.values or self.max_length is not None):
            raise ValueError("values and max_length are for strings")
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise ValueError("minimum is above maximum")
        if len(set(self.values)) != len(self.values):
            raise ValueError("values has a value twice")
        return self


class ActionRow(_Row):
    """Something that can be done to a resource."""

    access: Literal["read", "write"]
    description: Text
    parameters: dict[ParameterName, ParameterRow] = {}


class ResourceRow(_Row):
    """A system that credentials open."""

    system: Line
    audience: Audience
    owner: str
    actions: dict[ScopeToken, ActionRow] = Field(min_length=1)
    data_classes: tuple[Id, ...]
    fields: tuple[Line, ...] = ()
    leaves_boundary: bool
    retention: Line
    issuer: Id = ACCESS_TOKEN
    settings: dict[str, Any] = {}  # the issuer's own, checked by it when the registry is loaded


class OperatorRow(_Row):
    """A human, or a break-glass key: the latter may only kill, and every owner's agents."""

    name: Line
    keys: tuple[Jwk, ...] = Field(min_length=1)
    rights: Annotated[tuple[Right, ...], Distinct] = Field(min_length=1)
    owners: Annotated[tuple[str, ...], Distinct, BeforeValidator(_all_or_list)]
    break_glass: bool = False

    @model_validator(mode="after")
    def _break_glass_only_kills(self) -> "OperatorRow":
        if self.break_glass and (set(self.rights) != {Right.KILL} or self.owners != ALL_OWNERS):
            raise ValueError("a break-glass key has rights: [kill] and owners: all")
        return self


class VerifierRow(_Row):
    """A downstream service that follows the revocation feed."""

    owner: str
    identities: tuple[IdentityRow, ...] = Field(min_length=1)
    audiences: Annotated[tuple[str, ...], Distinct] = Field(min_length=1)


class Rows(_Row):
    """The whole registry, each kind by id: what is hashed, kept in the ledger and compared."""

    owners: dict[OwnId, OwnerRow] = {}
    agents: dict[OwnId, AgentRow] = {}
    resources: dict[Id, ResourceRow] = {}
    operators: dict[OwnId, OperatorRow] = {}
    verifiers: dict[OwnId, VerifierRow] = {}
    trust: dict[Id, TrustRow] = {}


KINDS: Mapping[str, Any] = {
    "owners": OwnerRow,
    "agents": AgentRow,
    "resources": ResourceRow,
    "operators": OperatorRow,
    "verifiers": VerifierRow,
    "trust": TrustRow,
}
"""The top-level keys of a registry file, and what an entry under each must be."""

KEYS = sorted(
    {
        name
        for row in (
            *(OwnerRow, IdentityRow, ReviewRow, LimitsRow, AgentRow, ParameterRow, ActionRow, ResourceRow, OperatorRow),
            *(VerifierRow, KeySource, SpiffeTrust, KubernetesTrust, GitHubTrust, OidcTrust, KeyTrust),
        )
        for name in row.model_fields
    }
)
"""Every key of the schema, to guess at what a misspelt one was meant to be."""
