"""Whether a PostgreSQL server is ready for the broker: the least rights, the template roles, the clock."""

from collections.abc import Iterator, Sequence
from typing import Final

from issuers import IssuerError, Seen, clock_seen
from issuers.postgres_admin import Connection, Server, Sessions

_SETUP: Final = "`taskpass postgres-setup` prints the SQL that an administrator runs."


def examine(
    sessions: Sessions, server: Server, *, roles: Sequence[str], databases: Sequence[str], now: int
) -> Iterator[Seen]:
    """Look at what the resources need: their template roles, and the databases that they send agents to."""
    try:
        with sessions.one() as session:
            yield Seen("server", "ok", f"PostgreSQL {session.info.server_version // 10_000} answers and lets us in")
            yield from _server(session, now)
            for role in roles:
                yield _template(session, role)
            for name in databases:
                if not _any(session, "SELECT 1 FROM pg_database WHERE datname = %s", name):
                    yield Seen("database", "wrong", f"there is no {name}", "Correct `dbname` in the registry.")
            if server.reassign_to is not None:
                yield _heir(session, server.reassign_to)
    except IssuerError as error:
        yield Seen("server", "wrong", error.sentence, "Correct `dsn` and the password, or start the server.")


def _server(session: Connection, now: int) -> Iterator[Seen]:
    row = session.execute(
        "SELECT rolname, rolsuper, rolcreaterole, pg_is_in_recovery(), extract(epoch FROM clock_timestamp())::float8"
        " FROM pg_roles WHERE rolname = current_user"
    ).fetchone()
    assert row is not None
    name, superuser, makes_roles, standby, clock = row
    if superuser:
        yield Seen("rights", "warning", f"{name} is a superuser: the broker needs CREATEROLE only", _SETUP)
    elif not makes_roles:
        yield Seen("rights", "wrong", f"{name} may not make roles", _SETUP)
    else:
        yield Seen("rights", "ok", f"{name} may make roles, and is no superuser")
    if standby:
        yield Seen("server", "wrong", "it is a standby, which only reads", "Have `dsn` reach the primary.")
    yield clock_seen(clock, now)


def _template(session: Connection, role: str) -> Seen:
    row = session.execute(
        "SELECT rolsuper, pg_has_role(current_user, oid, 'MEMBER WITH ADMIN OPTION'),"
        " (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) FROM pg_roles WHERE rolname = %s",
        (role,),
    ).fetchone()
    if row is None:
        return Seen("role", "wrong", f"there is no {role}", "Create it, or correct `roles` in the registry.")
    superuser, administered, we_are_superuser = row
    if superuser:
        return Seen("role", "wrong", f"{role} is a superuser, and so would every login be", "Name one that is not.")
    if session.info.server_version >= 160_000 and not administered and not we_are_superuser:
        return Seen("role", "wrong", f"the broker may not hand out {role}", _SETUP)
    return Seen("role", "ok", f"{role} can be handed out")


def _heir(session: Connection, role: str) -> Seen:
    row = session.execute(
        "SELECT pg_has_role(current_user, oid, 'MEMBER') FROM pg_roles WHERE rolname = %s", (role,)
    ).fetchone()
    if row is None:
        return Seen(
            "role", "wrong", f"there is no {role} to reassign objects to", "Create it, or correct `reassign_to`."
        )
    if not row[0]:
        return Seen("role", "wrong", f"the broker is no member of {role}, so it cannot reassign objects to it", _SETUP)
    return Seen("role", "ok", f"{role} gets the objects of logins that end")


def _any(session: Connection, query: str, value: str) -> bool:
    return session.execute(query.encode(), (value,)).fetchone() is not None
