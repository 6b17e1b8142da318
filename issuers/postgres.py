"""PostgreSQL: one login role per grant, with the privileges of template roles, and no trace of it when the grant ends.

The role's name follows from the grant's id, so what a crash left behind is always found. The role, its comment and its
memberships are one transaction. The comment says whose it is: brokers that share a server end only what is theirs.
The password is sent as a SCRAM verifier. Its clear text reaches neither the server's log nor its memory.
"""

import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote, urlencode

import psycopg
from psycopg import conninfo, sql

from issuers import Ending, Found, Handle, Intent, IssuerError, Minted, Order, Seen, Standing, Wish
from issuers.postgres_admin import Connection, Server, Sessions, server_of, sorted_errors
from issuers.postgres_check import examine
from issuers.scram import Passwords

__all__ = ["PostgresIssuer", "PostgresSettings", "Server", "server_of", "settings_of", "setup_sql"]

_GRANT: Final = re.compile(r"[a-z]{3}_([0-9a-f]{8})_(0|[1-9][0-9]{0,17})")
_LEDGER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:/_-]{0,127}")
_PARAMETER: Final = re.compile(r"[a-z_][a-z0-9_.]{0,62}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresSettings:
    """What a login of one resource gets, as the resource's `settings` say. `settings_of` checks it."""

    roles: str | Mapping[str, str]  # the role whose privileges it has; or one for each action
    dbname: str | None = None  # what agents are told to open; the database of `dsn` otherwise
    connection_limit: int = 5
    search_path: tuple[str, ...] = ()
    session: Mapping[str, str] | None = None  # parameters of its sessions: statement_timeout and the like

    def granted(self, actions: tuple[str, ...]) -> list[str]:
        """The roles for these actions. Raises IssuerError for an action that has none."""
        if isinstance(self.roles, str):
            return [self.roles]
        if unprovided := self.unprovided(actions):
            raise IssuerError(f"The resource names no role for the action {unprovided[0]}.", happened=False)
        return sorted({self.roles[action] for action in actions})

    def unprovided(self, actions: Iterable[str]) -> list[str]:
        """See `issuers.ByAction`."""
        return [] if isinstance(self.roles, str) else [action for action in actions if action not in self.roles]


def settings_of(mapping: Mapping[str, Any]) -> PostgresSettings:
    """The settings of a resource, as written in the registry. Raises ValueError with a sentence."""
    known = {field.name for field in fields(PostgresSettings)}
    if unknown := sorted(set(mapping) - known):
        raise ValueError(f"{unknown[0]!r} is no setting of a PostgreSQL resource; there are {', '.join(sorted(known))}")
    roles = mapping.get("roles")
    if not (_is_text(roles) or (isinstance(roles, Mapping) and roles and all(map(_is_text, roles.values())))):
        raise ValueError("'roles' must name the role whose privileges a login gets, or one for each action")
    if not _is_text(mapping.get("dbname", "x")):
        raise ValueError("'dbname' must be the name of a database")
    limit = mapping.get("connection_limit", 5)
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        raise ValueError("'connection_limit' must be a number, at least 1")
    path = mapping.get("search_path", ())
    if not isinstance(path, list | tuple) or not all(map(_is_text, path)):
        raise ValueError("'search_path' must be a list of schemas")
    session = mapping.get("session")
    if session is not None and not (
        isinstance(session, Mapping) and all(_PARAMETER.fullmatch(str(k)) and _is_text(v) for k, v in session.items())
    ):
        raise ValueError("'session' must give parameters of PostgreSQL their values, as text")
    return PostgresSettings(**{**mapping, "search_path": tuple(path)})


def _is_text(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 1_000 and "\0" not in value


class PostgresIssuer:
    """Makes login roles, ends their sessions, and drops them. `ledger` names the ledger that owns them, and must stay
    the same when the ledger is restored: what only the lost part knew is an orphan then, and still ours.

    A login's VALID UNTIL refuses new sessions after it; open ones go on until `revoke`, so expired grants are revoked
    too. DROP OWNED needs the role's own privileges, and so does ending its sessions: the admin role makes itself a
    member of the role when it ends it, never before.
    """

    kind = "postgres"
    ending = Ending.REVOCABLE

    def __init__(self, *, server: Server, ledger: str) -> None:
        if _LEDGER.fullmatch(ledger) is None:
            raise ValueError("The name of the ledger cannot be part of a comment")
        self._server = server
        self._mark = f"taskpass {ledger} "
        self._sessions = Sessions(server)
        self._passwords = Passwords(ready=server.connections)
        self.min_ttl_s, self.max_ttl_s = server.min_ttl_s, server.max_ttl_s

    def foreseen(self, order: Order) -> Handle | None:
        """The name of the role to come follows from the grant's id."""
        match = _GRANT.fullmatch(order.jti)
        return None if match is None else {"role": f"{self._server.prefix}_{match[1]}_{match[2]}"}

    def prepare(self, order: Order) -> Handle:
        """The name of the role to come."""
        if (handle := self.foreseen(order)) is None:
            raise IssuerError("The grant's id cannot name a role.", happened=False)
        return handle

    def issue(self, order: Order, prepared: Handle) -> Minted:
        """Create the role with a password of its own, in one transaction."""
        minted = self.issue_when(Wish(order.actions, order.limited, order.settings), lambda: Intent(order, prepared))
        assert minted is not None
        return minted

    def issue_when(self, wish: Wish, intent: Callable[[], Intent | None]) -> Minted | None:
        """See `issuers.IssuesWhen`. What takes the server its time comes first, under a name that nobody ever sees; all
        that others might have to wait for, and the role's own name, only after the intent.
        """
        settings, granted = _granted(wish)
        password, verifier = self._passwords.take()
        unseen = f"{self._server.prefix}_new_{secrets.token_hex(8)}"
        with self._sessions.one() as session:
            with _nothing_happened():
                oid = _new_role(session, _create(unseen, verifier, settings), unseen)
                committed = intent()
            if committed is None:
                session.execute("ROLLBACK")
                return None
            order, prepared = committed
            role, exp = prepared["role"], self._until(order)
            statements = [
                _turn(role),
                sql.SQL("ALTER ROLE {} RENAME TO {}").format(sql.Identifier(unseen), sql.Identifier(role)),
                _until(role, exp),
                _mark(role, self._mark + order.jti),
                *_equip(role, granted, settings),
                sql.SQL("COMMIT"),
            ]
            session.execute(sql.SQL("; ").join(statements))
            values = self._values(session, settings, role, password)
        self._passwords.refill()  # after this answer: it would slow PostgreSQL down while it computes, too
        return Minted(values=values, handle={**prepared, "oid": oid}, exp=exp)

    def _until(self, order: Order) -> int:
        """When the login ends by itself. Raises IssuerError."""
        exp = min(order.exp, order.iat + self.max_ttl_s)
        if exp < order.iat + self.min_ttl_s:
            raise IssuerError(f"A database login lasts {self.min_ttl_s} seconds at least.", happened=False)
        return exp

    def renews(self, handle: Handle) -> bool:
        """Every login that was made."""
        return "oid" in handle

    def renew(self, handle: Handle, exp: int) -> int:
        """Move the role's VALID UNTIL, unless it has gone or its door is closed: then it is being ended."""
        role = handle["role"]
        with self._sessions.one() as session:
            session.execute(sql.SQL("BEGIN; ") + _turn(role))  # whoever ends it waits until this is over, or is done
            found = self._look_up(session, role)
            if found is None or not found.ours or not found.can_login or found.oid != handle["oid"]:
                raise IssuerError("The login has ended, so it cannot be renewed.", happened=False)
            session.execute(_until(role, exp) + sql.SQL("; COMMIT"))
        return exp

    def revoke(self, handle: Handle) -> None:
        """Close the door, end whoever is inside, clear away what depends on the role, drop it. Waits for a
        creation whose answer was given up; one that the server begins only later makes an orphan, found as such.
        """
        role = handle["role"]
        with self._sessions.one() as session:
            session.execute(_turn(role))
            found = self._look_up(session, role)
            if found is None:
                self._end_sessions(session, handle.get("oid"), gone=True)
                return
            if not found.ours:
                raise IssuerError(
                    f"The role {role} does not bear the mark of this broker, so it is left alone and may still work. "
                    "Drop it by hand, or restore its comment."
                )
            self._close_door(session, role)
            self._end_sessions(session, found.oid, gone=False)
            self._clear(session, role, found.oid)
            self._end_sessions(session, found.oid, gone=False)  # one may have been let in just before the door closed
            try:
                session.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(role)))
            except psycopg.errors.DependentObjectsStillExist:
                raise IssuerError(
                    f"Somebody gave the role {role} privileges of its own, which the broker may not take away, so it "
                    "is kept; nobody can log in any more. Revoke them, and the broker drops the role.",
                    happened=False,
                ) from None

    def status(self, handle: Handle) -> Found:
        """Whether the role is there, and whether anybody is inside."""
        with self._sessions.one() as session:
            found = self._look_up(session, handle["role"])
            inside = _sessions_of(session, found.oid if found else handle.get("oid"))
        notes = []
        if found is not None and not found.can_login:
            notes.append("nobody can log in any more, but the role is still there")
        if found is not None and not found.ours:
            notes.append("the role does not bear the mark of this broker")
        if inside:
            notes.append(f"{inside} session{'s are' if inside > 1 else ' is'} open")
        gone = found is None and not inside
        return Found(Standing.GONE if gone else Standing.LIVE, "; ".join(notes) or None)

    def close(self, handle: Handle) -> None:
        """Nothing: no session at the backend belongs to a task."""

    def orphans(self) -> Iterator[Handle]:
        """All roles with our prefix and our mark."""
        with self._sessions.one() as session:
            rows = session.execute(
                "SELECT rolname, oid::text FROM pg_roles WHERE starts_with(rolname, %s)"
                " AND starts_with(shobj_description(oid, 'pg_authid'), %s) ORDER BY oid",
                (f"{self._server.prefix}_", self._mark),
            ).fetchall()
        for name, oid in rows:
            yield {"role": name, "oid": oid}

    def examine(self, resources: Mapping[str, Mapping[str, Any]], now: int) -> Iterator[Seen]:
        """See `issuers.Examiner`. Settings that are wrong in themselves are passed over."""
        roles: set[str] = set()
        databases = set()
        for mapping in resources.values():
            with suppress(ValueError):
                settings = settings_of(mapping)
                roles |= {settings.roles} if isinstance(settings.roles, str) else set(settings.roles.values())
                databases |= {settings.dbname} if settings.dbname else set()
        yield from examine(self._sessions, self._server, roles=sorted(roles), databases=sorted(databases), now=now)

    def shut_down(self) -> None:
        """Let go of the broker's own sessions, and of passwords that nobody got."""
        self._passwords.close()
        self._sessions.close()

    def _look_up(self, session: Connection, role: str) -> "_Role | None":
        row = session.execute(
            "SELECT oid::text, rolcanlogin, coalesce(starts_with(shobj_description(oid, 'pg_authid'), %s), false)"
            " FROM pg_roles WHERE rolname = %s",
            (self._mark, role),
        ).fetchone()
        return None if row is None else _Role(*row)

    def _close_door(self, session: Connection, role: str) -> None:
        """From here on nobody can log in, whatever fails after it. Then take the rights that the rest needs."""
        close = "ALTER ROLE {} NOLOGIN PASSWORD NULL VALID UNTIL '-infinity' CONNECTION LIMIT 0"
        session.execute(sql.SQL(close).format(sql.Identifier(role)))
        inherit = " WITH INHERIT TRUE, SET FALSE" if session.info.server_version >= 160_000 else ""
        session.execute(sql.SQL("GRANT {} TO CURRENT_USER").format(sql.Identifier(role)) + sql.SQL(inherit))

    def _end_sessions(self, session: Connection, oid: str | None, *, gone: bool) -> None:
        """Terminate, then wait for each. A session may outlive its role if somebody else dropped that."""
        if not _sessions_of(session, oid):
            return
        whose = "FROM pg_stat_activity WHERE usesysid = %s::oid"
        wait_ms = self._server.statement_timeout_s * 500
        try:
            session.execute(f"SELECT pg_terminate_backend(pid) {whose}".encode(), (oid,))
            session.execute(f"SELECT pg_terminate_backend(pid, {wait_ms}) {whose}".encode(), (oid,))
        except psycopg.errors.InsufficientPrivilege:
            raise IssuerError(
                "Somebody else dropped the role, and sessions that it opened go on. Terminate them as a superuser."
                if gone
                else "PostgreSQL does not let the broker end the sessions of the role; nobody can log in any more."
            ) from None
        if left := _sessions_of(session, oid):
            raise IssuerError(f"{left} of the role's sessions did not end in time; nobody can log in any more.")

    def _clear(self, session: Connection, role: str, oid: str) -> None:
        """Reassign what the role owns, or refuse; take away what was granted to it alone. In every database."""
        rows = session.execute(
            "SELECT d.datname, count(*) FILTER (WHERE s.deptype = 'o') FROM pg_shdepend s"
            " LEFT JOIN pg_database d ON d.oid = s.dbid OR (s.dbid = 0 AND d.datname = current_database())"
            " WHERE s.refclassid = 'pg_authid'::regclass AND s.refobjid = %s::oid GROUP BY 1",
            (oid,),
        ).fetchall()
        if self._server.reassign_to is None and (owning := [(name, n) for name, n in rows if n]):
            name, number = owning[0]
            raise IssuerError(
                f"The role {role} owns {number} object{'s' if number > 1 else ''} in the database {name}, so it is "
                "kept; nobody can log in any more. Reassign or drop them, and the broker drops the role.",
                happened=False,
            )
        for name, number in rows:
            statements = [sql.SQL("DROP OWNED BY {}").format(sql.Identifier(role))]
            if number and self._server.reassign_to is not None:
                target = sql.Identifier(self._server.reassign_to)
                statements.insert(0, sql.SQL("REASSIGN OWNED BY {} TO {}").format(sql.Identifier(role), target))
            with self._sessions.connect(name) as there, sorted_errors(), there.transaction():
                for statement in statements:
                    there.execute(statement)

    def _values(self, session: Connection, settings: PostgresSettings, role: str, password: str) -> dict[str, str]:
        """What the agent gets: where to go, as whom, and all of it as one URI."""
        host = self._server.host or session.info.host
        port = str(self._server.port or session.info.port)
        dbname = settings.dbname or session.info.dbname
        query = {"sslmode": self._server.sslmode} if self._server.sslmode else {}
        place = f"{host}:{port}"
        if host.startswith("/"):  # a unix socket
            place, query = "", query | {"host": host, "port": port}
        elif ":" in host:
            place = f"[{host}]:{port}"
        uri = f"postgresql://{role}:{password}@{place}/{quote(dbname, safe='')}"
        uri += f"?{urlencode(query)}" if query else ""
        return {"username": role, "password": password, "host": host, "port": port, "dbname": dbname, "uri": uri}


