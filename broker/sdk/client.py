"""The agent's client, for threads (`Client`) and for asyncio (`AsyncClient`).

    client = Client(issuer="https://taskpass.example", identity=FileIdentity("/var/run/secrets/taskpass/token"))
    with client.task(purpose="Answer dispute 4711") as task:
        credential = task.obtain("https://invoices.example", scope="invoices:read")

A credential is asked for when it is first needed, kept until about four fifths of its life are over, and never used
after its task has ended. Refusals are raised as the types of `errors`. The HTTP work is httpx2's; pass `http` to bring
a client with your own proxy, certificates or transport.
"""

import asyncio
import threading
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar
from weakref import WeakValueDictionary

import httpx2

from broker.sdk import protocol, secret
from broker.sdk.clock import Elapsed, elapsed_ns
from broker.sdk.errors import Unavailable
from broker.sdk.identity import Identity
from broker.sdk.protocol import Ask, Assertion, Credential, Flow, Request, Response, Session
from broker.sdk.secret import Secret
from broker.sdk.task import AsyncTask, Task, TaskWish
from broker.sdk.wallet import Wallet

T = TypeVar("T")


class _Agent:
    """What both colours of the client share: who asks, what it holds, and how that is come by."""

    def __init__(self, *, issuer: str, identity: Identity, elapsed: Elapsed) -> None:
        self.issuer = protocol.checked_issuer(issuer)
        self._identity = identity
        self._session = Session()
        self._wallet = Wallet(elapsed=elapsed)

    def discard(self, credential: Credential) -> None:
        """Forget a credential that its service refused; the next `obtain` asks anew."""
        self._wallet.discard(credential)

    def _obtaining(self, ask: Ask) -> Flow[Credential]:
        """A credential for `ask`, for whoever has its turn: one asks at a time."""
        if (kept := self._wallet.fresh(ask)) is not None:  # who waited finds what the one before got
            return kept
        asked_at = self._wallet.now()
        try:
            credential = yield from protocol.obtain(self.issuer, ask)
        except Unavailable:
            if (kept := self._wallet.unexpired(ask)) is not None:
                return kept
            raise
        self._wallet.put(ask, credential, asked_at=asked_at)
        return credential


