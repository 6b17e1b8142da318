"""How often one address may fail to prove an identity before it has to wait.

Only failures count, and only the caller's address is asked for: a limit per issuer, key or client id, all of which a
stranger may write into an assertion, would let anybody lock out the one who is named. Kills are never refused by it.
"""

import ipaddress
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from broker.errors import TooManyAttempts
from broker.signals import INTERVAL_S, Signals, loop_time

FLOOR: Final = 8
"""An address is never refused here, whatever the other brokers are said to have seen, before it has failed here as
often as one part in this many of the limit: what a lie can do ends there.
"""
_ADDRESSES: Final = 10_000


@dataclass(slots=True)
class _Failures:
    since: float
    here: int = 0
    everywhere: int = 0


class Attempts:
    """Failures by address, within intervals of `INTERVAL_S`. A limit of 0 is none."""

    def __init__(self, *, limit: int, signals: Signals, clock: Callable[[], float] = loop_time) -> None:
        self._limit = limit
        self._signals = signals
        self._clock = clock
        self._failures: dict[str, _Failures] = {}  # in the order in which their intervals began

    def admit(self, address: str | None) -> None:
        """Let an attempt from this address go on. Raises TooManyAttempts."""
        failures = self._failures.get(_network(address)) if self._failures and address else None
        if failures is None:
            return
        left_s = failures.since + INTERVAL_S - self._clock()
        if left_s > 0 and self._exceeded(failures):
            raise TooManyAttempts(
                "Too many requests from this address have failed to prove an identity.", retry_after=math.ceil(left_s)
            )

    def failed(self, address: str | None) -> None:
        """An attempt from this address proved no identity. Loopback is a proxy or this machine: it is never counted."""
        network = _network(address) if address else ""
        if not network or not self._limit:
            return
        now = self._clock()
        failures = self._failures.get(network)
        if failures is None or now - failures.since >= INTERVAL_S:
            self._failures.pop(network, None)
            if len(self._failures) >= _ADDRESSES:
                del self._failures[next(iter(self._failures))]
            failures = self._failures[network] = _Failures(now)
        failures.here += 1
        failures.everywhere = self._signals.count(f"failed:{network}")

    def _exceeded(self, failures: _Failures) -> bool:
        if failures.here >= self._limit:
            return True
        return failures.everywhere >= self._limit and failures.here * FLOOR >= self._limit


@lru_cache(4096)
def _network(address: str) -> str:
    """What counts as one address: for IPv6 the 64 bits of its network. Empty for what is not limited."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:  # a unix socket's, or a name that a proxy wrote
        return ""
    if isinstance(parsed, ipaddress.IPv6Address):
        parsed = parsed.ipv4_mapped or parsed
    if parsed.is_loopback:
        return ""
    if parsed.version == 6:
        return str(ipaddress.ip_network((int(parsed) >> 64 << 64, 64)))
    return str(parsed)