@dataclass(frozen=True, slots=True)
class _Role:
    oid: str
    can_login: bool
    ours: bool


def _sessions_of(session: Connection, oid: str | None) -> int:
    """How many sessions a role has open, be it dropped or not."""
    row = session.execute("SELECT count(*) FROM pg_stat_activity WHERE usesysid = %s::oid", (oid,)).fetchone()
    return int(row[0]) if row else 0


def _turn(role: str) -> sql.Composed:
    """One transaction at a time has this role in hand."""
    return sql.SQL("SELECT pg_advisory_xact_lock(hashtextextended({}, 0))").format(role)


def _granted(wish: Wish) -> tuple[PostgresSettings, list[str]]:
    """What the resource says of its logins, and the roles that this one gets. Raises IssuerError."""
    if wish.limited:
        raise IssuerError("A database login cannot be held to the parameters of an action.", happened=False)
    try:
        settings = settings_of(wish.settings)
    except ValueError as error:
        raise IssuerError(f"The settings of the resource are wrong: {error}.", happened=False) from None
    return settings, settings.granted(wish.actions)


@contextmanager
def _nothing_happened() -> Iterator[None]:
    """Whatever fails while a transaction is open, nothing of it was done."""
    try:
        with sorted_errors():
            yield
    except IssuerError as error:
        raise IssuerError(error.sentence, happened=False, retry_after_s=error.retry_after_s) from None


