"""Reading SQLite's write-ahead log as evidence.

SQLite silently ignores everything from the first frame that does not check out: that is how it recovers from a crash,
and how one damaged byte could hide committed events. So an audit looks for frames that are there and are not read.
"""

import struct
from pathlib import Path
from typing import Final

_HEADER: Final = 32
_FRAME_HEADER: Final = 24
_MAGIC: Final = {0x377F0682: "<", 0x377F0683: ">"}  # which also tells the byte order of the checksums


def unreadable_frames(path: Path) -> int:
    """How many frames of the current generation SQLite would not read; 0 for a sound or missing log."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return 0
    if len(data) < _HEADER:
        return 0
    magic, _, page_size, _, salt1, salt2, *sums = struct.unpack(">8I", data[:_HEADER])
    order = _MAGIC.get(magic)
    if not any(data[:_HEADER]):
        return 0
    size = _FRAME_HEADER + page_size
    if order is None or _checksum(data[:24], order, (0, 0)) != tuple(sums) or not 512 <= page_size <= 65536:
        return 1
    running, sound = (sums[0], sums[1]), True
    unread = 0
    for start in range(_HEADER, len(data) - size + 1, size):
        header = data[start : start + _FRAME_HEADER]
        _, _, *salts, sum1, sum2 = struct.unpack(">6I", header)
        # Frames that an earlier generation left behind differ in both salts; one that differs in one was changed.
        if salts[0] != salt1 and salts[1] != salt2:
            sound = False
            continue
        if sound:
            running = _checksum(header[:8] + data[start + _FRAME_HEADER : start + size], order, running)
            sound = salts == [salt1, salt2] and running == (sum1, sum2)
        unread += not sound
    return unread


def _checksum(data: bytes, order: str, running: tuple[int, int]) -> tuple[int, int]:
    first, second = running
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) & 0xFFFFFFFF
        second = (second + odd + first) & 0xFFFFFFFF
    return first, second