class Client(_Agent):
    """Asks the broker on behalf of one agent. Safe to share between threads."""

    def __init__(
        self,
        *,
        issuer: str,
        identity: Identity,
        http: httpx2.Client | None = None,
        elapsed: Elapsed = elapsed_ns,
    ) -> None:
        """Raises ValueError for an issuer that is neither https nor on this machine."""
        super().__init__(issuer=issuer, identity=identity, elapsed=elapsed)
        self._owned = None if http is not None else httpx2.Client(timeout=protocol.TIMEOUT_S, follow_redirects=False)
        self._http = http if http is not None else self._owned
        self._locks: WeakValueDictionary[Ask, threading.Lock] = WeakValueDictionary()

    def obtain(
        self,
        resource: str,
        *,
        scope: str | Iterable[str] = (),
        authorization_details: Iterable[Mapping[str, Any]] | None = None,
        task: str | None = None,
    ) -> Credential:
        """A credential for `resource`, kept or new. Raises ApprovalNeeded, Never, Held, and the rest of BrokerError."""
        ask = Ask.of(resource, scope=scope, authorization_details=authorization_details, task=task)
        if (kept := self._wallet.fresh(ask)) is not None:
            return kept
        with self._locks.setdefault(ask, threading.Lock()):
            return self.run(self._obtaining(ask))

    def task(
        self,
        *,
        purpose: str,
        trigger: Mapping[str, str] | None = None,
        on_behalf_of: str | None = None,
        deadline: int | None = None,
        heartbeat: int | None = None,
        parent: str | None = None,
    ) -> Task:
        """A task, as a context manager: opened on entry, ended on exit however that comes about.

        `deadline` and `heartbeat` are seconds. With a heartbeat a thread keeps the task alive, and the broker ends it
        when this process no longer does.
        """
        wish = TaskWish(purpose, trigger, on_behalf_of, deadline, heartbeat, parent)
        return Task(client=self, wallet=self._wallet, session=self._session, wish=wish)

    def secret(
        self,
        resource: str,
        *,
        actions: Iterable[str] = (),
        parameters: Mapping[str, Any] | None = None,
        task: str | None = None,
        ttl: int | None = None,
    ) -> Secret:
        """A new secret of `resource`, for `ttl` seconds at most. Each call makes one: keep it as long as you need it.

        Raises ApprovalNeeded, Never, Held, and the rest of BrokerError.
        """
        body = secret.wish(resource, actions=actions, parameters=parameters, task=task, ttl_s=ttl)
        return self.run(secret.obtain_secret(self.issuer, self._session, body))

    def secret_state(self, secret_id: str) -> dict[str, Any]:
        """What the broker knows of one of this agent's secrets, its values excepted."""
        return self.run(secret.secret_state(self.issuer, self._session, secret_id))

    def renew_secret(self, secret_id: str, *, ttl: int | None = None) -> dict[str, Any]:
        """Have a secret live `ttl` seconds from now, or as long again as at first, within its task; its state then.

        Raises BrokerError for one that has ended, or that cannot live longer: see `Secret.renewable`.
        """
        return self.run(secret.renew_secret(self.issuer, self._session, secret_id, ttl))

    def revoke_secret(self, secret_id: str) -> dict[str, Any]:
        """Give a secret back early; its state then, which is `revoked` only once the backend confirmed it."""
        return self.run(secret.revoke_secret(self.issuer, self._session, secret_id))

    def whoami(self) -> dict[str, Any]:
        """Who the broker takes this workload for."""
        return self.run(protocol.whoami(self.issuer, self._session))

    def run(self, flow: Flow[T]) -> T:
        """Drive one of `protocol`'s flows with this client's transport and identity."""
        return protocol.drive(
            flow,
            lambda need: self._identity.assertion(need.audience) if isinstance(need, Assertion) else self._send(need),
        )

    def close(self) -> None:
        """Close the HTTP client, unless it was brought along."""
        if self._owned is not None:
            self._owned.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, request: Request) -> Response:
        assert self._http is not None
        body = bytearray()
        try:
            with self._http.stream(
                request.method,
                request.url,
                headers=dict(request.headers),
                content=request.body,
                timeout=_timeout(request),
            ) as answer:
                for chunk in answer.iter_bytes():
                    body += chunk
                    _bounded(body)
                return Response(answer.status_code, _lowered(answer.headers), bytes(body))
        except httpx2.HTTPError as error:
            raise _unanswered(error) from error