def _create(role: str, verifier: str, settings: PostgresSettings) -> sql.Composed:
    """A login that has no time yet."""
    return sql.SQL(
        "CREATE ROLE {} LOGIN INHERIT NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS"
        " CONNECTION LIMIT {} PASSWORD {} VALID UNTIL '-infinity'"
    ).format(sql.Identifier(role), settings.connection_limit, verifier)


def _new_role(session: Connection, create: sql.Composed, role: str) -> str:
    """Its oid, in a transaction that stays open."""
    look = sql.SQL("SELECT {}::regrole::oid::text").format(role)
    answers = session.execute(sql.SQL("; ").join([sql.SQL("BEGIN"), create, look])).results()
    return [str(row[0]) for answer in answers if answer.description for row in answer][-1]


def _until(role: str, exp: int) -> sql.Composed:
    return sql.SQL("ALTER ROLE {} VALID UNTIL {}").format(sql.Identifier(role), _timestamp(exp))


def _timestamp(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def _mark(role: str, comment: str) -> sql.Composed:
    return sql.SQL("COMMENT ON ROLE {} IS {}").format(sql.Identifier(role), comment)


def _equip(role: str, granted: list[str], settings: PostgresSettings) -> Iterator[sql.Composed]:
    """Membership without ADMIN, and the parameters of its sessions."""
    name = sql.Identifier(role)
    yield sql.SQL("GRANT {} TO {}").format(sql.SQL(", ").join(map(sql.Identifier, granted)), name)
    if settings.search_path:
        schemas = sql.SQL(", ").join(map(sql.Identifier, settings.search_path))
        yield sql.SQL("ALTER ROLE {} SET search_path = {}").format(name, schemas)
    for parameter, value in sorted((settings.session or {}).items()):
        setting = sql.Identifier(*parameter.split("."))
        yield sql.SQL("ALTER ROLE {} SET {} = {}").format(name, setting, value)


def setup_sql(server: Server, roles: Iterable[str], *, version: int) -> str:
    """What an administrator runs once: the least rights of the broker's admin role on a server of this major version,
    for resources that name these `roles`.

    Before PostgreSQL 16, CREATEROLE alone lets a role grant every role that is no superuser. From 16 on it may grant
    only what it administers, so that the broker cannot hand out more than the named roles.
    """
    user = str(conninfo.conninfo_to_dict(server.dsn)["user"])
    admin, named = sql.Identifier(user), sorted(set(roles))
    lines: list[sql.Composable] = [
        sql.SQL("-- The role that the broker logs in as. Give it a password with \\password {}.").format(admin),
        sql.SQL("CREATE ROLE {} LOGIN CREATEROLE NOSUPERUSER NOCREATEDB NOREPLICATION CONNECTION LIMIT {};").format(
            admin, server.connections * 2
        ),
    ]
    if version >= 16:
        lines.append(sql.SQL("-- What it may hand out, and does not have itself."))
        rights = "GRANT {} TO {} WITH ADMIN TRUE, INHERIT FALSE, SET FALSE;"
        lines += [sql.SQL(rights).format(sql.Identifier(role), admin) for role in named]
    else:
        lines.append(sql.SQL("-- Before PostgreSQL 16, CREATEROLE includes handing out every role but superusers."))
    if server.reassign_to is not None:
        lines.append(sql.SQL("-- Who gets the objects of a login that ends."))
        lines.append(sql.SQL("GRANT {} TO {};").format(sql.Identifier(server.reassign_to), admin))
    return "\n".join(line.as_string(None) for line in lines) + "\n"
