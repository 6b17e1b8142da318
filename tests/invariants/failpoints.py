"""Places at which a broker process of these tests dies or fails, put around the product's own parts from outside.

A failpoint is armed by writing `STEP ACTION` into the file that the environment names; it goes off once. Steps are
written below where they are put. An action is `kill` or `stop` (SIGKILL or SIGSTOP to itself), or the name of an SQLite
error code to raise.
"""

import os
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from broker.jose import Signer
from broker.ledger.commands import admin, credentials, endings, issue, kills, renewal, tasks
from broker.ledger.proofs import KeepCheckpoint
from broker.ledger.sqlite import SqliteLedger
from broker.service.issuance import Issuance
from broker.web.app import Application
from broker.web.exchange import Exchange
from tests.invariants.file_backend import FileIssuer

FILE = "INVARIANTS_FAILPOINT"

COMMANDS: dict[str, type] = {
    "issue": issue.Issue,
    "refuse": issue.Refuse,
    "pend": issue.Pend,
    "authenticate": issue.Authenticate,
    "session": admin.OpenSession,
    "rotate": admin.RotateKeys,
    "kill": kills.Kill,
    "lift": kills.LiftHolds,
    "task": tasks.OpenTask,
    "end": tasks.EndTask,
    "checkpoint": KeepCheckpoint,
    "intent": credentials.Begin,
    "prepared": credentials.Prepared,
    "deliver": credentials.Deliver,
    "renewing": renewal.Renew,
    "renewed": renewal.Renewed,
    "claim": endings.Claim,
    "settle": endings.Settle,
}


class Failpoint:
    """Goes off when its step is reached while it is armed."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def arm(self, step: str, action: str = "kill") -> None:
        """From the test's process, or from this one."""
        waiting = self._file.with_suffix(".next")
        waiting.write_text(f"{step} {action}")
        waiting.replace(self._file)

    @property
    def armed(self) -> bool:
        return self._file.exists()

    def reached(self, step: str) -> None:
        try:
            wanted, action = self._file.read_text().split()
        except OSError:
            return
        if wanted != step:
            return
        self._file.unlink()
        if action in ("kill", "stop"):
            os.kill(os.getpid(), signal.SIGKILL if action == "kill" else signal.SIGSTOP)
            time.sleep(0.1)  # the signal goes to the process: this thread would get a little further than here
            return
        error = sqlite3.OperationalError(f"injected at {step}")
        error.sqlite_errorcode = getattr(sqlite3, action)
        raise error


def connection_type(failpoint: Failpoint) -> type[sqlite3.Connection]:
    """A connection whose write transactions can fail: `before:BEGIN`, `after:BEGIN`, the same of INSERT and COMMIT."""

    class Failing(sqlite3.Connection):
        def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
            step = sql.split(maxsplit=1)[0]
            if sql not in ("BEGIN IMMEDIATE", "COMMIT"):
                return super().execute(sql, *args)
            failpoint.reached(f"before:{step}")
            cursor = super().execute(sql, *args)
            failpoint.reached(f"after:{step}")
            return cursor

        def executemany(self, sql: str, *args: Any) -> sqlite3.Cursor:
            failpoint.reached("before:INSERT")
            cursor = super().executemany(sql, *args)
            failpoint.reached("after:INSERT")
            return cursor

    return Failing


def install(file: Path | None = None) -> None:
    """Put every failpoint in place, in a process of its own; without a file, none."""
    name = str(file or os.environ.get(FILE, ""))
    if not name:
        return
    failpoint = Failpoint(Path(name))
    SqliteLedger.open = _opening(SqliteLedger.open, failpoint)  # type: ignore[method-assign]
    for step, command in COMMANDS.items():
        command.apply = _around(command.apply, failpoint, after=f"applied:{step}")  # type: ignore[attr-defined]
    Issuance._authenticate = _around(Issuance._authenticate, failpoint, after="authenticated")
    Signer.sign = _around(Signer.sign, failpoint, before="before:sign", after="after:sign")
    for step in ("prepare", "issue", "renew", "close", "revoke", "status"):
        call = _around(getattr(FileIssuer, step), failpoint, before=f"before:{step}d", after=f"after:{step}d")
        setattr(FileIssuer, step, call)
    FileIssuer.begin = _around(FileIssuer.begin, failpoint, after="begun")  # type: ignore[method-assign]
    Application.__call__ = _answering(Application.__call__, failpoint)
    Exchange._write = _writing(Exchange._write, failpoint)


def _opening(opened: Callable[..., SqliteLedger], failpoint: Failpoint) -> Any:
    return lambda path, **options: opened(path, **options, connection_type=connection_type(failpoint))


def _around(function: Callable[..., Any], failpoint: Failpoint, *, before: str = "", after: str = "") -> Any:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        failpoint.reached(before)
        result = function(*args, **kwargs)
        failpoint.reached(after)
        return result

    return wrapped


def _answering(application: Callable[..., Any], failpoint: Failpoint) -> Any:
    """`before:first_byte`, `after:first_byte` and `after:last_byte` of an answer."""

    async def call(self: Any, scope: Any, receive: Any, send: Any) -> None:
        # A client can have the last byte of an answer before the line after it runs here, and arm for its next one.
        meant = failpoint.armed

        async def sending(message: Any) -> None:
            start = message["type"] == "http.response.start"
            if start and meant:
                failpoint.reached("before:first_byte")
            await send(message)
            if meant:
                failpoint.reached("after:first_byte" if start else "after:last_byte")

        await application(self, scope, receive, sending)

    return call


def _writing(write: Callable[..., None], failpoint: Failpoint) -> Any:
    """The same for an answer that leaves in one piece, without the application."""

    def call(self: Any, head: bytes, body: bytes) -> None:
        meant = failpoint.armed
        if meant:
            failpoint.reached("before:first_byte")
        write(self, head, body)
        if meant:
            failpoint.reached("after:first_byte")
            failpoint.reached("after:last_byte")

    return call
