"""The verifier as ASGI middleware, for any framework.

    app = TaskpassMiddleware(app, verifier=verifier, scopes={"/invoices": ["invoices:read"]}, public=["/livez"])

The application finds the AccessToken in `scope["taskpass"]` (Starlette: `request.state.taskpass`).
"""

import json
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from typing import Any

from broker.sdk.adapters import answer_headers, bearer
from broker.sdk.errors import InsufficientScope, Refused
from broker.sdk.verifier import Verifier

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

POLICY_VIOLATION = 1008


class TaskpassMiddleware:
    """Lets through what carries a good token for its path, HTTP and WebSocket alike. Lifespan events pass."""

    def __init__(
        self,
        app: App,
        *,
        verifier: Verifier,
        scopes: Mapping[str, Collection[str]] | None = None,
        public: Collection[str] = (),
    ) -> None:
        """`scopes` maps path prefixes, whole segments of them, to what they need; the longest that fits decides.

        With such a map a path that nothing in it covers is refused: give "/" a value for the rest. Without one, any
        good token will do. The exact paths in `public` need no token.
        """
        self._app = app
        self._verifier = verifier
        self._public = frozenset(public)
        self._scopes = None if scopes is None else sorted(scopes.items(), key=lambda item: len(item[0]), reverse=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] not in {"http", "websocket"} or scope["path"] in self._public:
            await self._app(scope, receive, send)
            return
        needed: Collection[str] = ()
        try:
            token = bearer(scope["headers"])
            needed = self._needed(scope["path"])
            verified = await self._verifier.averify(token, scopes=needed)
        except Refused as refused:
            await _refuse(self._verifier.refusal(refused, scopes=needed), scope, send)
            return
        state = {**scope.get("state", {}), "taskpass": verified}
        await self._app({**scope, "taskpass": verified, "state": state}, receive, send)

    def _needed(self, path: str) -> Collection[str]:
        if self._scopes is None:
            return ()
        for prefix, scopes in self._scopes:
            if path == prefix or path.startswith(prefix.rstrip("/") + "/"):
                return scopes
        raise InsufficientScope("No scope opens this path.")


async def _refuse(refused: Refused, scope: Scope, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": ""})
        return
    body = json.dumps({"error": refused.code, "error_description": refused.reason}).encode()
    headers = {**answer_headers(refused), "content-type": "application/json", "content-length": str(len(body))}
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refused.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
