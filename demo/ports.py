"""Ports of loopback for servers that are about to start."""

import secrets
import socket
from typing import Final

# Below what Linux gives to outgoing connections, none of which can then take one before its server does, or while it
# is down.
_LOWEST: Final = 20_000
_HOW_MANY: Final = 12_000
_given: set[int] = set()


def free_port(*, in_a_row: int = 1) -> int:
    """A port that is free and that this process was not given before, and so are those after it: `in_a_row` in all."""
    for _ in range(1_000):
        first = _LOWEST + secrets.randbelow(_HOW_MANY)
        ports = range(first, first + in_a_row)
        if _given.isdisjoint(ports) and all(map(_is_free, ports)):
            _given.update(ports)
            return first
    raise RuntimeError(f"there are no {in_a_row} free ports in a row on 127.0.0.1")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
