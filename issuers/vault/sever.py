"""Ends the sessions that a dropped PostgreSQL login has left open: dropping a role closes none."""

import os
from pathlib import Path
from threading import Lock
from typing import Any, Final

import psycopg

from issuers import IssuerError, Seen

_TIMEOUT_S: Final = 5
_WAIT_MS: Final = 2_000
_IDENTIFY: Final = "SELECT oid::text FROM pg_roles WHERE rolname = %s"
_MAY: Final = "SELECT pg_has_role(current_user, 'pg_signal_backend', 'USAGE')"
_SEVER: Final = "SELECT pg_terminate_backend(pid, %s) FROM pg_stat_activity WHERE usesysid = %s::oid"
_COUNT: Final = "SELECT count(*) FROM pg_stat_activity WHERE usesysid = %s::oid"


class Severer:
    """One admin connection, opened when it is needed and again when it was lost. It needs `pg_signal_backend`.

    Logins are known by oid: once one is dropped, its sessions no longer show its name.
    """

    def __init__(self, reference: str) -> None:
        """`env:NAME` or `file:PATH`, of which the address is read at each connect. Raises ValueError."""
        kind, _, self._name = reference.partition(":")
        if kind not in {"env", "file"} or not self._name:
            raise ValueError("an admin connection must be env:NAME or file:PATH")
        self._from_file = kind == "file"
        self._lock = Lock()
        self._connection: psycopg.Connection[Any] | None = None

    def __del__(self) -> None:
        if getattr(self, "_connection", None) is not None:
            self._drop()

    def identify(self, login: str) -> str:
        """The oid of a login. Raises IssuerError."""
        rows = self._ask(_IDENTIFY, (login,))
        if not rows:
            raise IssuerError("The admin connection does not see the login: is it one to the same server?")
        return str(rows[0][0])

    def sever(self, oid: str) -> None:
        """End its sessions, and wait until they are. Raises IssuerError."""
        self._ask(_SEVER, (_WAIT_MS, oid))

    def count(self, oid: str) -> int:
        """How many sessions it still has. Raises IssuerError."""
        return int(self._ask(_COUNT, (oid,))[0][0])

    def seen(self, name: str) -> Seen:
        """Whether it can do that, for whoever sets it up; `name` is what the configuration calls it."""
        try:
            ((may,),) = self._ask(_MAY, ())
        except IssuerError as error:
            return Seen("admin", "wrong", f"{name}: {error.sentence}", "Correct the address, or start the database.")
        if not may:
            advice = "GRANT pg_signal_backend to its role: then a revocation ends open sessions too."
            return Seen("admin", "wrong", f"{name} may not end sessions", advice)
        return Seen("admin", "ok", f"{name} can end sessions")

    def _ask(self, sql: str, parameters: tuple[object, ...]) -> list[tuple[Any, ...]]:
        with self._lock:
            kept = self._connection is not None
            try:
                return self._run(sql, parameters)
            except psycopg.Error:
                self._drop()
                if not kept:
                    raise IssuerError("The admin connection to the database failed.") from None
            try:  # the server may have restarted since it was last used
                return self._run(sql, parameters)
            except psycopg.Error:
                self._drop()
                raise IssuerError("The admin connection to the database failed.") from None

    def _run(self, sql: str, parameters: tuple[object, ...]) -> list[tuple[Any, ...]]:
        if self._connection is None:
            self._connection = psycopg.connect(
                self._address(),
                autocommit=True,
                connect_timeout=_TIMEOUT_S,
                options=f"-c statement_timeout={_TIMEOUT_S * 1000}",
                application_name="taskpass",
                tcp_user_timeout=_TIMEOUT_S * 1000,
            )
        return self._connection.execute(sql.encode(), parameters).fetchall()

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _address(self) -> str:
        try:
            text = Path(self._name).read_text() if self._from_file else os.environ[self._name]
        except (OSError, KeyError, ValueError):
            raise IssuerError("The address of the admin connection cannot be read.") from None
        return text.strip()
