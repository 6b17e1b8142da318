"""The way to a PostgreSQL server whose login roles we make: its settings, our sessions there, and its errors sorted."""

import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, TypeVar

import psycopg
from psycopg import conninfo
from psycopg.abc import PQGen
from psycopg.rows import TupleRow

from issuers import IssuerError

Connection = psycopg.Connection[TupleRow]
_T = TypeVar("_T")

_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,15}")
OWNED: Final = ("refuse", "reassign")


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """One server, as `[issuers.<name>]` describes it. `server_of` checks it."""

    dsn: str  # how the broker reaches it, as its admin role; never with a password
    password_file: str | None = None  # read with every new session, so that it may be changed
    password_env: str | None = None
    host: str | None = None  # what agents are told, where it differs from the broker's own way
    port: int | None = None
    sslmode: str | None = None  # what agents are told to insist on
    prefix: str = "tp"  # every role of ours is named <prefix>_<epoch>_<position>
    owned: str = "refuse"  # a role that owns objects when it must go: `refuse`, or `reassign` them to `reassign_to`
    reassign_to: str | None = None
    min_ttl_s: int = 30
    max_ttl_s: int = 3_600
    connections: int = 8  # of ours at once
    connect_timeout_s: int = 5
    statement_timeout_s: int = 10


def server_of(section: Mapping[str, Any]) -> Server:
    """Read a section of the configuration. Raises ValueError with a sentence."""
    kinds = {field.name: field.type for field in fields(Server)}
    if unknown := sorted(set(section) - set(kinds)):
        raise ValueError(f"{unknown[0]!r} is no setting of a PostgreSQL issuer; there are {', '.join(sorted(kinds))}")
    for name, value in section.items():
        wants = int if "int" in str(kinds[name]) else str
        if value is not None and (not isinstance(value, wants) or isinstance(value, bool)):
            raise ValueError(f"{name!r} must be {'a number' if wants is int else 'text'}")
        if isinstance(value, int) and value < 1:
            raise ValueError(f"{name!r} must be at least 1")
    if "dsn" not in section:
        raise ValueError("'dsn' is missing: how the broker's admin role reaches the server")
    server = Server(**section)
    _check_dsn(server.dsn)
    if _NAME.fullmatch(server.prefix) is None:
        raise ValueError("'prefix' must be a lower-case letter and up to 15 more letters, digits or underscores")
    if server.owned not in OWNED:
        raise ValueError(f"'owned' must be one of {', '.join(OWNED)}")
    if (server.owned == "reassign") != (server.reassign_to is not None):
        raise ValueError("'reassign_to' goes with 'owned' = \"reassign\": it names the role that gets the objects")
    if server.password_file is not None and server.password_env is not None:
        raise ValueError("Give 'password_file' or 'password_env', not both")
    if server.min_ttl_s > server.max_ttl_s:
        raise ValueError("'min_ttl_s' is above 'max_ttl_s'")
    return server


def _check_dsn(dsn: str) -> None:
    try:
        parts = conninfo.conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:  # its text repeats the DSN
        raise ValueError("'dsn' is not a connection string of PostgreSQL") from None
    if "password" in parts:
        raise ValueError("'dsn' must not hold a password: name 'password_file' or 'password_env' instead")
    if "user" not in parts:
        raise ValueError("'dsn' must name the admin role as its user")


class _Patient(psycopg.Connection[TupleRow]):
    """A connection on which no answer is waited for longer than this, whatever the server does or does not do."""

    patience_s: float = 5

    def wait(self, gen: PQGen[_T], interval: float = 0.1, timeout: float | None = None) -> _T:
        return super().wait(gen, interval, self.patience_s if timeout is None else min(timeout, self.patience_s))


