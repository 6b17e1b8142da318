"""Operators' routes: the kill switch and its receipts, reload, keys."""

import asyncio
from typing import Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from broker.errors import Malformed
from broker.model import Selector, Target
from broker.service import Broker
from broker.telemetry.tracing import Spans
from broker.web.feed import Feed
from broker.web.guards import CallerOf
from broker.web.http import Body, json_answer, listing, read_json, takes

router = APIRouter()


class ReasonBody(Body):
    """Why."""

    reason: str


class PauseBody(ReasonBody):
    """`POST /v1/agents/{id}/pause`."""

    dry_run: bool = False


class KillBody(ReasonBody):
    """`POST /v1/kills`. `hold` false ends credentials without stopping new ones."""

    target: str
    value: str = ""
    hold: bool | None = None
    dry_run: bool = False


class ReloadBody(Body):
    """`POST /v1/reload`."""

    what: Literal["registry", "policies", "all"] = "all"
    dry_run: bool = False
    reason: str | None = None


def _broker(request: Request) -> Broker:
    broker: Broker = request.app.state.broker
    return broker


@router.get("/v1/agents")
async def list_agents(request: Request, caller: CallerOf) -> Response:
    """The registered agents: owner, state, what they hold now."""
    return listing(await asyncio.to_thread(_broker(request).evidence.agents, caller))


@router.get("/v1/agents/{agent_id}")
async def get_agent(request: Request, caller: CallerOf, agent_id: str) -> Response:
    """One agent."""
    return json_answer(await asyncio.to_thread(_broker(request).evidence.agent, caller, agent_id))


@router.post("/v1/agents/{agent_id}/pause", status_code=201, openapi_extra=takes(PauseBody))
async def pause(request: Request, caller: CallerOf, agent_id: str) -> Response:
    """Hold and kill in one entry; answers with the receipt as far as it is filled."""
    body = await read_json(request, PauseBody)
    return await _kill(request, caller, Selector(Target.AGENT, agent_id), body.reason, hold=True, dry_run=body.dry_run)


@router.post("/v1/agents/{agent_id}/resume", openapi_extra=takes(ReasonBody))
async def resume(request: Request, caller: CallerOf, agent_id: str) -> Response:
    """Lift the holds on an agent. Nothing that was killed revives."""
    body = await read_json(request, ReasonBody)
    return json_answer(await _broker(request).kill_switch.resume(caller, agent_id, reason=body.reason))


@router.post("/v1/kills", status_code=201, openapi_extra=takes(KillBody))
async def kill(request: Request, caller: CallerOf) -> Response:
    """End credentials: of an agent, task, grant, resource, owner, signing key, or all. A dry run shows what would."""
    body = await read_json(request, KillBody)
    try:
        target = Target(body.target)
    except ValueError:
        raise Malformed(f"target must be one of {', '.join(Target)}.") from None
    if (target is Target.ALL) != (body.value == ""):
        raise Malformed("value names what to kill; only target `all` has none.")
    return await _kill(request, caller, Selector(target, body.value), body.reason, hold=body.hold, dry_run=body.dry_run)


async def _kill(
    request: Request, caller: CallerOf, selector: Selector, reason: str, *, hold: bool | None, dry_run: bool
) -> Response:
    switch = _broker(request).kill_switch
    if dry_run:
        return json_answer(await asyncio.to_thread(switch.blast_radius, caller, selector, hold=hold))
    spans: Spans = request.app.state.spans
    with spans.span("kill"):
        receipt = await switch.kill(caller, selector, reason=reason, hold=hold)
    return json_answer(receipt, 201 if receipt["durable"] else 202)


@router.get("/v1/kills")
async def list_kills(request: Request, caller: CallerOf, limit: int = Query(default=100, ge=1, le=1000)) -> Response:
    """Kills, newest first."""
    return listing(_broker(request).kill_switch.kills(caller, limit=limit))


@router.get("/v1/kills/{kill_id}")
async def kill_receipt(
    request: Request, caller: CallerOf, kill_id: str, wait_ms: int = Query(default=0, ge=0, le=30_000)
) -> Response:
    """The receipt as it stands; with `wait_ms`, once it is complete or that time has passed."""
    feed: Feed = request.app.state.feed
    switch = _broker(request).kill_switch
    if switch.receipt(caller, kill_id)["durable"]:
        await switch.counted(kill_id)
    if wait_ms:
        await feed.until(lambda: switch.receipt(caller, kill_id)["complete"], timeout_ms=wait_ms)
    return json_answer(switch.receipt(caller, kill_id))


@router.get("/v1/holds")
async def list_holds(request: Request, caller: CallerOf) -> Response:
    """Standing holds."""
    return listing(_broker(request).kill_switch.holds(caller))


@router.post("/v1/holds/{hold_id}/lift", openapi_extra=takes(ReasonBody))
async def lift(request: Request, caller: CallerOf, hold_id: str) -> Response:
    """Lift one hold."""
    body = await read_json(request, ReasonBody)
    return json_answer(await _broker(request).kill_switch.lift(caller, hold_id, reason=body.reason))


@router.post("/v1/reload", openapi_extra=takes(ReloadBody))
async def reload(request: Request, caller: CallerOf) -> Response:
    """Read registry and policies from their files and put them in force, atomically."""
    body = await read_json(request, ReloadBody)
    return json_answer(await _broker(request).admin.reload(caller, body.what, dry_run=body.dry_run, reason=body.reason))


@router.get("/v1/keys")
async def list_keys(request: Request, caller: CallerOf) -> Response:
    """Signing keys and their states."""
    return listing(_broker(request).admin.keys(caller))


@router.post("/v1/keys/rotate", openapi_extra=takes(ReasonBody))
async def rotate_keys(request: Request, caller: CallerOf) -> Response:
    """Activate the next signing key and publish another."""
    body = await read_json(request, ReasonBody)
    return json_answer(await _broker(request).admin.rotate(caller, reason=body.reason))