class AsyncClient(_Agent):
    """`Client` for asyncio: the same flows, awaited. Identity sources, which may block, run in a thread."""

    def __init__(
        self,
        *,
        issuer: str,
        identity: Identity,
        http: httpx2.AsyncClient | None = None,
        elapsed: Elapsed = elapsed_ns,
    ) -> None:
        """Raises ValueError for an issuer that is neither https nor on this machine."""
        super().__init__(issuer=issuer, identity=identity, elapsed=elapsed)
        self._owned = (
            None if http is not None else httpx2.AsyncClient(timeout=protocol.TIMEOUT_S, follow_redirects=False)
        )
        self._http = http if http is not None else self._owned
        self._locks: WeakValueDictionary[Ask, asyncio.Lock] = WeakValueDictionary()

    async def obtain(
        self,
        resource: str,
        *,
        scope: str | Iterable[str] = (),
        authorization_details: Iterable[Mapping[str, Any]] | None = None,
        task: str | None = None,
    ) -> Credential:
        """A credential for `resource`, kept or new. Raises ApprovalNeeded, Never, Held, and the rest of BrokerError."""
        ask = Ask.of(resource, scope=scope, authorization_details=authorization_details, task=task)
        if (kept := self._wallet.fresh(ask)) is not None:
            return kept
        async with self._locks.setdefault(ask, asyncio.Lock()):
            return await self.run(self._obtaining(ask))

    def task(
        self,
        *,
        purpose: str,
        trigger: Mapping[str, str] | None = None,
        on_behalf_of: str | None = None,
        deadline: int | None = None,
        heartbeat: int | None = None,
        parent: str | None = None,
    ) -> AsyncTask:
        """A task, as an asynchronous context manager: opened on entry, ended on exit however that comes about.

        `deadline` and `heartbeat` are seconds. With a heartbeat a background task keeps it alive, and the broker ends
        it when this process no longer does.
        """
        wish = TaskWish(purpose, trigger, on_behalf_of, deadline, heartbeat, parent)
        return AsyncTask(client=self, wallet=self._wallet, session=self._session, wish=wish)

    async def secret(
        self,
        resource: str,
        *,
        actions: Iterable[str] = (),
        parameters: Mapping[str, Any] | None = None,
        task: str | None = None,
        ttl: int | None = None,
    ) -> Secret:
        """A new secret of `resource`, for `ttl` seconds at most. Each call makes one: keep it as long as you need it.

        Raises ApprovalNeeded, Never, Held, and the rest of BrokerError.
        """
        body = secret.wish(resource, actions=actions, parameters=parameters, task=task, ttl_s=ttl)
        return await self.run(secret.obtain_secret(self.issuer, self._session, body))

    async def secret_state(self, secret_id: str) -> dict[str, Any]:
        """What the broker knows of one of this agent's secrets, its values excepted."""
        return await self.run(secret.secret_state(self.issuer, self._session, secret_id))

    async def renew_secret(self, secret_id: str, *, ttl: int | None = None) -> dict[str, Any]:
        """Have a secret live `ttl` seconds from now, or as long again as at first, within its task; its state then.

        Raises BrokerError for one that has ended, or that cannot live longer: see `Secret.renewable`.
        """
        return await self.run(secret.renew_secret(self.issuer, self._session, secret_id, ttl))

    async def revoke_secret(self, secret_id: str) -> dict[str, Any]:
        """Give a secret back early; its state then, which is `revoked` only once the backend confirmed it."""
        return await self.run(secret.revoke_secret(self.issuer, self._session, secret_id))

    async def whoami(self) -> dict[str, Any]:
        """Who the broker takes this workload for."""
        return await self.run(protocol.whoami(self.issuer, self._session))

    async def run(self, flow: Flow[T]) -> T:
        """Drive one of `protocol`'s flows with this client's transport and identity."""
        given: Response | str | Unavailable | None = None
        while True:  # as in `protocol.drive`
            try:
                need = flow.throw(given) if isinstance(given, Unavailable) else flow.send(given)
            except StopIteration as end:
                result: T = end.value
                return result
            try:
                if isinstance(need, Assertion):
                    given = await asyncio.to_thread(self._identity.assertion, need.audience)
                else:
                    given = await self._send(need)
            except Unavailable as error:
                given = error

    async def aclose(self) -> None:
        """Close the HTTP client, unless it was brought along."""
        if self._owned is not None:
            await self._owned.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _send(self, request: Request) -> Response:
        assert self._http is not None
        body = bytearray()
        try:
            async with self._http.stream(
                request.method,
                request.url,
                headers=dict(request.headers),
                content=request.body,
                timeout=_timeout(request),
            ) as answer:
                async for chunk in answer.aiter_bytes():
                    body += chunk
                    _bounded(body)
                return Response(answer.status_code, _lowered(answer.headers), bytes(body))
        except httpx2.HTTPError as error:
            raise _unanswered(error) from error


def _bounded(body: bytearray) -> None:
    if len(body) > protocol.MAX_ANSWER:
        raise Unavailable(f"The broker sent an answer of more than {protocol.MAX_ANSWER} bytes.")


def _timeout(request: Request) -> Any:  # noqa: ANN401  (the library has no public type for "the client's own")
    return httpx2.USE_CLIENT_DEFAULT if request.timeout_s is None else request.timeout_s


def _lowered(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _unanswered(error: httpx2.HTTPError) -> Unavailable:
    return Unavailable(f"The broker did not answer: {type(error).__name__}.")
