"""A verifier for services without an event loop: the feed runs on a thread of its own, checks on the caller's."""

import asyncio
import threading
from collections.abc import Collection
from typing import Self

from broker.sdk.access_token import AccessToken
from broker.sdk.errors import Refused
from broker.sdk.feed import FeedStatus
from broker.sdk.verifier import UnknownSigningKey, Verifier

LOOK_FOR_KEY_S = 2.0


class ThreadedVerifier:
    """A running `Verifier`. Made by `Verifier.start_in_thread`; starting waits as entering the verifier would.

    Start it after forking: threads do not survive a fork, and the child would only grow stale.
    """

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="taskpass-feed", daemon=True)
        self._thread.start()
        self._started.wait()

    def verify(self, token: str, *, scopes: Collection[str] = (), actions: Collection[str] = ()) -> AccessToken:
        """As `Verifier.verify`; for a key that is not known the feed's thread is asked to look for it, briefly."""
        try:
            return self._verifier.verify(token, scopes=scopes, actions=actions)
        except UnknownSigningKey:
            if not self._loop.is_running():
                raise
            looking = self._verifier.averify(token, scopes=scopes, actions=actions)
            try:
                return asyncio.run_coroutine_threadsafe(looking, self._loop).result(LOOK_FOR_KEY_S)
            except TimeoutError:
                pass
            raise

    def refusal(self, refused: Refused, *, scopes: Collection[str] = ()) -> Refused:
        """As `Verifier.refusal`."""
        return self._verifier.refusal(refused, scopes=scopes)

    @property
    def status(self) -> FeedStatus | None:
        """How the feed is doing; None once stopped."""
        return self._verifier.status

    @property
    def fresh(self) -> bool:
        """Whether this process knows of every kill within the bound."""
        return self._verifier.fresh

    def stop(self) -> None:
        """Stop following. A strict verifier refuses everything once its bound has passed."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._follow())

    async def _follow(self) -> None:
        try:
            async with self._verifier:
                self._started.set()
                await self._stop.wait()
        finally:
            self._started.set()  # also when starting failed: the caller must not wait for ever
