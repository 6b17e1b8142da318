"""What an issuer of secrets must bring to be tested with all the others: a backend, and a view of it that is not ours.

A harness is made once per module. Add yours to `HARNESSES` in `test_conformance.py`: a context manager that starts the
backend, yields the harness, and stops what it started. It skips the test, with a reason, where there is no backend.
"""

import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import count
from typing import Any

from issuers import Handle, Minted, Order, SecretIssuer

EPOCH = "7f3a9c1e"
_positions = count(1_000 + secrets.randbelow(1_000_000_000))


class Fault(StrEnum):
    """How one call at the backend goes wrong. Either way the issuer gets no answer that it could use."""

    FAILED = "failed"  # the backend did nothing
    HAPPENED = "happened"  # the backend did it, and nobody heard


def new_order(*, now_s: int, ttl_s: int, **changes: Any) -> Order:
    """An order as the broker commits it: its own grant at its own position, one action, no parameters."""
    seq = next(_positions)
    order = Order(
        seq=seq,
        jti=f"grt_{EPOCH}_{seq}",
        kid="",
        agent="invoice-agent",
        task=f"tsk_{EPOCH}_{seq - 1}",
        audience="https://ledger-db.example.com",
        actions=("read",),
        limited=(),
        parameters={},
        iat=now_s,
        exp=now_s + ttl_s,
    )
    return order._replace(**changes)


@dataclass(frozen=True)
class Use:
    """What came of using a credential at the backend. `proof` is what it was let in as; it is compared with nothing."""

    accepted: bool
    proof: str = ""


class Harness(ABC):
    """One issuer on a backend that answers for real."""

    issuer: SecretIssuer

    never_shown: tuple[str, ...] = ()
    """Values that the issuer knows and nobody may see: the broker's own password or token at the backend."""

    fails: frozenset[Fault] = frozenset(Fault)
    """The faults that can be had here. Empty for an issuer that calls nobody."""

    renewable: bool = False
    """Whether its credentials can be made to live longer, as is documented for it."""

    lists: bool = True
    """Whether the backend can be asked what there is under our names. Otherwise `existing` and `orphans` are empty."""

    @abstractmethod
    def order(self, **changes: Any) -> Order:
        """An order that the backend can fill, with the `settings` that the issuer needs; each its own grant and task,
        by the clock of the backend. `changes` are members of Order.
        """

    @abstractmethod
    def use(self, values: Mapping[str, str]) -> Use:
        """Use `Minted.values` at the backend, anew and for real: log in, shake hands, call. Never look at the issuer.
        Raises only if the test itself cannot be made, not if the credential is refused.
        """

    @abstractmethod
    def existing(self) -> set[str]:
        """What is alive at the backend under our names, by the backend's own view with the rights of its administrator,
        as `name` calls it. Empty for an issuer whose credentials are nowhere on record.
        """

    def lives_until(self, values: Mapping[str, str]) -> int:
        """When a renewable credential ends by itself, by the view of the backend that lets it in, in seconds."""
        raise NotImplementedError

    @abstractmethod
    def name(self, handle: Handle) -> str:
        """How `existing` calls what a handle of `prepare`, `issue` or `orphans` finds."""

    @abstractmethod
    def fail_next(self, fault: Fault) -> None:
        """Let the next call of the issuer that changes something at the backend end in this way, once."""

    @abstractmethod
    def after(self, minted: Minted) -> None:
        """Make the time of this credential be over, for the issuer and for the backend, if the harness owns the clock;
        skip the test otherwise.
        """
