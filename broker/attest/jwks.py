"""The keys of each trust row, kept at hand: written in place, read from a file, or fetched over https.

Looking a key up never waits. Where asking the issuer could help and is allowed, `find` raises KeysNeeded and the caller
refreshes; otherwise the token is refused. A flood of invented key ids costs one fetch per source in 30 seconds, and
never a key that was good.
"""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import structlog

from broker.attest.errors import AttestationFailed, KeysNeeded
from broker.attest.fetch import Endpoint, Fetch, FetchFailed
from broker.jose import KeyRefused, KeySet, UnknownKey, VerifyingKey
from broker.jose.keys import MAX_JWKS_BYTES

COOLDOWN_MS = 30_000
_FIRST_RETRY_MS = 1_000
_MAX_ABSENT = 256

log = structlog.get_logger()

Clock = Callable[[], int]
"""Monotonic milliseconds: how long ago something happened here, whatever the wall clock does."""

Load = Callable[[bytes], KeySet]
"""A row's rules for its key set; raises KeyRefused."""


def monotonic_ms() -> int:
    """The host's monotonic clock."""
    return time.monotonic_ns() // 1_000_000


class Keys(Protocol):
    """The keys of one trust row."""

    def find(self, kid: str | None, alg: str) -> VerifyingKey:
        """The key for a header. Raises UnknownKey, KeysNeeded, or AttestationFailed when the keys are out of reach."""
        ...

    def due(self) -> bool:
        """Whether `refresh` would be worth while now, without anybody asking."""
        ...

    async def refresh(self) -> None:
        """Ask the issuer again if that is allowed now. Failure is logged, and what was good stays good for a while."""
        ...


class InlineKeys:
    """Keys written in the trust row itself. They change by a reload only."""

    def __init__(self, keys: KeySet) -> None:
        self._keys = keys

    def find(self, kid: str | None, alg: str) -> VerifyingKey:
        """See Keys."""
        return self._keys.find(kid, alg)

    def due(self) -> bool:
        """Never."""
        return False

    async def refresh(self) -> None:
        """Nothing to ask."""


class _Held:
    """A key set with its age. Past `max_stale_ms` without a renewal it is not used any more."""

    def __init__(self, *, source: str, clock: Clock, max_stale_ms: int) -> None:
        self.source = source
        self.clock = clock
        self._max_stale_ms = max_stale_ms
        self._keys: KeySet | None = None
        self._renewed = clock()

    @property
    def keys(self) -> KeySet | None:
        """The keys while they may be used."""
        return None if self._keys is None or self.age() > self._max_stale_ms else self._keys

    def renew(self, keys: KeySet | None = None) -> None:
        """Take `keys`, or confirm those that are held."""
        self._keys = keys or self._keys
        self._renewed = self.clock()

    def age(self) -> int:
        """Milliseconds since the last renewal."""
        return self.clock() - self._renewed

    def unavailable(self, retry_after_s: int) -> AttestationFailed:
        """The refusal when there is no key set to use."""
        return AttestationFailed(
            "keys_unavailable",
            f"The keys of trust {self.source} are out of reach, so nothing it vouches for can be checked.",
            retry_after_s=retry_after_s,
        )


class FileKeys:
    """Keys in a file that something else keeps up to date. Read again when it changes; a bad version is not taken."""

    def __init__(self, *, source: str, path: Path, load: Load, max_stale_s: int, clock: Clock = monotonic_ms) -> None:
        self._path = path
        self._load = load
        self._held = _Held(source=source, clock=clock, max_stale_ms=max_stale_s * 1000)
        self._seen: tuple[int, ...] | None = ()  # no version is like this one
        self._good = False

    def find(self, kid: str | None, alg: str) -> VerifyingKey:
        """See Keys. Costs one `stat`."""
        self._look()
        keys = self._held.keys
        if keys is None:
            raise self._held.unavailable(1)
        return keys.find(kid, alg)

    def due(self) -> bool:
        """Never: `find` looks by itself."""
        return False

    async def refresh(self) -> None:
        """Nothing to ask."""

    def _look(self) -> None:
        version = _version(self._path)
        if version == self._seen:
            if self._good:
                self._held.renew()
            return
        self._seen, self._good = version, False
        try:
            self._held.renew(self._load(_read(self._path)))
            self._good = True
        except (OSError, KeyRefused) as error:
            log.warning("trust_keys_not_renewed", trust=self._held.source, error=str(error), stale_ms=self._held.age())


