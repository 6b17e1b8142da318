"""The credentials that a client holds, and how long it goes on using them. Pure bookkeeping, safe under threads."""

import threading
from collections import OrderedDict
from dataclasses import dataclass

from broker.sdk.clock import Elapsed
from broker.sdk.errors import TaskOver
from broker.sdk.protocol import Ask, Credential

REFRESH_AT = 0.8
"""Share of a credential's life after which the next use asks for a new one; until its end the old one still serves."""

MAX_HELD = 1024


@dataclass(frozen=True, slots=True)
class _Held:
    credential: Credential
    refresh_at: int  # on the elapsed clock, as is the next
    expires_at: int


class Wallet:
    """Credentials by what was asked for. Life counts from before the asking, on a clock that runs through suspend."""

    def __init__(self, *, elapsed: Elapsed) -> None:
        self._elapsed = elapsed
        self._lock = threading.Lock()
        self._held: OrderedDict[Ask, _Held] = OrderedDict()
        self._over: OrderedDict[str, None] = OrderedDict()

    def now(self) -> int:
        """The moment to hand to `put` later: take it before asking."""
        return self._elapsed()

    def fresh(self, ask: Ask) -> Credential | None:
        """A credential with life left in it. Raises TaskOver when the ask's task has ended here."""
        self._refuse_if_over(ask.task)
        held = self._held.get(ask)
        return held.credential if held is not None and self._elapsed() < held.refresh_at else None

    def unexpired(self, ask: Ask) -> Credential | None:
        """One that still works though it is due for renewal: for when the broker does not answer."""
        held = self._held.get(ask)
        return held.credential if held is not None and self._elapsed() < held.expires_at else None

    def put(self, ask: Ask, credential: Credential, *, asked_at: int) -> None:
        """Keep it. Raises TaskOver, and keeps nothing, when the task ended while the broker was being asked."""
        life = credential.expires_in * 1_000_000_000
        with self._lock:
            self._refuse_if_over(ask.task)
            self._held[ask] = _Held(credential, asked_at + int(life * REFRESH_AT), asked_at + life)
            self._held.move_to_end(ask)
            while len(self._held) > MAX_HELD:
                self._held.popitem(last=False)

    def discard(self, credential: Credential) -> None:
        """Forget this one, as its service refused it. One that has replaced it meanwhile stays."""
        with self._lock:
            for ask in [ask for ask, held in self._held.items() if held.credential is credential]:
                del self._held[ask]

    def end(self, task: str) -> None:
        """Forget what was issued under this task, and never hand out anything under it again."""
        with self._lock:
            self._over[task] = None
            while len(self._over) > MAX_HELD:
                self._over.popitem(last=False)
            for ask in [ask for ask in self._held if ask.task == task]:
                del self._held[ask]

    def _refuse_if_over(self, task: str | None) -> None:
        if task is not None and task in self._over:
            raise TaskOver(f"Task {task} has ended.", code="task_over", next="Open a new task.")
