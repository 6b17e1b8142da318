"""What a downstream service uses to check access tokens, offline, with every kill that the broker announced.

    async with Verifier(issuer="https://taskpass.example", audience="https://invoices.example",
                        identity=FileIdentity("/var/run/secrets/taskpass/token")) as verifier:
        token = verifier.verify(bearer, scopes=["invoices:read"])
        print(token.agent, token.task)

A token is accepted when all of these hold, in this order:

(1) it is a compact JWS of at most 8 KiB in its one strict form: nothing ambiguous gets as far as a library;
(2) its `kid` names a key in this issuer's JWKS: no key comes from the token, none from another issuer;
(3) the signature verifies with ES256, and it is an access token (`typ` at+jwt) of this issuer for this audience alone,
    unexpired with no leeway, with every claim that our broker always sets: no other kind of token passes for one;
(4) strict mode: the broker was heard from within the bound, so that what is not known to be killed is not killed;
(5) it is of this ledger's epoch, its `seq` is not below the floor, and no kill covers it, its actors included: what is
    dead stays dead whatever this machine's clock says;
(6) it grants what the operation needs.

What is left for the service: which rows the caller may see, and holding an action to `token.parameters(action)`.

Steps 1 to 3 are remembered per token; 4 to 6, and expiry, are asked on every call.
"""

import asyncio
import contextlib
import hashlib
import secrets
from collections.abc import Awaitable, Callable, Collection
from typing import TYPE_CHECKING, Literal, Self

import httpx2

from broker import jose
from broker.sdk import protocol
from broker.sdk.access_token import AccessToken
from broker.sdk.clock import Elapsed, Now, elapsed_ns, wall_ms
from broker.sdk.errors import FeedStale, InsufficientScope, InvalidToken, Refused, TokenKilled
from broker.sdk.feed import FeedStatus, Follower, Registration
from broker.sdk.identity import Identity
from broker.sdk.published import Published
from broker.sdk.seen import Seen, SeenTokens
from broker.sdk.view import RevocationView

if TYPE_CHECKING:
    from broker.sdk.threaded import ThreadedVerifier

Mode = Literal["strict", "best_effort"]

REQUIRED = ("iss", "sub", "client_id", "iat", "jti", "task", "seq")
MAX_IAT_AHEAD_S = 5
"""How far this machine's clock may be behind the ledger's. It widens nothing: `exp` has no leeway."""


class UnknownSigningKey(InvalidToken):
    """The token names a key that this process has not seen: a new one, or somebody's invention."""


