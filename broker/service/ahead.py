"""What a backend may begin with before its intent is durable: a transaction that is confirmed after that, or undone."""

from concurrent.futures import Future
from types import TracebackType
from typing import Self

from broker.service.calls import Busy, Calls, Running
from issuers import Handle, Intent, IssuerError, IssuesWhen, Minted, Order, SecretIssuer, Wish


class Ahead:
    """One credential, at whose backend work may have begun. Whatever is not asked for by `make` is undone."""

    def __init__(self, *, patience_s: float) -> None:
        """What was begun waits for its intent no longer than that."""
        self._patience_s = patience_s
        self._running: Running[Minted | None] | None = None
        self._intent: Future[Intent | None] = Future()

    def begin(self, calls: Calls, issuer: SecretIssuer, wish: Wish) -> None:
        """Have the backend begin, if it is one that can, and not busy."""
        self.undo()
        if not isinstance(issuer, IssuesWhen):
            return
        intent: Future[Intent | None] = Future()
        self._intent = intent
        try:
            self._running = calls.begin(issuer.issue_when, wish, lambda: self._waited_for(intent))
        except Busy:
            self._running = None

    async def make(self, calls: Calls, issuer: SecretIssuer, order: Order, prepared: Handle) -> Minted:
        """The credential, now that its intent is durable. Raises as `Calls.run` and `SecretIssuer.issue` do."""
        running, self._running = self._running, None
        if running is None:
            return await calls.run(issuer.issue, order, prepared)
        self._intent.set_result(Intent(order, prepared))
        minted = await calls.result(running)
        assert minted is not None
        return minted

    def undo(self) -> None:
        """Nothing is wanted of what was begun."""
        if self._running is not None:
            self._running.call.cancel()
            self._intent.set_result(None)
            self._running = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.undo()

    def _waited_for(self, intent: "Future[Intent | None]") -> Intent | None:
        try:
            return intent.result(self._patience_s)
        except TimeoutError:
            sentence = "The ledger took too long, so the backend was asked for nothing."
            raise IssuerError(sentence, happened=False) from None
