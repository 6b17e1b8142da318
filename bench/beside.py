"""A server that is measured beside ours: a process on the same core, which says when it is ready."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from bench.machine import on_core, several


@contextmanager
def beside(
    command: Sequence[str],
    *,
    core: int | set[int],
    unready: Exception,
    **options: Any,
) -> Iterator[int]:
    """The process id of `command`, all of its threads on `core` (one, or several), once it has printed a line with
    "ready". Raises `unready` when it ended, or printed something else.
    """
    with on_core(*several(core)):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, **options)
    try:
        assert process.stdout is not None
        if b"ready" not in process.stdout.readline():
            raise unready
        yield process.pid
    finally:
        process.terminate()
        process.wait(10)