class Verifier:
    """Checks the tokens of one issuer for one service, and follows its revocation feed while it is entered.

    `verify` may be called from any thread; entering and leaving belong to one event loop. Outside the `async with`, and
    until the first heartbeat, a strict verifier refuses everything.
    """

    def __init__(  # noqa: PLR0913  (settings, keyword only)
        self,
        *,
        issuer: str,
        audience: str | Collection[str],
        identity: Identity,
        mode: Mode = "strict",
        staleness_bound_s: float = 5.0,
        max_lifetime_s: int = 3600,
        remember: int = 10_000,
        resource_metadata: str | None = None,
        start_timeout_s: float = 5.0,
        http: Callable[[], httpx2.AsyncClient] | None = None,
        now: Now = wall_ms,
        elapsed: Elapsed = elapsed_ns,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`identity` proves to the broker which registered verifier this is.

        `staleness_bound_s` is what a strict verifier tolerates, and what kill receipts state for it. `remember` bounds
        the verified tokens that are kept. `resource_metadata` is this service's RFC 9728 document, for its challenges.
        `start_timeout_s` is how long entering waits for the first heartbeat; it then goes on without. `http` makes the
        client to use, for proxies and private certificates. Raises ValueError for a bad issuer or an empty audience.
        """
        self.issuer = protocol.checked_issuer(issuer)
        audiences = frozenset([audience] if isinstance(audience, str) else audience)
        self._profile = jose.Profile(
            kind="access token",
            typ=frozenset({"at+jwt"}),
            algs=frozenset({"ES256"}),
            issuer=issuer,
            audiences=audiences,
            sole_audience=True,
            required=REQUIRED,
            max_lifetime_s=max_lifetime_s,
            leeway_s=0,
            max_ahead_s=MAX_IAT_AHEAD_S,
        )
        if mode not in {"strict", "best_effort"} or staleness_bound_s <= 0:
            raise ValueError("mode is 'strict' or 'best_effort', and the bound is a positive number of seconds")
        self._bound_ns = int(staleness_bound_s * 1e9) if mode == "strict" else None
        self._registration = Registration(
            instance=secrets.token_hex(8),
            audiences=tuple(sorted(audiences)),
            mode=mode,
            bound_ms=int(staleness_bound_s * 1000),
        )
        self._identity = identity
        self._resource_metadata = resource_metadata
        self._start_timeout_s = start_timeout_s
        self._http = http or (lambda: httpx2.AsyncClient(timeout=protocol.TIMEOUT_S, follow_redirects=False))
        self._elapsed = elapsed
        self._sleep = sleep
        self._view = RevocationView(now=now, elapsed=elapsed)
        self._seen = SeenTokens(limit=remember)
        self._published: Published | None = None
        self._follower: Follower | None = None
        self._running = contextlib.AsyncExitStack()

    # --- Checking ---

    def verify(self, token: str, *, scopes: Collection[str] = (), actions: Collection[str] = ()) -> AccessToken:
        """The token's content if every step holds, else a Refused. Does no I/O.

        `scopes` must be in the token's `scope`, `actions` there or in its `authorization_details`. Whichever way an
        action was granted, it is for the caller to hold the operation to `parameters(action)`.
        """
        try:
            return self._verified(token, scopes, actions)
        except Refused as refused:
            refused.resource_metadata = self._resource_metadata
            raise

    async def averify(self, token: str, *, scopes: Collection[str] = (), actions: Collection[str] = ()) -> AccessToken:
        """`verify`, but a key that is not known is looked for once, at a bounded rate, before refusing."""
        try:
            return self.verify(token, scopes=scopes, actions=actions)
        except UnknownSigningKey:
            if self._published is None or not await self._published.refresh_for_unknown_key():
                raise
        return self.verify(token, scopes=scopes, actions=actions)

    def refusal(self, refused: Refused, *, scopes: Collection[str] = ()) -> Refused:
        """`refused` with what its challenge should say about this service. For adapters that found no token."""
        refused.resource_metadata = self._resource_metadata
        refused.scopes = refused.scopes or tuple(scopes)
        return refused

    def _verified(self, token: str, scopes: Collection[str], actions: Collection[str]) -> AccessToken:
        # (1) Bounded before it is hashed: a cache is no place for what a stranger made long.
        if len(token) > jose.MAX_TOKEN_BYTES or not token.isascii():
            raise InvalidToken("The token is too long, or not ASCII.")
        digest = hashlib.sha256(token.encode()).digest()
        seen = self._seen.get(digest)
        if seen is None:
            seen = Seen(self._checked(token))
            self._still_good(seen)
            self._seen.put(digest, seen)
        else:
            self._still_good(seen)
        # (6) All that the operation needs goes into one challenge, so that one new token can satisfy it.
        found = seen.token
        if not (found.scope.issuperset(scopes) and found.actions.issuperset(actions)):
            raise InsufficientScope("The token does not grant what this needs.", scopes=(*scopes, *actions))
        return found

    def _checked(self, token: str) -> AccessToken:
        """Steps 1 to 3."""
        if self._published is None:
            raise FeedStale("The verifier has not been started.")
        try:
            claims = jose.verify(token, self._published.find, self._profile, self._view.now_ms() // 1000)
        except jose.UnknownKey as error:
            raise UnknownSigningKey(error.sentence) from error
        except jose.JoseError as error:
            raise InvalidToken(error.sentence) from error
        return AccessToken.of(claims)

    def _still_good(self, seen: Seen) -> None:
        """Expiry, and steps 4 and 5: all that can change while a token is remembered."""
        view = self._view
        if view.now_ms() >= seen.expires_ms:
            raise InvalidToken("The token has expired.")
        # (4) A revocation that this process cannot have heard of must not be the reason to accept.
        if self._bound_ns is not None:
            age = view.age_ns()
            if age is None or age > self._bound_ns:
                raise FeedStale("The revocation feed is stale.")
        # (5) Kills and epochs cannot change without a new generation, which is read first: a kill that lands in between
        # is then found by the next call. The floor can rise without one, and is read last: kills leave the map after.
        token = seen.token
        generation = view.generation
        if generation != seen.generation:
            if view.epoch is not None and token.jti.split("_")[1:2] != [view.epoch]:
                raise InvalidToken("The token is of another epoch of the ledger.")
            kill_id = view.kills.dead(token.claims, token.kid)
            if kill_id is not None:
                raise TokenKilled("The token was revoked.", kill_id=kill_id)
            seen.generation = generation
        if token.seq < view.floor:
            raise InvalidToken("The token has expired by the ledger's clock.")

    # --- Following ---

    @property
    def instance(self) -> str:
        """The random id under which this process appears in kill receipts."""
        return self._registration.instance

    @property
    def status(self) -> FeedStatus | None:
        """How the feed is doing; None while the verifier is not running."""
        return None if self._follower is None else self._follower.status

    @property
    def fresh(self) -> bool:
        """Whether this process knows of every kill within the bound. For readiness probes."""
        age = self._view.age_ns()
        bound_ns = self._registration.bound_ms * 1_000_000
        return age is not None and age <= bound_ns

    def start_in_thread(self) -> "ThreadedVerifier":
        """Follow the feed on a thread of its own, for services without an event loop. Stop it, or use it in `with`."""
        from broker.sdk.threaded import ThreadedVerifier

        return ThreadedVerifier(self)

    async def __aenter__(self) -> Self:
        if self._follower is not None:
            raise RuntimeError("the verifier is running already")
        async with contextlib.AsyncExitStack() as starting:
            http = await starting.enter_async_context(self._http())
            self._published = Published(issuer=self.issuer, http=http, elapsed=self._elapsed)
            self._follower = Follower(
                issuer=self.issuer,
                identity=self._identity,
                registration=self._registration,
                view=self._view,
                published=self._published,
                http=http,
                forget_tokens=self._seen.clear,
                elapsed=self._elapsed,
                sleep=self._sleep,
            )
            for running in (self._published.keep(), self._follower.run()):
                starting.push_async_callback(_cancel, asyncio.create_task(running))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._start_timeout_s):
                    await self._published.loaded.wait()
                    await self._follower.heard.wait()
            self._running = starting.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._running.aclose()
        self._follower = None


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
