"""What a token request asks for: read strictly (RFC 6749, 8707, 9396), then narrowed to the registry.

Pure. Reading happens before the caller is known, so it only bounds and shapes; narrowing needs the agent.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from broker import jose
from broker.errors import InvalidDetails, InvalidScope, InvalidTarget, Malformed, UnsupportedGrant
from broker.model import Agent, Ask, Resource
from broker.registry import Registry, narrow_parameters

CLIENT_CREDENTIALS = "client_credentials"
JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
CLIENT_ASSERTION_JWT = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
CLIENT_ASSERTION_SPIFFE = "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe"
DETAILS_TYPE = "task_action"

_KNOWN = frozenset(
    {
        "grant_type",
        "client_assertion_type",
        "client_assertion",
        "assertion",
        "client_id",
        "task",
        "resource",
        "scope",
        "authorization_details",
    }
)
_SINGLE_USE_SECRETS = frozenset({"client_secret", "password", "username", "code", "refresh_token"})
_ID = re.compile(r"[A-Za-z0-9._:/-]{1,200}")
_SCOPE_TOKEN = re.compile(r"[\x21\x23-\x5B\x5D-\x7E]{1,128}")
_MAX_SCOPES = 32
_MAX_DETAILS = 4096
_MAX_RESOURCE = 512
_MAX_INTEGER = 2**53 - 1

Grant = Literal["client_credentials", "jwt_bearer"]


class TokenRequest(NamedTuple):
    """A well-formed token request of a caller not yet known."""

    grant: Grant
    assertion: str
    resource: str
    client_id: str | None = None
    task: str | None = None
    scope: tuple[str, ...] | None = None  # None: not sent
    details: Mapping[str, Any] | None = None
    traceparent: str | None = None


def read_token_request(pairs: Sequence[tuple[str, str]], *, traceparent: str | None = None) -> TokenRequest:
    """Read the form of the token endpoint. Raises Malformed or a subclass; says which parameter and what to do."""
    form = _once(pairs)
    grant, assertion = _grant(form)
    scope = form.get("scope")
    return TokenRequest(
        grant=grant,
        assertion=assertion,
        resource=_resource(form),
        client_id=_identifier(form, "client_id"),
        task=_identifier(form, "task"),
        scope=None if scope is None else _scope(scope),
        details=_details(form["authorization_details"]) if "authorization_details" in form else None,
        traceparent=traceparent,
    )


def _once(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Each parameter at most once (RFC 6749 section 3.2); an empty value is as if it were not sent (section 3.2)."""
    form: dict[str, str] = {}
    for name, value in pairs:
        if name in form:
            advice = "ask for one token per resource." if name == "resource" else "send it once."
            error = InvalidTarget if name == "resource" else Malformed
            raise error(f"The parameter {name[:40]!r} is repeated: {advice}")
        if name in _SINGLE_USE_SECRETS:
            raise Malformed(
                f"{name} is not accepted here: clients authenticate with an assertion, never a shared secret."
            )
        if name in _KNOWN:
            form[name] = value
    return {name: value for name, value in form.items() if value}


def _grant(form: Mapping[str, str]) -> tuple[Grant, str]:
    grant_type = form.get("grant_type")
    if grant_type is None:
        raise Malformed("grant_type is missing.")
    if grant_type == CLIENT_CREDENTIALS:
        if "assertion" in form:
            raise Malformed("client_credentials takes a client_assertion, not an assertion: send one of the two.")
        if form.get("client_assertion_type") not in (CLIENT_ASSERTION_JWT, CLIENT_ASSERTION_SPIFFE):
            raise Malformed(f"client_assertion_type must be {CLIENT_ASSERTION_JWT}.")
        if "client_assertion" not in form:
            raise Malformed("client_assertion is missing.")
        return "client_credentials", form["client_assertion"]
    if grant_type == JWT_BEARER:
        if "client_assertion" in form or "client_assertion_type" in form:
            raise Malformed(
                "With the jwt-bearer grant the assertion authenticates the workload: send no client_assertion."
            )
        if "assertion" not in form:
            raise Malformed("assertion is missing.")
        return "jwt_bearer", form["assertion"]
    raise UnsupportedGrant(f"grant_type must be {CLIENT_CREDENTIALS} or {JWT_BEARER}.")


def _resource(form: Mapping[str, str]) -> str:
    resource = form.get("resource")
    if resource is None:
        raise InvalidTarget("resource is missing: name the one audience that the token is for.")
    if "#" in resource or "://" not in resource or len(resource) > _MAX_RESOURCE:
        raise InvalidTarget("resource must be an absolute URI without a fragment.")
    return resource


def _identifier(form: Mapping[str, str], name: str) -> str | None:
    value = form.get(name)
    if value is not None and not _ID.fullmatch(value):
        raise Malformed(f"{name} has characters or a length that no id here has.")
    return value


@lru_cache(maxsize=256)  # an agent asks for the same ones again and again
def _scope(text: str) -> tuple[str, ...]:
    """Scope tokens in order, each once. Only single spaces separate them (RFC 6749 section 3.3)."""
    tokens = text.split(" ")
    if len(tokens) > _MAX_SCOPES:
        raise InvalidScope(f"At most {_MAX_SCOPES} scopes per token.")
    if not all(_SCOPE_TOKEN.fullmatch(token) for token in tokens):
        raise InvalidScope("scope must be scope tokens separated by single spaces.")
    return tuple(dict.fromkeys(tokens))


