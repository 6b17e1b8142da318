"""The published OpenAPI document: FastAPI's, with the plain routes it cannot see and the errors every route shares."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.responses import Response

from broker.service.asks import CLIENT_ASSERTION_JWT, CLIENT_CREDENTIALS, JWT_BEARER
from broker.web.guards import GUARDS
from broker.web.http import json_answer

_PROBLEM = {"content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}}
_OAUTH_ERROR = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/OAuthError"}}}}
_ANSWERS: dict[str, dict[str, Any]] = {
    "/oauth2/jwks": {"application/jwk-set+json": {"schema": {"type": "object"}}},
    "/oauth2/revoke": {},
    "/v1/ledger/checkpoint": {"text/plain": {"schema": {"type": "string"}}},
    "/v1/revocations/stream": {"text/event-stream": {"schema": {"type": "string"}}},
}
"""The content of successes that are not `application/json`."""

_FORM_ROUTES = {"/oauth2/token", "/oauth2/introspect", "/oauth2/revoke"}

_SCHEMAS: dict[str, Any] = {
    "Problem": {
        "type": "object",
        "required": ["type", "title", "status", "detail", "code"],
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "code": {"type": "string"},
            "decision_id": {"type": "string"},
            "next": {"type": "string"},
            "request_id": {"type": "string"},
        },
    },
    "OAuthError": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {"type": "string"},
            "error_description": {"type": "string"},
            "outcome": {"type": "string"},
            "decision_id": {"type": "string"},
            "policies": {"type": "array", "items": {"type": "string"}},
            "approval": {"type": "object"},
            "next": {"type": "string"},
        },
    },
}


def publish(app: FastAPI) -> None:
    """Serve the document at `/openapi.json`."""

    async def document() -> Response:
        return json_answer(openapi(app))

    app.add_api_route("/openapi.json", document, methods=["GET"], include_in_schema=False)


def openapi(app: FastAPI) -> dict[str, Any]:
    """The document of this application."""
    if app.openapi_schema is None:
        schema = get_openapi(title="Taskpass", version="1", routes=app.routes)
        schema.setdefault("components", {}).setdefault("schemas", {}).update(_SCHEMAS)
        schema["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer", "description": "A workload's assertion or a session token."}
        }
        if any(getattr(route, "path", "") == "/oauth2/token" for route in app.routes):
            schema["paths"]["/oauth2/token"] = {"post": _token_operation()}
        for path, operations in schema["paths"].items():
            for method, operation in operations.items():
                _complete(path, method.upper(), operation)
        app.openapi_schema = schema
    return app.openapi_schema


def _complete(path: str, method: str, operation: dict[str, Any]) -> None:
    """Errors and security that the guard table implies."""
    responses = operation.setdefault("responses", {})
    responses.pop("422", None)
    if path in _ANSWERS:
        responses["200"]["content"] = _ANSWERS[path]
    error = _OAUTH_ERROR if path in _FORM_ROUTES else _PROBLEM
    for status, text in {
        "400": "Refused",
        "401": "Not authenticated",
        "503": "A dependency failed; nothing was issued",
    }.items():
        responses[status] = {"description": text, **error}
    if GUARDS[method, path].kinds is not None:
        operation["security"] = [{"bearer": []}]
        for status, text in {
            "403": "Forbidden",
            "404": "No such thing of yours",
            "409": "In another state",
            "422": "Invalid",
        }.items():
            responses[status] = {"description": text, **error}
    if path in {"/oauth2/introspect", "/oauth2/revoke"}:
        operation["requestBody"] = _form(
            {
                "token": {"type": "string"},
                "client_assertion": {"type": "string"},
                "client_assertion_type": {"const": CLIENT_ASSERTION_JWT},
            },
            ["token"],
        )


def _token_operation() -> dict[str, Any]:
    text = {"type": "string"}
    fields = {
        "grant_type": {"type": "string", "enum": [CLIENT_CREDENTIALS, JWT_BEARER]},
        "client_assertion_type": {"type": "string", "enum": [CLIENT_ASSERTION_JWT]},
        "client_assertion": text,
        "assertion": text,
        "resource": {"type": "string", "format": "uri"},
        "scope": text,
        "authorization_details": text,
        "task": text,
        "client_id": text,
    }
    return {
        "summary": "Exchange a workload's identity for a credential that is good for one task",
        "operationId": "token",
        "requestBody": _form(fields, ["grant_type", "resource"]),
        "responses": {
            "200": {"description": "Granted", "content": {"application/json": {"schema": {"type": "object"}}}}
        },
    }


def _form(fields: dict[str, Any], required: list[str]) -> dict[str, Any]:
    schema = {"type": "object", "properties": fields, "required": required}
    return {"required": True, "content": {"application/x-www-form-urlencoded": {"schema": schema}}}
