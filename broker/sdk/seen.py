"""The tokens that were verified before, so that the signature is checked once. Bounded; holds digests, not tokens."""

import threading
from collections import OrderedDict

from broker.sdk.access_token import AccessToken


class Seen:
    """One token whose signature and claims were good, and the generation of kills it was last found alive in."""

    __slots__ = ("expires_ms", "generation", "token")

    def __init__(self, token: AccessToken) -> None:
        self.token = token
        self.expires_ms = token.exp * 1000
        self.generation = -1


class SeenTokens:
    """The most recently used ones, by SHA-256 of the whole token: never by a part of it, nor by a claim."""

    def __init__(self, *, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._seen: OrderedDict[bytes, Seen] = OrderedDict()

    def __len__(self) -> int:
        return len(self._seen)

    def get(self, digest: bytes) -> Seen | None:
        """What is remembered under `digest`, which is thereby used."""
        with self._lock:
            seen = self._seen.get(digest)
            if seen is not None:
                self._seen.move_to_end(digest)
            return seen

    def put(self, digest: bytes, seen: Seen) -> None:
        """Remember it, and forget what was not used for longest if there are too many."""
        with self._lock:
            self._seen[digest] = seen
            if len(self._seen) > self._limit:
                self._seen.popitem(last=False)

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._seen.clear()
