"""The ledger for auditors: events, checkpoints, proofs."""

import asyncio

from fastapi import APIRouter, Query, Request
from starlette.responses import PlainTextResponse, Response

from broker.service import Broker
from broker.web.guards import CallerOf
from broker.web.http import NO_STORE, json_answer, listing

router = APIRouter()
_MAX_POSITION = 1 << 53


def _broker(request: Request) -> Broker:
    broker: Broker = request.app.state.broker
    return broker


@router.get("/v1/ledger")
async def events(
    request: Request,
    caller: CallerOf,
    start: int = Query(default=0, ge=0, le=_MAX_POSITION, alias="from"),
    limit: int = Query(default=100, ge=1, le=1000),
) -> Response:
    """Events from a position on, with the exact bytes that the tree covers."""
    return listing(await asyncio.to_thread(_broker(request).evidence.events, caller, start=start, limit=limit))


@router.get("/v1/ledger/checkpoint")
async def checkpoint(request: Request, caller: CallerOf) -> Response:  # noqa: ARG001  (guarded)
    """A signed checkpoint of the tree as it stands (C2SP tlog-checkpoint)."""
    return PlainTextResponse(await asyncio.to_thread(_broker(request).evidence.checkpoint), headers=NO_STORE)


@router.get("/v1/ledger/proof/{seq}")
async def inclusion(
    request: Request,
    caller: CallerOf,  # noqa: ARG001  (guarded)
    seq: int,
    size: int | None = Query(default=None, ge=1, le=_MAX_POSITION),
) -> Response:
    """The proof that an event is in the tree."""
    return json_answer(await asyncio.to_thread(_broker(request).evidence.inclusion, seq, size))


@router.get("/v1/ledger/consistency")
async def consistency(
    request: Request,
    caller: CallerOf,  # noqa: ARG001  (guarded)
    first: int = Query(alias="from", ge=1, le=_MAX_POSITION),
    second: int | None = Query(default=None, alias="to", ge=1, le=_MAX_POSITION),
) -> Response:
    """The proof that an earlier tree is a prefix of a later one: nothing was rewritten."""
    return json_answer(await asyncio.to_thread(_broker(request).evidence.consistency, first, second))
