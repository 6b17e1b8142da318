"""Passwords for PostgreSQL logins, each with the SCRAM-SHA-256 verifier (RFC 5803) that the server keeps of it."""

import base64
import hashlib
import hmac
import secrets
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple

_ITERATIONS: Final = 4_096  # PostgreSQL's own number. Some clients accept no fewer, and ours need no more: see `_fresh`
_LATER_S: Final = 0.02


class Password(NamedTuple):
    """A password that was never given to anybody."""

    clear: str
    verifier: str

    def __repr__(self) -> str:
        return "Password(...)"


class Passwords:
    """A few passwords made ahead: a verifier takes a millisecond to compute, which nobody should wait for."""

    def __init__(self, *, ready: int) -> None:
        """Have so many `ready` after each `refill`."""
        self._wanted = ready
        self._ready: deque[Password] = deque()
        self._making = ThreadPoolExecutor(1, thread_name_prefix="passwords")
        self._due = False
        self._closed = threading.Event()

    def take(self) -> Password:
        """One that nobody else gets."""
        try:
            return self._ready.popleft()
        except IndexError:
            return _fresh()

    def refill(self) -> None:
        """Have others made in the place of those that were taken, a moment later: whoever took one is being answered
        now. Returns at once.
        """
        if not self._due:
            self._due = True
            self._making.submit(self._refill)

    def close(self) -> None:
        """Make no more, and forget those that nobody got. `refill` raises RuntimeError from here on."""
        self._closed.set()
        self._making.shutdown(cancel_futures=True)
        self._due = False
        self._ready.clear()

    def _refill(self) -> None:
        self._closed.wait(_LATER_S)
        self._due = False
        while len(self._ready) < self._wanted and not self._closed.is_set():
            self._ready.append(_fresh())


def _fresh() -> Password:
    """Of 256 random bits, which nobody guesses however cheap a guess is. Plain ASCII, which SASLprep leaves alone."""
    clear, salt = secrets.token_urlsafe(32), secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", clear.encode(), salt, _ITERATIONS)  # lets go of the interpreter's lock
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    salt64, stored64, server64 = (base64.b64encode(part).decode() for part in (salt, stored, server))
    return Password(clear, f"SCRAM-SHA-256${_ITERATIONS}:{salt64}${stored64}:{server64}")
