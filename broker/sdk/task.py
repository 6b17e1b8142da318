"""A task as a context manager: whatever happens inside, the task is ended, and everything issued under it with it."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from broker.sdk import protocol
from broker.sdk.errors import BrokerError, SdkError, TaskOver, Unavailable
from broker.sdk.protocol import Credential, Flow, Session
from broker.sdk.secret import Secret
from broker.sdk.wallet import Wallet

if TYPE_CHECKING:
    from broker.sdk.client import AsyncClient, Client

BEATS_PER_TIMER = 3
"""Heartbeats per dead-man period, so that two may be lost."""

TRIES_TO_END = 3

logger = logging.getLogger(__name__)


class TaskWish(NamedTuple):
    """What the agent says about a task when it opens it. Times in seconds."""

    purpose: str
    trigger: Mapping[str, str] | None
    on_behalf_of: str | None
    deadline: int | None
    heartbeat: int | None
    parent: str | None


class _TaskState:
    """What both colours of a task share: what is known about it, and the flows of its life."""

    outcome: str | None = None
    """What to record at the end. Set it inside the block; by default "completed", or "failed" after an exception."""

    def __init__(self, *, wallet: Wallet, session: Session, wish: TaskWish) -> None:
        self._wallet = wallet
        self._session = session
        self._wish = wish
        self._body: dict[str, Any] = {}

    @property
    def id(self) -> str:
        """The task's id. Raises RuntimeError before the block is entered."""
        if not self._body:
            raise RuntimeError("the task is not open: use it as a context manager")
        return str(self._body["id"])

    @property
    def details(self) -> Mapping[str, Any]:
        """The task as the broker described it when it opened."""
        return self._body

    def _opening(self, issuer: str) -> Flow[dict[str, Any]]:
        wish = self._wish
        return protocol.open_task(
            issuer,
            self._session,
            purpose=wish.purpose,
            trigger=wish.trigger,
            on_behalf_of=wish.on_behalf_of,
            deadline_s=wish.deadline,
            heartbeat_s=wish.heartbeat,
            parent=wish.parent,
        )

    def _ending(self, issuer: str, error: BaseException | None) -> Flow[dict[str, Any]]:
        outcome = self.outcome or ("completed" if error is None else "failed")
        for _ in range(TRIES_TO_END - 1):
            with contextlib.suppress(Unavailable):
                return (yield from protocol.end_task(issuer, self._session, self.id, outcome=outcome))
        return (yield from protocol.end_task(issuer, self._session, self.id, outcome=outcome))

    def _beat_every(self) -> float | None:
        period = self._body.get("heartbeat_seconds") or self._wish.heartbeat
        return None if not period else max(float(period) / BEATS_PER_TIMER, 0.1)

    def _beat_failed(self, error: SdkError) -> bool:
        """Whether to stop beating: the task is over, as against the broker being away for a while."""
        if isinstance(error, TaskOver):
            logger.warning("task %s is over: %s", self.id, error)
            self._wallet.end(self.id)
            return True
        logger.warning("heartbeat of task %s failed: %s", self.id, error)
        return False

    def _not_ended(self, failure: BrokerError, error: BaseException | None) -> None:
        """An error of the block matters more than that of the ending, which the task's deadline makes up for."""
        if error is None:
            raise failure
        error.add_note(f"Task {self.id} could not be ended either: {failure}")


class Task(_TaskState):
    """One piece of work, for threads. Make it with `Client.task`."""

    def __init__(self, *, client: "Client", wallet: Wallet, session: Session, wish: TaskWish) -> None:
        super().__init__(wallet=wallet, session=session, wish=wish)
        self._client = client
        self._done = threading.Event()
        self._heart: threading.Thread | None = None

    def obtain(
        self,
        resource: str,
        *,
        scope: str | Iterable[str] = (),
        authorization_details: Iterable[Mapping[str, Any]] | None = None,
    ) -> Credential:
        """A credential under this task. Raises TaskOver once it has ended, and as `Client.obtain` does."""
        return self._client.obtain(resource, scope=scope, authorization_details=authorization_details, task=self.id)

    def secret(
        self,
        resource: str,
        *,
        actions: Iterable[str] = (),
        parameters: Mapping[str, Any] | None = None,
        ttl: int | None = None,
    ) -> Secret:
        """A new secret under this task, which ends with it. Raises as `Client.secret` does."""
        return self._client.secret(resource, actions=actions, parameters=parameters, task=self.id, ttl=ttl)

    def __enter__(self) -> Self:
        self._body = self._client.run(self._opening(self._client.issuer))
        if (every := self._beat_every()) is not None:
            self._heart = threading.Thread(
                target=self._keep_alive, args=(every,), name="taskpass-heartbeat", daemon=True
            )
            self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._wallet.end(self.id)
        if self._heart is not None:
            self._heart.join(timeout=protocol.TIMEOUT_S)
        try:
            self._client.run(self._ending(self._client.issuer, error))
        except BrokerError as failure:
            self._not_ended(failure, error)

    def _keep_alive(self, every: float) -> None:
        while not self._done.wait(every):
            try:
                self._client.run(protocol.beat(self._client.issuer, self._session, self.id))
            except SdkError as error:
                if self._beat_failed(error):
                    return


class AsyncTask(_TaskState):
    """One piece of work, for asyncio. Make it with `AsyncClient.task`."""

    def __init__(self, *, client: "AsyncClient", wallet: Wallet, session: Session, wish: TaskWish) -> None:
        super().__init__(wallet=wallet, session=session, wish=wish)
        self._client = client
        self._heart: asyncio.Task[None] | None = None

    async def obtain(
        self,
        resource: str,
        *,
        scope: str | Iterable[str] = (),
        authorization_details: Iterable[Mapping[str, Any]] | None = None,
    ) -> Credential:
        """A credential under this task. Raises TaskOver once it has ended, and as `AsyncClient.obtain` does."""
        return await self._client.obtain(
            resource, scope=scope, authorization_details=authorization_details, task=self.id
        )

    async def secret(
        self,
        resource: str,
        *,
        actions: Iterable[str] = (),
        parameters: Mapping[str, Any] | None = None,
        ttl: int | None = None,
    ) -> Secret:
        """A new secret under this task, which ends with it. Raises as `AsyncClient.secret` does."""
        return await self._client.secret(resource, actions=actions, parameters=parameters, task=self.id, ttl=ttl)

    async def __aenter__(self) -> Self:
        self._body = await self._client.run(self._opening(self._client.issuer))
        if (every := self._beat_every()) is not None:
            self._heart = asyncio.create_task(self._keep_alive(every), name="taskpass-heartbeat")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wallet.end(self.id)
        if self._heart is not None:
            self._heart.cancel()
            await asyncio.wait([self._heart])
        try:
            await self._client.run(self._ending(self._client.issuer, error))
        except BrokerError as failure:
            self._not_ended(failure, error)

    async def _keep_alive(self, every: float) -> None:
        while True:
            await asyncio.sleep(every)
            try:
                await self._client.run(protocol.beat(self._client.issuer, self._session, self.id))
            except SdkError as error:
                if self._beat_failed(error):
                    return
