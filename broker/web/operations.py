"""What probes and monitoring ask: alive, ready and why not, metrics."""

import asyncio
import hashlib
import hmac

from fastapi import APIRouter, Request
from starlette.responses import Response

from broker.errors import NotAuthenticated, NotFound
from broker.web.guards import bearer
from broker.web.http import NO_STORE, json_answer
from broker.web.readiness import Reason

router = APIRouter()
scraping = APIRouter()
_FORMAT = "text/plain; version=0.0.4; charset=utf-8"


@router.get("/livez")
async def alive() -> Response:
    """The process answers. Says nothing about its ledger: a restart would not mend that."""
    return json_answer({"status": "alive"})


@router.get("/readyz")
async def ready(request: Request) -> Response:
    """Ready to issue, or every reason why not, with its code and what to do. What is degraded is ready."""
    reasons: list[Reason] = request.app.state.ready()
    refuses = any(not reason.degrades for reason in reasons)
    status = "not ready" if refuses else "degraded" if reasons else "ready"
    body = {"status": status, "reasons": [reason.to_json() for reason in reasons]}
    return json_answer(body, 503 if refuses else 200)


@scraping.get("/metrics")
async def metrics(request: Request) -> Response:
    """Metrics of all processes of this broker, for who knows the configured token."""
    expected: str | None = request.app.state.settings.metrics_token
    if expected is None:
        raise NotFound("Metrics are off: metrics.token_file is not configured.")
    shown = bearer(request)
    if shown is None or not hmac.compare_digest(_digest(shown), _digest(expected)):
        raise NotAuthenticated("Metrics are for who has the configured token: send it as a bearer.")
    body = await asyncio.to_thread(request.app.state.exposition)
    return Response(body, 200, NO_STORE, _FORMAT)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
