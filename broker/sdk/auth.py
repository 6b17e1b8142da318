"""Credentials for the HTTP client that an agent already has: httpx, httpx2 or requests.

    httpx2.Client(auth=TaskpassAuth(client, "https://invoices.example", scope="invoices:read"))

httpx and httpx2 each accept only their own kind of `Auth`, so this class is both when both are installed. requests
takes any callable. None of the three is imported unless somebody else did so or it is a dependency anyway.
"""

import asyncio
import importlib.util
from collections.abc import AsyncGenerator, Generator, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import httpx2

from broker.sdk.client import AsyncClient, Client
from broker.sdk.protocol import Credential

if TYPE_CHECKING:

    class _Auths:
        """To a type checker the two are one."""

elif importlib.util.find_spec("httpx") is None:
    _Auths = httpx2.Auth
else:
    import httpx

    class _Auths(httpx.Auth, httpx2.Auth):
        """What both clients accept."""


UNAUTHORIZED = 401


class TaskpassAuth(_Auths):
    """Puts a credential for one resource on every request; on 401 asks for another one, once, and tries again.

    With a `Client` it serves synchronous and asynchronous clients, with an `AsyncClient` only the latter. Use it on a
    client that talks to that resource and nobody else: it does not look at where a request goes. Refusals of the
    broker (ApprovalNeeded, Never, ...) come out of the request that needed the credential.
    """

    def __init__(
        self,
        client: Client | AsyncClient,
        resource: str,
        *,
        scope: str | Iterable[str] = (),
        authorization_details: Iterable[Mapping[str, Any]] | None = None,
        task: str | None = None,
    ) -> None:
        self._client = client
        self._resource = resource
        self._ask: dict[str, Any] = {
            "scope": scope if isinstance(scope, str) else tuple(scope),
            "authorization_details": None if authorization_details is None else tuple(authorization_details),
            "task": task,
        }

    def sync_auth_flow(self, request: Any) -> Generator[Any, Any, None]:  # noqa: ANN401  (of httpx or of httpx2)
        """For `httpx.Client` and `httpx2.Client`."""
        credential = self._obtain()
        response = yield _bearing(request, credential)
        if response.status_code == UNAUTHORIZED:
            self._client.discard(credential)
            yield _bearing(request, self._obtain())

    async def async_auth_flow(self, request: Any) -> AsyncGenerator[Any, Any]:  # noqa: ANN401
        """For `httpx.AsyncClient` and `httpx2.AsyncClient`."""
        credential = await self._aobtain()
        response = yield _bearing(request, credential)
        if response.status_code == UNAUTHORIZED:
            self._client.discard(credential)
            yield _bearing(request, await self._aobtain())

    def __call__(self, request: Any) -> Any:  # noqa: ANN401  (a requests.PreparedRequest)
        """For requests."""
        credential = self._obtain()
        body = request.body
        start = body.tell() if hasattr(body, "seek") and hasattr(body, "tell") else None

        def again(response: Any, **options: Any) -> Any:  # noqa: ANN401
            if response.status_code != UNAUTHORIZED or (start is None and hasattr(body, "__next__")):
                return response
            self._client.discard(credential)
            if start is not None:
                body.seek(start)
            _ = response.content  # the connection is only free once the answer is read
            response.close()
            second = _bearing(response.request.copy(), self._obtain())
            second.hooks["response"] = [hook for hook in second.hooks["response"] if hook is not again]
            answer = response.connection.send(second, **options)
            answer.history.append(response)
            answer.request = second
            return answer

        request.register_hook("response", again)
        return _bearing(request, credential)

    def _obtain(self) -> Credential:
        if isinstance(self._client, AsyncClient):
            raise TypeError("a synchronous HTTP client needs a TaskpassAuth that was made with a `Client`")
        return self._client.obtain(self._resource, **self._ask)

    async def _aobtain(self) -> Credential:
        if isinstance(self._client, AsyncClient):
            return await self._client.obtain(self._resource, **self._ask)
        return await asyncio.to_thread(self._obtain)


def _bearing(request: Any, credential: Credential) -> Any:  # noqa: ANN401
    request.headers["Authorization"] = f"Bearer {credential.token}"
    return request
