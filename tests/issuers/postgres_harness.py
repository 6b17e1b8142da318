"""PostgreSQL issuers on a throwaway server, with an admin role that has no more rights than the documentation asks for,
and passwords that are really asked for.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from issuers import Handle, Minted, Order
from issuers.postgres import PostgresIssuer, server_of, setup_sql
from tests.issuers.harness import EPOCH, Fault, Harness, Use, new_order
from tests.postgres import Server, server_or_skip
from tests.proxy import Proxy

ADMIN_PASSWORD = "correct-horse-battery-staple"
ACCESS = """
local all taskpass trust
host all taskpass 127.0.0.1/32 trust
host all all 127.0.0.1/32 scram-sha-256
"""
EFFECT = b"ALTER ROLE "  # what only those of the issuer's exchanges say that have an effect


class PostgresHarness(Harness):
    """The issuer talks through a proxy; logins and looks go straight to the server."""

    fails = frozenset(Fault)
    renewable = True
    never_shown = (ADMIN_PASSWORD,)

    def __init__(self, server: Server, place: Path, **settings: Any) -> None:
        self.server = server
        self.proxy = Proxy(server.port, commit=EFFECT)
        self.password_file = place / "admin-password"
        self.password_file.write_text(ADMIN_PASSWORD + "\n")
        self.section = {
            "dsn": f"postgresql://tp_admin@127.0.0.1:{self.proxy.port}/app",
            "password_file": str(self.password_file),
            "host": "127.0.0.1",
            "port": server.port,
            "connect_timeout_s": 2,
            "statement_timeout_s": 2,
        }
        self.issuer: PostgresIssuer = self.make(**settings)

    def make(self, *, ledger: str = EPOCH, **settings: Any) -> PostgresIssuer:
        """Another issuer on the same server."""
        return PostgresIssuer(server=server_of(self.section | settings), ledger=ledger)

    def order(self, **changes: Any) -> Order:
        settings = {"roles": "app_read"} | changes.pop("settings", {})
        return new_order(now_s=int(time.time()), ttl_s=300, **{"settings": settings} | changes)

    def use(self, values: Mapping[str, str]) -> Use:
        try:
            with psycopg.connect(values["uri"], connect_timeout=5) as connection:
                row = connection.execute("SELECT current_user, count(*) FROM app_table").fetchone()
        except psycopg.OperationalError:
            return Use(accepted=False)
        assert row is not None
        return Use(accepted=True, proof=row[0])

    def existing(self) -> set[str]:
        rows = self.server.run(
            r"SELECT rolname FROM pg_roles WHERE rolname ~ '^tp_[0-9a-f]{8}_'"
            " UNION SELECT 'a session without a role' FROM pg_stat_activity a"
            " LEFT JOIN pg_roles r ON r.oid = a.usesysid WHERE a.usesysid <> 0 AND r.oid IS NULL"
        )
        return {str(row[0]) for row in rows}

    def name(self, handle: Handle) -> str:
        return handle["role"]

    def lives_until(self, values: Mapping[str, str]) -> int:
        return valid_until(self.server, values["username"])

    def fail_next(self, fault: Fault) -> None:
        self.proxy.on_commit = {Fault.FAILED: "cut_request", Fault.HAPPENED: "cut_answer"}[fault]

    def after(self, minted: Minted) -> None:
        pytest.skip("the server's clock cannot be moved")

    def sessions_of(self, role: str) -> int:
        """How many sessions a role has, by the server's own view."""
        ((number,),) = self.server.run(f"SELECT count(*) FROM pg_stat_activity WHERE usename = '{role}'")
        assert isinstance(number, int)
        return number

    def close(self) -> None:
        self.issuer.shut_down()
        self.proxy.close()


def valid_until(server: Server, role: str) -> int:
    """Until when the server lets a role in, in seconds."""
    ((until,),) = server.run(f"SELECT extract(epoch FROM rolvaliduntil)::bigint FROM pg_roles WHERE rolname = '{role}'")
    assert isinstance(until, int)
    return until


def a_server(**settings: str) -> Server:
    """A server with a database of an application, two roles to take privileges from, and the broker's admin role."""
    server = server_or_skip(**settings)
    server.ask_for_passwords(ACCESS)
    server.run("CREATE DATABASE app")
    described = server_of({"dsn": "postgresql://tp_admin@127.0.0.1/app"})
    server.run("CREATE ROLE app_read; CREATE ROLE app_write")
    server.run(setup_sql(described, ["app_read", "app_write"], version=server.version))
    server.run(f"ALTER ROLE tp_admin PASSWORD '{ADMIN_PASSWORD}' CONNECTION LIMIT 50")
    server.run(
        "CREATE TABLE app_table (x int); GRANT SELECT ON app_table TO app_read;"
        " GRANT SELECT, INSERT ON app_table TO app_write; GRANT CREATE ON SCHEMA public TO app_write",
        "app",
    )
    return server


@contextmanager
def postgres(place: Path) -> Iterator[Harness]:
    """For the conformance suite."""
    server = a_server(fsync="off")
    try:
        harness = PostgresHarness(server, place)
        yield harness
        harness.close()
    finally:
        server.close()
