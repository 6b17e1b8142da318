"""Provisional kills, shared by the processes of one broker through a few bytes of memory-mapped file.

When the ledger cannot be written, the control process still stops this broker's own issuance: it writes what is killed
here, and every token worker looks before it issues. Looking costs one comparison of a counter. The file is reserved in
full when it is made, so that a full disk does not stand in the way.
"""

import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import orjson

from broker.wire import FeedKill, KillMap

_SIZE = 65_536
_COUNTER, _LENGTH, _BODY = 8, 12, 12


class Stops:
    """The stops of one broker. The control process writes, workers read."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._seen = -1
        self._map = KillMap()

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open or make the shared file. Raises OSError."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(descriptor).st_size < _SIZE:
                os.pwrite(descriptor, bytes(_SIZE), 0)
            return cls(mmap.mmap(descriptor, _SIZE))
        finally:
            os.close(descriptor)

    def write(self, kills: Sequence[FeedKill]) -> None:
        """Replace the stops in force. When they do not fit, everything is stopped: never less than was asked."""
        body = orjson.dumps([kill.to_wire() for kill in kills])
        if len(body) > _SIZE - _BODY:
            body = orjson.dumps([{"id": "prv_overflow", "seq": -1, "matches": [["all", ""]], "provisional": True}])
        self._memory[_BODY : _BODY + len(body)] = body
        self._memory[_COUNTER:_LENGTH] = len(body).to_bytes(4)
        self._memory[0:_COUNTER] = (self._counter() + 1).to_bytes(8)

    def covering(self, *, agent: str, audience: str, task: str | None) -> str | None:
        """The id of a provisional kill that covers such a credential, or None."""
        counter = self._counter()
        if counter != self._seen:
            self._map, self._seen = self._read(), counter
        return self._map.dead({"sub": agent, "client_id": agent, "aud": audience, "task": task or "", "seq": -1}, None)

    def _counter(self) -> int:
        return int.from_bytes(self._memory[0:_COUNTER])

    def _read(self) -> KillMap:
        stops = KillMap()
        length = int.from_bytes(self._memory[_COUNTER:_LENGTH])
        for kill in orjson.loads(self._memory[_BODY : _BODY + length]) if length else ():
            stops.apply(FeedKill.from_wire(kill))
        return stops