def _details(text: str) -> Mapping[str, Any]:
    """The one `task_action` object of `authorization_details`. Unknown, missing and mistyped members are refused."""
    if len(text) > _MAX_DETAILS:
        raise InvalidDetails(f"authorization_details is longer than {_MAX_DETAILS} characters.")
    try:
        value = jose.load_json(text.encode(), what="authorization_details")
    except jose.JoseError as error:
        raise InvalidDetails(f"authorization_details is not acceptable JSON: {error}.") from None
    if not isinstance(value, list) or len(value) != 1 or not isinstance(value[0], dict):
        raise InvalidDetails("authorization_details must be an array of exactly one object.")
    return _task_action(value[0])


def _task_action(details: Mapping[str, Any]) -> Mapping[str, Any]:
    if details.get("type") != DETAILS_TYPE:
        raise InvalidDetails(f"authorization_details type must be {DETAILS_TYPE!r}.")
    unknown = sorted(details.keys() - {"type", "actions", "parameters", "locations"})
    if unknown:
        raise InvalidDetails(f"{DETAILS_TYPE} has no member {unknown[0][:40]!r}.")
    actions, parameters = details.get("actions"), details.get("parameters", {})
    if not isinstance(actions, list) or not actions or not all(isinstance(action, str) for action in actions):
        raise InvalidDetails("actions must be a non-empty array of action ids.")
    if len(set(actions)) != len(actions) or len(actions) > _MAX_SCOPES:
        raise InvalidDetails(f"actions must be distinct, at most {_MAX_SCOPES}.")
    if not isinstance(parameters, dict):
        raise InvalidDetails("parameters must be an object.")
    return details


@dataclass(frozen=True, slots=True)
class CredentialAsk:
    """A request for a credential at a backend. `resource` is a resource's id, or its audience."""

    resource: str
    actions: Sequence[str]
    parameters: Mapping[str, Any]
    task: str | None = None
    ttl_s: int | None = None

    def checked(self) -> "CredentialAsk":
        """Itself, if its members are within bounds. Raises Malformed."""
        if self.ttl_s is not None and self.ttl_s < 1:
            raise Malformed("ttl_seconds must be at least 1.")
        if not 1 <= len(self.resource) <= _MAX_RESOURCE:
            raise Malformed("resource must be a resource's id, or its audience.")
        return self

    def narrowed(self, registry: Registry, *, traceparent: str | None = None) -> TokenRequest:
        """The same request in the form of a token's, so that both are narrowed by one rule. Raises Malformed."""
        resource = registry.resources.get(self.resource)
        details = {"type": DETAILS_TYPE, "actions": list(self.actions), "parameters": dict(self.parameters)}
        return TokenRequest(
            grant="client_credentials",
            assertion="",
            resource=self.resource if resource is None else resource.audience,
            task=None if self.task is None else _identifier({"task": self.task}, "task"),
            details=_task_action(details),
            traceparent=traceparent,
        )


def target(registry: Registry, request: TokenRequest) -> Resource:
    """The one registered resource that the request names. Raises InvalidTarget."""
    resource = registry.by_audience(request.resource)
    if resource is None:
        raise InvalidTarget(
            f"No registered resource has the audience {request.resource[:200]}.",
            next="Ask for a resource's exact `audience`.",
        )
    locations = (request.details or {}).get("locations", [request.resource])
    if locations != [request.resource]:
        raise InvalidTarget("locations must be just the requested resource: every way to name the target must agree.")
    return resource


def narrow(registry: Registry, agent: Agent, request: TokenRequest) -> Ask:
    """The actions and typed parameters asked for, as registered for the resource. Raises InvalidTarget, InvalidScope,
    InvalidDetails.

    Without scope and details the ask is what the agent's boundary holds on this resource and needs no parameters.
    """
    resource = target(registry, request)
    for action in request.scope or ():
        if action not in resource.actions:
            raise InvalidScope(
                f"{resource.id} has no action {action[:60]}; it has: {' '.join(sorted(resource.actions))}."
            )
    named = [*(request.scope or ()), *(request.details or {}).get("actions", ())]
    if not named:
        named = [
            action
            for action in sorted(agent.boundary.get(resource.id, ()))
            if action in resource.actions and not any(p.required for p in resource.actions[action].parameters.values())
        ]
        if not named:
            raise InvalidScope(f"Name a scope: one of {' '.join(sorted(resource.actions))}.")
    actions = tuple(sorted(set(named)))
    unknown = [action for action in actions if action not in resource.actions]
    if unknown:
        raise InvalidDetails(
            f"{resource.id} has no action {unknown[0][:60]}; it has: {' '.join(sorted(resource.actions))}."
        )
    parameters = narrow_parameters(resource, actions, (request.details or {}).get("parameters", {}))
    for name, value in parameters.items():
        # Beyond it readers of JSON disagree on a number, and RFC 8785 has no form of it to digest for an approval.
        if isinstance(value, int) and abs(value) > _MAX_INTEGER:
            raise InvalidDetails(f"Parameter '{name}' must be from -{_MAX_INTEGER} to {_MAX_INTEGER}.")
    return Ask(resource=resource.id, actions=actions, parameters=parameters)


def outside_boundary(agent: Agent, ask: Ask) -> list[str]:
    """The asked actions that the reviewed boundary does not hold."""
    allowed = agent.boundary.get(ask.resource, frozenset())
    return [action for action in ask.actions if action not in allowed]