class Sessions:
    """Our sessions on one server. A session that saw any error is not used again."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._free = threading.BoundedSemaphore(server.connections)
        self._idle: list[Connection] = []

    @contextmanager
    def one(self) -> Iterator[Connection]:
        """A session in the database of the DSN, in autocommit mode. Raises IssuerError, also for what happens in it."""
        wait_s = self._server.connect_timeout_s + self._server.statement_timeout_s
        if not self._free.acquire(timeout=wait_s):
            raise IssuerError("All sessions of the broker on this server are busy.", happened=False, retry_after_s=1)
        try:
            connection = self._usable() or self.connect()
            try:
                with sorted_errors():
                    yield connection
            except BaseException:
                connection.close()
                raise
            self._idle.append(connection)
        finally:
            self._free.release()

    def connect(self, dbname: str | None = None) -> Connection:
        """A session of its own, in another database if one is named. Raises IssuerError: nothing happened."""
        extra: dict[str, Any] = {} if dbname is None else {"dbname": dbname}
        timeout_ms = self._server.statement_timeout_s * 1_000
        try:
            connection = _Patient.connect(
                self._server.dsn,
                autocommit=True,
                password=self._password(),
                application_name="taskpass",
                connect_timeout=self._server.connect_timeout_s,
                prepare_threshold=None,
                **extra,
            )
        except psycopg.Error as error:
            raise IssuerError(_unreachable(error), happened=False) from None
        try:
            connection.patience_s = self._server.statement_timeout_s + self._server.connect_timeout_s
            # Half as long for a lock, so that it is the lock that the error names.
            connection.execute(
                f"SET statement_timeout = {timeout_ms}; SET lock_timeout = {timeout_ms // 2};"
                f" SET idle_in_transaction_session_timeout = {connection.patience_s * 1_000}".encode()
            )
        except psycopg.Error as error:
            connection.close()
            raise IssuerError(_unreachable(error), happened=False) from None
        return connection

    def close(self) -> None:
        """Let go of all that are idle."""
        while self._idle:
            self._idle.pop().close()

    def _usable(self) -> Connection | None:
        """An idle session that the server has not ended meanwhile. Asks nobody."""
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            try:
                for _ in range(2):  # what the server said last comes before the end itself
                    connection.pgconn.consume_input()
            except psycopg.OperationalError:
                connection.close()
                continue
            if connection.info.transaction_status is psycopg.pq.TransactionStatus.IDLE:
                return connection
            connection.close()

    def _password(self) -> str | None:
        server = self._server
        if server.password_env is not None:
            if not (password := os.environ.get(server.password_env)):
                raise IssuerError(f"The environment has no {server.password_env}.", happened=False)
            return password
        if server.password_file is None:
            return None  # a certificate, peer authentication, or libpq's own password file
        try:
            return Path(server.password_file).read_text().strip()
        except (OSError, UnicodeDecodeError):
            raise IssuerError(f"The file {server.password_file} cannot be read.", happened=False) from None


@contextmanager
def sorted_errors() -> Iterator[None]:
    """Turns what psycopg raises into IssuerError: said in our words, and with what is known of the effect."""
    try:
        yield
    except psycopg.Error as error:
        state = error.sqlstate
        raise IssuerError(
            _sentence(state),
            # An error with a state is an answer, and undid the statement's transaction. A server that is going down
            # may have committed before it said so.
            happened=None if state is None or state.startswith(("08", "57P")) else False,
            retry_after_s=1 if state in {"53300", "55P03", "40P01"} else None,
        ) from None  # its text may repeat the statement


def _unreachable(error: psycopg.Error) -> str:
    """No state comes with a failed connection: whether the server answered can only be read."""
    if (error.sqlstate or "").startswith("28") or "authentication failed" in str(error):
        return "PostgreSQL does not let the broker in: check the admin role of `dsn`, and its password."
    return "PostgreSQL cannot be reached, or does not take the broker's connection."


_SENTENCES: Final = {
    "25006": "This PostgreSQL server is read only, as a standby is: `dsn` must reach the primary.",
    "42501": "The broker's admin role lacks a right at PostgreSQL: `setup_sql` prints what it needs.",
    "42704": "PostgreSQL does not know a role or a parameter that the settings name.",
    "42710": "PostgreSQL has a role of this name already.",
    "53300": "PostgreSQL has no connection left.",
    "55P03": "Something at PostgreSQL holds the lock that is needed.",
    "57014": "PostgreSQL took longer than the broker waits.",
}


def _sentence(state: str | None) -> str:
    if state is None or state.startswith(("08", "57P")):
        return "The connection to PostgreSQL was lost before it answered."
    return _SENTENCES.get(state, f"PostgreSQL refused (SQLSTATE {state}).")
