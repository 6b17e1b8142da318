"""The verifier as a FastAPI dependency.

    @app.get("/invoices/{id}")
    async def read(id: str, token: Annotated[AccessToken, Depends(require(verifier, "invoices:read"))]) -> Invoice: ...

Enter the verifier in the application's lifespan.
"""

from collections.abc import Awaitable, Callable, Collection
from typing import Annotated

from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from broker.sdk.access_token import AccessToken
from broker.sdk.adapters import answer_headers, bearer
from broker.sdk.errors import Refused
from broker.sdk.verifier import Verifier

_documented = HTTPBearer(auto_error=False, bearerFormat="JWT", scheme_name="Taskpass")


def require(
    verifier: Verifier, *scopes: str, actions: Collection[str] = ()
) -> Callable[[Request, HTTPAuthorizationCredentials | None], Awaitable[AccessToken]]:
    """A dependency that gives the caller's AccessToken, or answers 401, 403 or 503 in its place.

    `scopes` and `actions` mean what they mean to `Verifier.verify`; with neither, any good token will do.
    """

    async def checked(
        request: Request,
        _: Annotated[HTTPAuthorizationCredentials | None, Depends(_documented)],  # only so that OpenAPI shows it
    ) -> AccessToken:
        try:
            return await verifier.averify(bearer(request.headers.raw), scopes=scopes, actions=actions)
        except Refused as refused:
            verifier.refusal(refused, scopes=(*scopes, *actions))
            raise HTTPException(refused.status, detail=refused.reason, headers=answer_headers(refused)) from refused

    return checked