def _version(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino, status.st_dev)


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise KeyRefused(f"{path} is not a regular file.")
    with path.open("rb") as file:
        return file.read(MAX_JWKS_BYTES + 1)  # one more than allowed, so that too much is noticed


class FetchedKeys:
    """Keys from an https endpoint: at most one fetch at a time, and one in 30 seconds."""

    def __init__(
        self,
        *,
        source: str,
        endpoint: Endpoint,
        load: Load,
        refresh_s: int,
        max_stale_s: int,
        fetch: Fetch,
        clock: Clock = monotonic_ms,
    ) -> None:
        self._endpoint = endpoint
        self._load = load
        self._fetch = fetch
        self._refresh_ms = refresh_s * 1000
        self._held = _Held(source=source, clock=clock, max_stale_ms=max_stale_s * 1000)
        self._not_before = clock()  # no fetch earlier than this
        self._failures = 0
        self._absent: dict[str, int] = {}  # key ids that the issuer was asked about and does not have -> until when
        self._running: asyncio.Task[None] | None = None

    def find(self, kid: str | None, alg: str) -> VerifyingKey:
        """See Keys."""
        keys = self._held.keys
        if keys is None:
            if self._may_fetch():
                raise KeysNeeded(self._held.source)
            raise self._held.unavailable(self._wait_s())
        try:
            return keys.find(kid, alg)
        except UnknownKey:
            if kid is not None and self._worth_asking(kid):
                raise KeysNeeded(self._held.source) from None
            raise

    def due(self) -> bool:
        """Whether the keys are old enough to be renewed."""
        return self._may_fetch() and (self._held.keys is None or self._held.age() >= self._refresh_ms)

    async def refresh(self) -> None:
        """See Keys. All who ask while one fetch runs share it; the one who gives up does not stop it."""
        if self._running is None:
            if not self._may_fetch():
                return
            self._running = asyncio.create_task(self._renew())
        await asyncio.shield(self._running)

    def _may_fetch(self) -> bool:
        return self._running is not None or self._held.clock() >= self._not_before

    def _wait_s(self) -> int:
        return max(1, -(-(self._not_before - self._held.clock()) // 1000))

    def _worth_asking(self, kid: str) -> bool:
        now = self._held.clock()
        if self._absent.get(kid, 0) > now:
            return False
        if self._may_fetch():
            return True
        if self._failures == 0:  # the issuer was asked just now, and has no such key
            if len(self._absent) >= _MAX_ABSENT:
                del self._absent[next(iter(self._absent))]
            self._absent[kid] = now + self._refresh_ms
        return False

    async def _renew(self) -> None:
        held = self._held
        started = held.clock()
        # Before there are any keys, look again sooner: an issuer that starts together with the broker is soon there.
        wait = COOLDOWN_MS if held.keys else min(COOLDOWN_MS, _FIRST_RETRY_MS << min(self._failures, 5))
        self._not_before = started + wait
        try:
            held.renew(self._load(await self._fetch(self._endpoint)))
            self._not_before = started + COOLDOWN_MS
            self._failures = 0
        except (FetchFailed, KeyRefused) as error:
            self._failures += 1
            log.warning("trust_keys_not_renewed", trust=held.source, error=str(error), stale_ms=held.age())
        finally:
            self._running = None
