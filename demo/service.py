"""The demo's downstream service, in its own process: invoices and credit notes, for whoever has the token for it.

It checks tokens offline with the SDK and follows the broker's revocation feed, so a killed token stops working here
without anybody asking the broker about it.

    python -m demo.service ISSUER KEY_FILE URL_FILE
"""

import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Response
from pydantic import BaseModel

from broker.sdk.access_token import AccessToken
from broker.sdk.adapters.fastapi import require
from broker.sdk.identity import KeyIdentity
from broker.sdk.verifier import Verifier

INVOICES = {
    "INV-1001": {"customer": "Ada L.", "lines": ["12 x filter"], "amount_cents": 8400},
    "INV-1002": {"customer": "Grace H.", "lines": ["1 x compressor"], "amount_cents": 41900},
}


class Credit(BaseModel):
    """A proposed credit."""

    invoice: str
    amount_cents: int


def create_app(verifier: Verifier) -> FastAPI:
    """The service, behind this verifier."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with verifier:
            yield

    app = FastAPI(title="Invoices", lifespan=lifespan)
    reader = Annotated[AccessToken, Depends(require(verifier, "invoices:read"))]
    proposer = Annotated[AccessToken, Depends(require(verifier, actions=["credits:propose"]))]

    @app.get("/readyz")
    async def ready(response: Response) -> bool:
        response.status_code = 200 if verifier.fresh else 503
        return verifier.fresh

    @app.get("/invoices/{invoice}")
    async def read(invoice: str, token: reader) -> dict[str, object]:
        if invoice not in INVOICES:
            raise HTTPException(404, "no such invoice")
        return {"invoice": invoice, **INVOICES[invoice], "read_by": token.agent}

    @app.post("/credits", status_code=201)
    async def propose(credit: Credit, token: proposer) -> dict[str, object]:
        # The token is good for exactly what was decided on: this invoice, this amount.
        if token.parameters("credits:propose") != credit.model_dump():
            raise HTTPException(403, "the token was issued for another credit")
        return {"proposed": credit.amount_cents, "on": credit.invoice, "by": token.agent, "task": token.task}

    return app


def main(issuer: str, key: str, url_file: Path) -> None:
    """Serve on a free port of loopback, and write its address to a file."""
    verifier = Verifier(
        issuer=issuer,
        audience=["https://invoices.example.com", "https://credits.example.com"],
        identity=KeyIdentity(client_id="billing", key=key),
    )
    listening = socket.create_server(("127.0.0.1", 0))
    url_file.write_text(f"http://127.0.0.1:{listening.getsockname()[1]}")
    server = uvicorn.Server(uvicorn.Config(create_app(verifier), log_level="warning", access_log=False))
    server.run(sockets=[listening])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
