"""What mints outbound credentials: one protocol, one file per kind. Usable without the broker.

An issuer receives an `Order` whose every bound was fixed in the ledger's commit, and returns the credential. It decides
nothing. How its credentials end is declared, so that a receipt never promises more than is true.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, runtime_checkable


class Ending(StrEnum):
    """How a credential of this kind stops working before it expires."""

    FEED = "feed"  # verifiers refuse it once the kill reaches them
    REVOCABLE = "revocable"  # the issuer takes it back at the backend
    EXPIRES_ONLY = "expires-only"  # it cannot be taken back


class Order(NamedTuple):
    """One credential to mint, as committed at ledger position `seq`. Times in seconds since the epoch."""

    seq: int
    jti: str
    kid: str
    agent: str
    task: str
    audience: str
    actions: tuple[str, ...]  # granted outright
    limited: tuple[str, ...]  # granted with exactly these parameters
    parameters: Mapping[str, Any]
    iat: int
    exp: int
    settings: Mapping[str, Any] = MappingProxyType({})  # the resource's own, for the issuer that it names
    deadline: int | None = None  # when the task ends: what is opened for all of it lives no longer. Default: `exp`


class TokenIssuer(Protocol):
    """Signs what the commit fixed, many at once. An exception in a slot means that nothing usable was made for it."""

    kind: str
    ending: Ending

    async def issue_all(self, orders: Sequence[Order]) -> Sequence[str | Exception]:
        """The credential for each order, checked against it before it is returned."""
        ...


Handle = Mapping[str, str]
"""What finds a credential at its backend again. Recorded in the ledger and shown in receipts, so never a secret."""


@dataclass(frozen=True, slots=True)
class Minted:
    """A credential made at a backend: its secret members by name, what finds it again, and when it ends by itself."""

    values: Mapping[str, str] = field(repr=False)
    handle: Handle
    exp: int


class Standing(StrEnum):
    """What a backend says of one credential when it is asked."""

    LIVE = "live"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Found:
    """One look at the backend. `note` says what the state alone does not: sessions that outlive a dropped login.

    `by_itself`: it is gone because its time was over, and nobody could end it before.
    """

    standing: Standing
    note: str | None = None
    by_itself: bool = False


class IssuerError(Exception):
    """The backend refused, or did not answer. `sentence` is safe to show; it never repeats what the backend said.

    `happened` is False when the backend certainly did nothing, None when nobody knows: then it is treated as done, and
    revoked. `retry_after_s` is the backend's own wish.
    """

    def __init__(self, sentence: str, *, happened: bool | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.happened = happened
        self.retry_after_s = retry_after_s


class NotRenewable(IssuerError):
    """The backend lets this one live no longer than it was made for. Nothing was done."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence, happened=False)


class Makes(Protocol):
    """How a credential comes to be, in two steps."""

    def prepare(self, order: Order) -> Handle:
        """What must be on record before `issue` may have an effect: the name of the login to come, or the accessor of
        the session that will own the lease. Has no effect that outlives its own short limit when it is never recorded.
        """
        ...

    def issue(self, order: Order, prepared: Handle) -> Minted:
        """Make the credential. `Minted.handle` repeats `prepared` and adds what only the backend knows."""
        ...


class Ends(Protocol):
    """How a credential, and what was opened for it, comes to an end that can be believed."""

    def revoke(self, handle: Handle) -> None:
        """End the credential, and everything that was opened with it where that is possible. Ending what is gone, or
        what was only prepared, succeeds. Returning is not proof: `status` is.
        """
        ...

    def status(self, handle: Handle) -> Found:
        """Look. Never answers from memory."""
        ...

    def close(self, handle: Handle) -> None:
        """The task is over: end what `prepare` opened for it. Succeeds when there is nothing."""
        ...

    def orphans(self) -> Iterator[Handle]:
        """Everything at the backend that bears our name: the ledger tells which of it nobody owns."""
        ...


