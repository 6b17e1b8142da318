"""Turn taking between the processes that write one ledger file.

Advisory locks on three side files, which the kernel drops when a process dies, whatever it was doing:

- `.turn`: held while writing.
- `.next`: held while waiting for `.turn`. Who gives up the turn has to queue behind whoever is next, so that no busy
  process keeps the file to itself.
- `.kill`: held (shared) from before a priority commit waits until it is through. Ordinary writers do not take a
  turn while anyone holds it, so a kill waits for at most the one batch that is being written.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_FIRST_PAUSE_S = 0.00003
_LONGEST_PAUSE_S = 0.0003


class TurnTimeout(Exception):
    """Another process kept the turn for longer than this one was willing to wait."""


class Turns:
    """This process's (and this object's) place in the queue. Not for use by two threads at once."""

    def __init__(self, path: Path, *, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._files = [_open(path, suffix) for suffix in (".turn", ".next", ".kill")]
        self._turn, self._next, self._kill = self._files

    @contextmanager
    def taken(self, *, priority: bool) -> Iterator[None]:
        """Wait for the turn and hold it. Raises TurnTimeout."""
        deadline = time.monotonic() + self._timeout_s
        if priority:
            with self._held(self._kill, fcntl.LOCK_SH, deadline), self._held(self._turn, fcntl.LOCK_EX, deadline):
                yield
            return
        with self._held(self._next, fcntl.LOCK_EX, deadline):
            _wait(self._take_unless_kill_pends, deadline)
        try:
            yield
        finally:
            fcntl.flock(self._turn, fcntl.LOCK_UN)

    def close(self) -> None:
        """Leave the queue for good."""
        while self._files:
            os.close(self._files.pop())

    def _take_unless_kill_pends(self) -> bool:
        if not _try(self._kill, fcntl.LOCK_EX):
            return False
        fcntl.flock(self._kill, fcntl.LOCK_UN)
        return _try(self._turn, fcntl.LOCK_EX)

    @contextmanager
    def _held(self, descriptor: int, kind: int, deadline: float) -> Iterator[None]:
        _wait(lambda: _try(descriptor, kind), deadline)
        try:
            yield
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)


def _open(path: Path, suffix: str) -> int:
    return os.open(path.with_name(path.name + suffix), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _try(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait(attempt: Callable[[], bool], deadline: float) -> None:
    # Polling, because a blocking lock has no time limit and a stopped process may hold it.
    pause = _FIRST_PAUSE_S
    while not attempt():
        if time.monotonic() >= deadline:
            raise TurnTimeout
        time.sleep(pause)
        pause = min(pause * 1.5, _LONGEST_PAUSE_S)
