"""The revocation feed's wire format and the rule that says which tokens a kill covers.

Shared by the server and the SDK, so that introspection and an offline verifier can never disagree. Pure: no I/O, no
clock.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

KEY_IS_DEAD = 1 << 62
"""The position of a kill of a signing key: above any real one, because whoever stole the key chooses `seq` freely."""


class Match(StrEnum):
    """What a kill compares with a token. An owner is expanded to its agents before it gets here."""

    AGENT = "agent"  # `sub`, `client_id` or any actor in `act`
    TASK = "task"  # `task`
    GRANT = "grant"  # `jti`
    RESOURCE = "resource"  # `aud`
    KEY = "key"  # the header's `kid`
    ALL = "all"


@dataclass(frozen=True, slots=True)
class FeedKill:
    """One kill on the feed: every token that matches and whose `seq` is below `seq` is dead, for good.

    `provisional` marks a kill that the broker could not yet write to its ledger; it has no position and covers every
    matching token until `confirmed` or withdrawn.
    """

    id: str
    seq: int
    matches: tuple[tuple[Match, str], ...]
    provisional: bool = False

    def to_wire(self) -> dict[str, Any]:
        """As sent in a snapshot and in `kill` events."""
        body: dict[str, Any] = {
            "id": self.id,
            "seq": self.seq,
            "matches": [[kind.value, value] for kind, value in self.matches],
        }
        if self.provisional:
            body["provisional"] = True
        return body

    @classmethod
    def from_wire(cls, body: Mapping[str, Any]) -> "FeedKill":
        """Parse what `to_wire` made. Raises KeyError, TypeError or ValueError on anything else."""
        matches = tuple((Match(kind), str(value)) for kind, value in body["matches"])
        return cls(id=str(body["id"]), seq=int(body["seq"]), matches=matches, provisional=bool(body.get("provisional")))


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in one ledger epoch, written `epoch:position`. Positions of different epochs do not compare."""

    epoch: str
    position: int

    def __str__(self) -> str:
        return f"{self.epoch}:{self.position}"

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """Raises ValueError when `text` is not `epoch:position`."""
        epoch, separator, position = text.partition(":")
        if not separator or not epoch or not position.isdecimal() or len(position) > 18:
            raise ValueError(f"not a cursor: {text[:40]!r}")
        return cls(epoch, int(position))


class KillMap:
    """All kills that can still matter, so that asking about one token costs a few dictionary look-ups.

    A token is dead if any kill that matches it has a higher position than the token's `seq`: the maximum over all
    selectors decides, never the latest or the most specific one.
    """

    def __init__(self) -> None:
        self._positions: dict[tuple[Match, str], tuple[int, str]] = {}

    def __len__(self) -> int:
        return len(self._positions)

    def apply(self, kill: FeedKill) -> None:
        """Put a kill in force. Applying one twice, or out of order, changes nothing."""
        for match, value in kill.matches:
            position = KEY_IS_DEAD if match is Match.KEY or kill.provisional else kill.seq
            known = self._positions.get((match, value))
            if known is None or known[0] < position:
                self._positions[match, value] = (position, kill.id)

    def dead(self, claims: Mapping[str, Any], kid: str | None) -> str | None:
        """The id of a kill that covers a token with these verified claims and header `kid`, or None while it lives."""
        positions = self._positions
        if not positions:
            return None
        seq = claims.get("seq")
        seq = seq if isinstance(seq, int) else -1
        for key in compared(claims, kid):
            found = positions.get(key)
            if found is not None and seq < found[0]:
                return found[1]
        return None

    def prune(self, floor: int) -> None:
        """Forget kills at or below `floor`: every token below it has expired, and verifiers refuse it by its `seq`."""
        gone = [key for key, (position, _) in self._positions.items() if position <= floor]
        for key in gone:
            del self._positions[key]


def compared(claims: Mapping[str, Any], kid: str | None) -> Iterable[tuple[Match, str]]:
    """All that kills compare with a token. There is no other place where this is said."""
    yield Match.ALL, ""
    yield Match.AGENT, claims.get("sub", "")
    if claims.get("client_id") != claims.get("sub"):
        yield Match.AGENT, claims.get("client_id", "")
    if "task" in claims:
        yield Match.TASK, claims["task"]
    yield Match.GRANT, claims.get("jti", "")
    yield Match.RESOURCE, claims.get("aud", "")
    if kid is not None:
        yield Match.KEY, kid
    actor = claims.get("act")
    while isinstance(actor, Mapping):
        yield Match.AGENT, actor.get("sub", "")
        actor = actor.get("act")