class SecretIssuer(Makes, Ends, Protocol):
    """Makes one kind of credential at a backend, finds it again, and ends it.

    Methods block, are called from worker threads, several at once, and bound their own time. Each raises IssuerError.
    Whatever can exist at the backend is named by a handle that was recorded before the call that makes it.
    """

    kind: str
    ending: Ending
    min_ttl_s: int
    max_ttl_s: int


class Foresees(Protocol):
    """What an issuer adds that often need not ask anybody what will find the credential: it is on record one commit
    earlier then.
    """

    def foreseen(self, order: Order) -> Handle | None:
        """What `prepare` would return, or None where only `prepare` can tell. Called inside the ledger's transaction:
        has no effect, and waits for nobody.
        """
        ...


class Wish(NamedTuple):
    """What of an order is known before its intent is committed."""

    actions: tuple[str, ...]
    limited: tuple[str, ...]
    settings: Mapping[str, Any]


class Intent(NamedTuple):
    """What a committed intent fixed, and what will find the credential, on record."""

    order: Order
    prepared: Handle


@runtime_checkable
class IssuesWhen(Protocol):
    """What an issuer adds whose backend undoes by itself whatever is not confirmed, as a transaction is undone: most of
    the work is done while the intent is being committed.
    """

    def issue_when(self, wish: Wish, intent: Callable[[], Intent | None]) -> Minted | None:
        """As `issue`, begun before there is an order. `intent` waits until it is committed: before it has returned,
        nothing has an effect at the backend, or is seen by anybody else there. None: there is nothing to be made, so
        what was begun is undone.
        """
        ...


@runtime_checkable
class ByAction(Protocol):
    """What the settings of a resource add that say something for each action apart."""

    def unprovided(self, actions: Iterable[str]) -> Sequence[str]:
        """Those of the actions for which they say nothing: nobody could ever get them."""
        ...


class Keeper(Protocol):
    """What an issuer adds whose backend ends a credential only for who shows it: its maker alone, while it runs."""

    def holds(self, handle: Handle) -> bool:
        """Whether this process can end, or look at, what the handle finds."""
        ...


@runtime_checkable
class Renewer(Protocol):
    """What an issuer adds that can have its credentials live longer than they were made for: having it says so."""

    def renews(self, handle: Handle) -> bool:
        """Whether the credential that the handle finds is of a kind that can live longer. Asks nobody."""
        ...

    def renew(self, handle: Handle, exp: int) -> int:
        """Have it live until `exp`, in seconds, as far as the backend allows: until when it does. Never brings back
        what has ended. Raises NotRenewable, IssuerError; `happened` None: nobody knows which of the two times holds.
        """
        ...


def renewer_of(issuer: SecretIssuer, handle: Handle) -> Renewer | None:
    """What can have this credential live longer, if anything can."""
    return issuer if isinstance(issuer, Renewer) and issuer.renews(handle) else None


@dataclass(frozen=True, slots=True)
class Seen:
    """One look at how a backend is set up: `state` is `ok`, `warning` or `wrong`; `advice` is what to do about it."""

    what: str
    state: str
    sentence: str
    advice: str | None = None


@runtime_checkable
class Examiner(Protocol):
    """What an issuer adds that can tell before the first request whether its backend is ready for it."""

    def examine(self, resources: Mapping[str, Mapping[str, Any]], now: int) -> Iterator[Seen]:
        """Reach the backend and look at what the settings of these resources, by id, need there. `now` is our clock in
        milliseconds. Makes no credential, and leaves nothing. Raises nothing: what fails is seen.
        """
        ...


SKEW_S = 30
"""Seconds by which a backend's clock may differ from ours before it is worth saying."""


def clock_seen(theirs_s: float, now: int) -> Seen:
    """How the clock of a backend compares with ours."""
    apart = theirs_s - now / 1000
    if abs(apart) <= SKEW_S:
        return Seen("clock", "ok", f"within {SKEW_S} s of ours")
    word = "ahead of" if apart > 0 else "behind"
    advice = "Credentials end at the wrong time: have both machines follow one time source."
    return Seen("clock", "wrong", f"{abs(apart):.0f} s {word} ours", advice)
