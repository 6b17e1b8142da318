"""Tasks, sessions, and what a caller may know of itself."""

import asyncio
from typing import Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from broker.model import TaskState
from broker.service import Broker
from broker.service.tasks import TaskAsk
from broker.web.guards import CallerOf
from broker.web.http import Body, json_answer, listing, read_json, takes

router = APIRouter()


class Trigger(Body):
    """What started the task. Policy sees `kind`; `ref` is kept as personal text."""

    kind: str = "manual"
    ref: str | None = None


class OpenTaskBody(Body):
    """`POST /v1/tasks`."""

    purpose: str
    trigger: Trigger = Trigger()
    on_behalf_of: str | None = None
    deadline_seconds: int | None = None
    heartbeat_seconds: int | None = None
    parent: str | None = None


class EndTaskBody(Body):
    """`POST /v1/tasks/{id}/end`."""

    outcome: str = "done"


def _broker(request: Request) -> Broker:
    broker: Broker = request.app.state.broker
    return broker


@router.post("/v1/sessions", status_code=201)
async def open_session(request: Request, caller: CallerOf) -> Response:
    """A short session token for a caller that proved itself with an assertion."""
    session = await _broker(request).callers.open_session(caller)
    body: dict[str, Any] = {
        "session_token": session.token,
        "token_type": "Bearer",
        "expires_in": session.expires_in,
        "kind": session.kind,
        "id": session.id,
    }
    return json_answer(body, 201)


@router.get("/v1/whoami")
async def whoami(request: Request, caller: CallerOf) -> Response:
    """Who the broker takes the caller for, and what stands."""
    return json_answer(await asyncio.to_thread(_broker(request).evidence.whoami, caller))


@router.post("/v1/tasks", status_code=201, openapi_extra=takes(OpenTaskBody))
async def open_task(request: Request, caller: CallerOf) -> Response:
    """Open a task: it owns everything issued under it, until it ends."""
    body = await read_json(request, OpenTaskBody)
    ask = TaskAsk(
        purpose=body.purpose,
        trigger=body.trigger.kind,
        trigger_ref=body.trigger.ref,
        on_behalf_of=body.on_behalf_of,
        deadline_s=body.deadline_seconds,
        heartbeat_s=body.heartbeat_seconds,
        parent=body.parent,
    )
    return json_answer(await _broker(request).tasks.open(caller, ask), 201)


@router.get("/v1/tasks")
async def list_tasks(
    request: Request,
    caller: CallerOf,
    agent: str | None = None,
    state: TaskState | None = None,
    limit: int = Query(default=100, ge=1, le=1000),
) -> Response:
    """Tasks, newest first."""
    return listing(_broker(request).tasks.list(caller, agent=agent, state=state, limit=limit))


@router.get("/v1/tasks/{task_id}")
async def get_task(request: Request, caller: CallerOf, task_id: str) -> Response:
    """One task."""
    return json_answer(_broker(request).tasks.get(caller, task_id))


@router.get("/v1/tasks/{task_id}/receipt")
async def task_receipt(request: Request, caller: CallerOf, task_id: str) -> Response:
    """What triggered it, what was asked, decided and issued, what happened after, and when it ended."""
    return json_answer(await asyncio.to_thread(_broker(request).evidence.task_receipt, caller, task_id))


@router.post("/v1/tasks/{task_id}/heartbeat")
async def heartbeat(request: Request, caller: CallerOf, task_id: str) -> Response:
    """Still alive. A task with a heartbeat that stops beating expires, with everything under it."""
    return json_answer(await _broker(request).tasks.heartbeat(caller, task_id))


@router.post("/v1/tasks/{task_id}/end", openapi_extra=takes(EndTaskBody))
async def end_task(request: Request, caller: CallerOf, task_id: str) -> Response:
    """End a task and everything under it."""
    body = await read_json(request, EndTaskBody)
    return json_answer(await _broker(request).tasks.end(caller, task_id, body.outcome))


@router.get("/v1/decisions/{decision_id}")
async def explain(request: Request, caller: CallerOf, decision_id: str) -> Response:
    """Why a request was answered as it was."""
    return json_answer(_broker(request).evidence.explain(caller, decision_id))


@router.get("/v1/approvals")
async def list_approvals(
    request: Request, caller: CallerOf, limit: int = Query(default=100, ge=1, le=1000)
) -> Response:
    """Requests that wait for a human."""
    return listing(_broker(request).evidence.approvals(caller, limit=limit))


@router.get("/v1/approvals/{approval_id}")
async def get_approval(request: Request, caller: CallerOf, approval_id: str) -> Response:
    """One request that waits for a human."""
    return json_answer(_broker(request).evidence.approval(caller, approval_id))
