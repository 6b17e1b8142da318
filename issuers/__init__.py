"""What mints outbound credentials: one protocol, one file per kind. Usable without the broker.

An issuer receives an `Order` whose every bound was fixed in the ledger's commit, and returns the credential. It decides
nothing. How its credentials end is declared, so that a receipt never promises more than is true.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple, Protocol


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


class Issuer(Protocol):
    """Mints one kind of credential, many at once. An exception in a slot means that nothing usable was made for it."""

    kind: str
    ending: Ending

    async def issue_all(self, orders: Sequence[Order]) -> Sequence[str | Exception]:
        """The credential for each order, checked against it before it is returned."""
        ...
