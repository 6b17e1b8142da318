"""Credentials that are not OAuth tokens: dynamic secrets."""

from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from broker.model import Caller
from broker.service import Broker
from broker.service.asks import CredentialAsk
from broker.web.guards import CallerOf
from broker.web.http import Body, json_answer, read_json, takes

router = APIRouter()


class CredentialBody(Body):
    """`POST /v1/credentials`. `resource` is a resource's id, or its audience."""

    resource: str
    actions: list[str]
    parameters: dict[str, Any] = Field(default_factory=dict)
    task: str | None = None
    ttl_seconds: int | None = None


class RenewalBody(Body):
    """`POST /v1/credentials/{id}/renew`. From now on; by default as long again as it was first given."""

    ttl_seconds: int | None = None


def _broker(request: Request) -> Broker:
    broker: Broker = request.app.state.broker
    return broker


@router.post("/v1/credentials", status_code=201, openapi_extra=takes(CredentialBody))
async def issue(request: Request) -> Response:
    """A credential that a backend makes for this task only. Its secret is in this answer, and nowhere else."""
    caller: Caller = request.state.caller
    body = await read_json(request, CredentialBody)
    ask = CredentialAsk(
        resource=body.resource,
        actions=body.actions,
        parameters=body.parameters,
        task=body.task,
        ttl_s=body.ttl_seconds,
    )
    return json_answer(await _broker(request).credentials.issue(caller, ask.checked()), 201)


@router.get("/v1/credentials/{grant_id}")
async def look(request: Request, caller: CallerOf, grant_id: str) -> Response:
    """How one credential stands, without its secret."""
    return json_answer(_broker(request).credentials.get(caller, grant_id))


@router.post("/v1/credentials/{grant_id}/renew", openapi_extra=takes(RenewalBody))
async def renew(request: Request, caller: CallerOf, grant_id: str) -> Response:
    """Have it live longer, within its task. Its secret stays the same, and is not in this answer."""
    body = await read_json(request, RenewalBody)
    return json_answer(await _broker(request).renewals.renew(caller, grant_id, ttl_s=body.ttl_seconds))


@router.post("/v1/credentials/{grant_id}/revoke")
async def give_back(request: Request, caller: CallerOf, grant_id: str) -> Response:
    """Its holder is done with it: it is being revoked from here on."""
    return json_answer(await _broker(request).credentials.give_back(caller, grant_id))
