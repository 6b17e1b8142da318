"""Provisional kills, shared by the processes of one broker through a few bytes of memory-mapped file.

When the ledger cannot be written, the control process still stops this broker's own issuance: it writes what is killed
here, and every token worker looks before it issues. Looking costs one comparison of a counter. The file is reserved in
full when it is made, so that a full disk does not stand in the way.

The file has two halves, and what is in force is the newer one that is whole. A write goes to the other half, so that
neither a reader in the middle of it nor the writer's death leaves anyone without stops.
"""

import mmap
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import orjson

from broker.wire import FeedKill, KillMap

_HALF = 65_536
_COUNTER, _LENGTH, _CHECKSUM = 8, 12, 16  # where each of the three numbers before the body ends
LONGEST = _HALF - _CHECKSUM
_EVERYTHING = FeedKill.from_wire({"id": "prv_overflow", "seq": -1, "matches": [["all", ""]], "provisional": True})


class Stops:
    """The stops of one broker. The control process writes, workers read."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._seen = b""  # the counters that `_map` was read under
        self._map = KillMap()

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open or make the shared file. Raises OSError."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            missing = 2 * _HALF - os.fstat(descriptor).st_size
            if missing > 0:
                os.pwrite(descriptor, bytes(missing), 2 * _HALF - missing)
            return cls(mmap.mmap(descriptor, 2 * _HALF))
        finally:
            os.close(descriptor)

    def write(self, kills: Sequence[FeedKill]) -> None:
        """Replace the stops in force. When they do not fit, everything is stopped: never less than was asked."""
        body = orjson.dumps([kill.to_wire() for kill in kills])
        if len(body) > LONGEST:
            body = orjson.dumps([_EVERYTHING.to_wire()])
        counter, newer = max((int.from_bytes(self._counter(half)), half) for half in (0, 1))
        self._put(1 - newer, counter + 1, body)

    def covering(self, claims: Mapping[str, Any], kid: str | None = None) -> str | None:
        """The id of a provisional kill that covers a credential with these claims, or None."""
        return self._in_force().dead(claims, kid)

    def any(self) -> bool:
        """Whether anything is stopped at all."""
        return bool(self._in_force())

    def _in_force(self) -> KillMap:
        memory = self._memory  # looked at for every token: spelt out, it costs half
        counters = memory[:_COUNTER] + memory[_HALF : _HALF + _COUNTER]
        if counters != self._seen:
            self._map, self._seen = self._read(), counters
        return self._map

    def _counter(self, half: int) -> bytes:
        return self._memory[half * _HALF : half * _HALF + _COUNTER]

    def _put(self, half: int, counter: int, body: bytes) -> None:
        """Write a half, its counter last."""
        start = half * _HALF
        self._memory[start + _CHECKSUM : start + _CHECKSUM + len(body)] = body
        self._memory[start + _COUNTER : start + _CHECKSUM] = len(body).to_bytes(4) + zlib.crc32(body).to_bytes(4)
        self._memory[start : start + _COUNTER] = counter.to_bytes(_COUNTER)

    def _read(self) -> KillMap:
        """What is in force now. A file in which no half is whole stops everything."""
        halves = sorted(((int.from_bytes(self._counter(half)), half) for half in (0, 1)), reverse=True)
        stops = KillMap()
        for counter, half in halves:
            if counter == 0:  # never written, so nothing was ever stopped
                return stops
            body = self._body(half)
            if body is not None:
                for kill in orjson.loads(body):
                    stops.apply(FeedKill.from_wire(kill))
                return stops
        stops.apply(_EVERYTHING)
        return stops

    def _body(self, half: int) -> bytes | None:
        """The body of a half; None when it is being written, or was when its writer died."""
        start = half * _HALF
        numbers = self._memory[start + _COUNTER : start + _CHECKSUM]
        length = int.from_bytes(numbers[:4])
        if length > LONGEST:
            return None
        body = self._memory[start + _CHECKSUM : start + _CHECKSUM + length]
        return body if zlib.crc32(body) == int.from_bytes(numbers[4:]) else None
