"""The feed's routes: snapshot, stream, acknowledgement."""

import re
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response, StreamingResponse

from broker.errors import Forbidden, Malformed, Unavailable
from broker.ledger.commands.admin import RegisterInstance
from broker.model import Caller, VerifierCaller
from broker.service import Broker
from broker.service.callers import unspent_proof
from broker.web.connections import pushing
from broker.web.feed import Feed
from broker.web.guards import CallerOf
from broker.web.http import NO_STORE, Body, json_answer, read_json, takes
from broker.wire import Cursor

router = APIRouter()
_INSTANCE = re.compile(r"[A-Za-z0-9_-]{8,64}")
MAX_BOUND_MS = 300_000


class AckBody(Body):
    """`POST /v1/revocations/ack`: everything up to `cursor` is live in this process. `stamp` is its own clock."""

    instance: str
    cursor: str
    stamp: int


@router.get("/v1/revocations")
async def snapshot(request: Request, caller: CallerOf) -> Response:  # noqa: ARG001  (guarded)
    """All kills that can still matter."""
    feed: Feed = request.app.state.feed
    return json_answer(feed.snapshot())


@router.get("/v1/revocations/stream")
async def stream(
    request: Request,
    caller: CallerOf,
    instance: str,
    audience: Annotated[list[str], Query(min_length=1, max_length=50)],
    mode: Literal["strict", "best_effort"] = "strict",
    bound_ms: int = Query(default=5_000, ge=100, le=MAX_BOUND_MS),
    leeway_ms: int = Query(default=0, ge=0, le=MAX_BOUND_MS),
    stamp: int | None = Query(default=None, ge=0, le=1 << 62),
    cursor: str | None = None,
) -> Response:
    """Server-sent events: hello, snapshot or what was missed, then every kill, and a heartbeat each second."""
    broker: Broker = request.app.state.broker
    feed: Feed = request.app.state.feed
    assert isinstance(caller, VerifierCaller)
    if not _INSTANCE.fullmatch(instance):
        raise Malformed("instance must be 8 to 64 letters, digits, - or _, random for each process.")
    foreign = [each for each in audience if each not in caller.verifier.audiences]
    if foreign:
        raise Forbidden(f"Verifier {caller.id} is not registered for the audience {foreign[0][:200]}.")
    at = _cursor(cursor) if cursor is not None else None
    if feed.listening >= request.app.state.settings.max_streams:
        raise Unavailable("This broker has as many verifiers as it takes: try again, or another one.", retry_after=5)
    opened = await broker.callers.register_instance(
        caller,
        RegisterInstance(
            instance=instance,
            verifier=caller.id,
            audiences=audience,
            mode=mode,
            bound_ms=bound_ms,
            leeway_ms=leeway_ms,
            position=at.position if at else -1,
            proof=unspent_proof(caller),
        ),
    )
    listener = feed.connect(
        instance=instance,
        verifier=caller.id,
        stamp=stamp,
        cursor=at,
        hello={"session_token": opened.token, "expires_in": opened.expires_in},
        push=pushing(request.scope),
    )
    headers = {**NO_STORE, "x-accel-buffering": "no"}
    return StreamingResponse(feed.stream(listener), media_type="text/event-stream", headers=headers)


@router.post("/v1/revocations/ack", status_code=204, openapi_extra=takes(AckBody))
async def acknowledge(request: Request) -> Response:
    """An instance reports what it has applied."""
    caller: Caller = request.state.caller
    feed: Feed = request.app.state.feed
    body = await read_json(request, AckBody)
    if not 0 <= body.stamp <= 1 << 62:
        raise Malformed("stamp must be a non-negative number.")
    feed.acknowledge(verifier=caller.id, instance=body.instance, cursor=_cursor(body.cursor), stamp=body.stamp)
    return Response(status_code=204)


def _cursor(text: str) -> Cursor:
    try:
        return Cursor.parse(text)
    except ValueError as error:
        raise Malformed(f"{error}.") from None
