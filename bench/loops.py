"""How long the event loops of a served broker stand still: each says so itself, from within.

A task wakes every few milliseconds in each process. What it comes late by, the loop spent in a callback, or waiting for
the interpreter's lock, or for a core. The kernel knows how long its thread stood in line for a core: that is the
machine's doing, not the loop's, and is told apart.
"""

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

VARIABLE: Final = "BENCH_LOOPS"
"""Names the directory that the processes write to."""
_EVERY_S: Final = 0.002
_WORTH_MS: Final = 2


class Block(NamedTuple):
    """One standstill: when it ended, in nanoseconds of wall time; how long it was, without waiting for a core; for how
    long the thread waited for one; and the CPU time that it used.
    """

    ended_ns: int
    ms: float
    no_core_ms: float
    cpu_ms: float


def blocks(directory: Path, *, since_ns: int) -> list[Block]:
    """What all processes have written down since then."""
    lines = [line for file in directory.glob("*.loop") for line in file.read_text(encoding="ascii").splitlines()]
    return [block for line in lines if (block := Block(*json.loads(line))).ended_ns > since_ns]


def watched(serve: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """`serve`, with its loop watched for as long as it runs, if the environment says where to write."""
    directory = os.environ.get(VARIABLE)
    if directory is None:
        return serve

    async def serving(*args: Any, **named: Any) -> None:
        watching = asyncio.create_task(_watch(Path(directory) / f"{os.getpid()}.loop"))
        try:
            await serve(*args, **named)
        finally:
            watching.cancel()

    return serving


async def _watch(file: Path) -> None:
    kernel = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
    with file.open("w", encoding="ascii", buffering=1) as out:
        while True:
            before, began = _used(kernel), time.perf_counter()
            await asyncio.sleep(_EVERY_S)
            late_ms = (time.perf_counter() - began - _EVERY_S) * 1000
            if late_ms > _WORTH_MS:
                cpu_ms, no_core_ms = (now - then for now, then in zip(_used(kernel), before, strict=True))
                print(json.dumps(Block(time.time_ns(), max(0, late_ms - no_core_ms), no_core_ms, cpu_ms)), file=out)


def _used(kernel: int) -> tuple[float, float]:
    """Milliseconds that the thread has run, and waited for a core, so far."""
    ran, waited, _ = os.pread(kernel, 100, 0).split()
    return int(ran) / 1e6, int(waited) / 1e6
