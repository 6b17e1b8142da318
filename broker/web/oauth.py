"""The OAuth endpoints but the token's own (`web.token`): introspection, revocation, key set, metadata."""

from contextlib import suppress
from typing import Any

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from broker.errors import Malformed, NotAuthenticated, NotFound, TaskpassError, UnauthorizedClient
from broker.model import AgentCaller, Caller, Selector, Target
from broker.service import Broker
from broker.service.asks import (
    CLIENT_ASSERTION_JWT,
    CLIENT_ASSERTION_SPIFFE,
    CLIENT_CREDENTIALS,
    DETAILS_TYPE,
    JWT_BEARER,
)
from broker.telemetry.tracing import entered
from broker.web.guards import authenticated, bearer, record
from broker.web.http import json_answer, oauth_error, read_form

router = APIRouter()


# --- Introspection and revocation -------------------------------------------------------------------------------------


async def _client(request: Request, form: dict[str, str]) -> Caller:
    """The caller of an endpoint that takes client authentication in its form, or a bearer. Never both."""
    broker: Broker = request.app.state.broker
    header, assertion = bearer(request), form.get("client_assertion")
    if "authorization" in request.headers and assertion is not None:
        raise Malformed("Authenticate in one way: client_assertion or Authorization, not both.")
    if assertion is not None and form.get("client_assertion_type") not in (
        CLIENT_ASSERTION_JWT,
        CLIENT_ASSERTION_SPIFFE,
    ):
        raise Malformed(f"client_assertion_type must be {CLIENT_ASSERTION_JWT}.")
    caller = await authenticated(request, header or assertion)
    if form.get("client_id") not in (None, caller.id):
        raise NotAuthenticated("client_id names another client than the assertion.")
    await broker.callers.spend(caller, request.scope["route"].path)
    return caller


async def _refused(request: Request, error: TaskpassError) -> Response:
    """The error, recorded if its caller is known; with a challenge if a header was used (RFC 6749 section 5.2)."""
    await record(request, error)
    return oauth_error(error, entered(), challenge="authorization" in request.headers)


async def _token_form(request: Request) -> tuple[dict[str, str], str]:
    if request.url.query:
        raise Malformed("Parameters belong in the body: URLs end up in logs.")
    pairs = await read_form(request)
    form = dict(pairs)
    if len(form) != len(pairs):
        raise Malformed("A parameter is repeated.")
    if not form.get("token"):
        raise Malformed("token is missing.")
    return form, form["token"]


@router.post("/oauth2/introspect")
async def introspect(request: Request) -> Response:
    """RFC 7662: is this token good, now, for the service that asks?"""
    broker: Broker = request.app.state.broker
    try:
        form, token = await _token_form(request)
        caller = await _client(request, form)
        return json_answer(broker.evidence.introspect(caller, token))
    except TaskpassError as error:
        return await _refused(request, error)


@router.post("/oauth2/revoke")
async def revoke(request: Request) -> Response:
    """RFC 7009: end one of the client's own tokens. An unknown token is a success: it is not valid."""
    broker: Broker = request.app.state.broker
    try:
        form, token = await _token_form(request)
        caller = await _client(request, form)
        if not isinstance(caller, AgentCaller):
            raise UnauthorizedClient("Only the agent that holds a token revokes it here; operators use /v1/kills.")
        grant = broker.evidence.grant_of(token)
        if grant is not None:
            with suppress(NotFound):  # another client's token does not exist for this one
                await broker.kill_switch.revoke_own(caller, Selector(Target.GRANT, grant))
        return Response(status_code=200, headers={"cache-control": "no-store"})
    except TaskpassError as error:
        return await _refused(request, error)


# --- Key set and metadata ---------------------------------------------------------------------------------------------


@router.get("/oauth2/jwks")
async def jwks(request: Request) -> Response:
    """The public keys of access tokens (RFC 7517): next, active, and those whose tokens may still be alive."""
    body = request.app.state.keyring.jwks(keep_retired_ms=request.app.state.settings.jwks_keep_ms)
    return Response(orjson.dumps(body), 200, {"cache-control": "public, max-age=60"}, "application/jwk-set+json")


@router.get("/.well-known/oauth-authorization-server")
async def metadata(request: Request) -> Response:
    """RFC 8414."""
    return _document(_metadata(request))


@router.get("/.well-known/openid-configuration")
async def openid_configuration(request: Request) -> Response:
    """The same, with what a cloud asks of a provider whose web identity tokens it is to accept."""
    identity = {
        "response_types_supported": ["none", "id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
        "claims_supported": ["iss", "sub", "aud", "iat", "nbf", "exp", "jti"],
    }
    return _document(_metadata(request) | identity)


def _document(body: dict[str, Any]) -> Response:
    return Response(orjson.dumps(body), 200, {"cache-control": "public, max-age=300"}, "application/json")


def _metadata(request: Request) -> dict[str, Any]:
    """A member is here only because it is true."""
    settings = request.app.state.settings
    iss = settings.issuer
    return {
        "issuer": iss,
        "token_endpoint": f"{iss}/oauth2/token",
        "jwks_uri": f"{iss}/oauth2/jwks",
        "introspection_endpoint": f"{iss}/oauth2/introspect",
        "revocation_endpoint": f"{iss}/oauth2/revoke",
        "grant_types_supported": [CLIENT_CREDENTIALS, JWT_BEARER],
        "response_types_supported": ["none"],
        # `none` is for the jwt-bearer grant, where the assertion itself authenticates the workload.
        "token_endpoint_auth_methods_supported": ["private_key_jwt", "none"],
        "token_endpoint_auth_signing_alg_values_supported": ["ES256", "RS256", "PS256", "Ed25519"],
        "introspection_endpoint_auth_methods_supported": ["private_key_jwt"],
        "introspection_endpoint_auth_signing_alg_values_supported": ["ES256", "RS256", "PS256", "Ed25519"],
        "revocation_endpoint_auth_methods_supported": ["private_key_jwt"],
        "revocation_endpoint_auth_signing_alg_values_supported": ["ES256", "RS256", "PS256", "Ed25519"],
        "authorization_details_types_supported": [DETAILS_TYPE],
        "scopes_supported": sorted(request.app.state.scopes()),
        "taskpass_control": settings.control_url,
    }
