"""PostgreSQL logins: what they may do, what is left of them, and every fault of the server and of the way to it.

What counts is the server's own view, taken as its superuser and past the issuer.
"""

import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from issuers import Intent, IssuerError, Minted, Order, Standing, Wish
from issuers.postgres import PostgresIssuer, server_of, settings_of, setup_sql
from tests.issuers.harness import EPOCH
from tests.issuers.postgres_harness import ADMIN_PASSWORD, PostgresHarness, a_server
from tests.postgres import Server

DSN = "postgresql://tp_admin@db.example.com/app"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = a_server(log_statement="all", log_min_duration_statement="0", max_prepared_transactions="4")
    yield server
    server.close()


@pytest.fixture
def at(server: Server, tmp_path: Path) -> Iterator[PostgresHarness]:
    harness = PostgresHarness(server, tmp_path)
    assert harness.existing() == set()
    yield harness
    for handle in list(harness.issuer.orphans()):
        harness.issuer.revoke(handle)
    harness.close()


def issued(at: PostgresHarness, issuer: PostgresIssuer | None = None, **settings: Any) -> Minted:
    issuer = issuer or at.issuer
    order = at.order(settings=settings)
    return issuer.issue(order, issuer.prepare(order))


def opened(minted: Minted) -> psycopg.Connection[tuple[Any, ...]]:
    return psycopg.connect(minted.values["uri"], autocommit=True)


def refused(at: PostgresHarness, minted: Minted) -> IssuerError:
    """The error of a revocation that cannot be completed. Nobody is inside, and nobody gets in, all the same."""
    with pytest.raises(IssuerError) as caught:
        at.issuer.revoke(minted.handle)
    assert not at.use(minted.values).accepted
    assert at.sessions_of(minted.values["username"]) == 0
    found = at.issuer.status(minted.handle)
    assert found.standing is Standing.LIVE
    assert "nobody can log in" in (found.note or "")
    return caught.value


# --- What a login may do ----------------------------------------------------------------------------------------------


def test_the_role_is_named_by_the_grant_and_has_the_privileges_of_its_template(at: PostgresHarness) -> None:
    order = at.order()
    assert at.issuer.prepare(order) == {"role": f"tp_{EPOCH}_{order.seq}"}
    minted = at.issuer.issue(order, at.issuer.prepare(order))
    with opened(minted) as session:
        session.execute("SELECT * FROM app_table")
        for forbidden in (
            "INSERT INTO app_table VALUES (1)",
            "CREATE TABLE mine (x int)",
            "CREATE ROLE other",
            "GRANT app_read TO tp_admin",
            f"ALTER ROLE {minted.values['username']} VALID UNTIL 'infinity'",
            "ALTER ROLE tp_admin PASSWORD 'x'",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                session.execute(forbidden.encode())
    ((comment, until, can_create),) = at.server.run(
        "SELECT shobj_description(oid, 'pg_authid'), extract(epoch FROM rolvaliduntil)::bigint,"
        f" rolcreaterole OR rolsuper OR rolcreatedb FROM pg_roles WHERE rolname = '{minted.values['username']}'"
    )
    assert (comment, until, can_create) == (f"taskpass {EPOCH} {order.jti}", order.exp, False)


def test_each_action_may_have_a_role_of_its_own(at: PostgresHarness) -> None:
    roles = {"read": "app_read", "write": "app_write"}
    order = at.order(settings={"roles": roles}, actions=("read", "write"))
    minted = at.issuer.issue(order, at.issuer.prepare(order))
    with opened(minted) as session:
        session.execute("INSERT INTO app_table VALUES (1)")
    order = at.order(settings={"roles": roles}, actions=("drop",))
    with pytest.raises(IssuerError, match="no role for the action drop") as caught:
        at.issuer.issue(order, at.issuer.prepare(order))
    assert caught.value.happened is False


def test_sessions_are_limited_and_set_as_the_resource_says(at: PostgresHarness) -> None:
    odd = 'odd "schema"; DROP ROLE app_read; --'
    session = {"statement_timeout": "7s", "application_name": "x'; DROP ROLE app_read; --"}
    minted = issued(at, connection_limit=1, search_path=[odd, "public"], session=session)
    with opened(minted) as connection:
        shown = [connection.execute(f"SHOW {name}".encode()).fetchone() for name in ["search_path", *session]]
        assert shown == [
            ('"odd ""schema""; DROP ROLE app_read; --", public',),
            ("7s",),
            *((v,) for v in list(session.values())[1:]),
        ]
        assert not at.use(minted.values).accepted
    at.issuer.revoke(minted.handle)


def test_no_name_in_the_settings_ends_a_statement(at: PostgresHarness) -> None:
    with pytest.raises(IssuerError, match="does not know a role") as caught:
        issued(at, roles='app_read"; ALTER ROLE tp_admin SUPERUSER; --')
    assert caught.value.happened is False
    assert at.existing() == set()


def test_the_password_reaches_neither_the_server_nor_its_log(at: PostgresHarness) -> None:
    minted = issued(at)
    at.use(minted.values)
    log = (at.server.place / "log").read_text()
    assert minted.values["username"] in log
    assert minted.values["password"] not in log
    ((stored,),) = at.server.run(f"SELECT rolpassword FROM pg_authid WHERE rolname = '{minted.values['username']}'")
    assert str(stored).startswith("SCRAM-SHA-256$")
    wrong = minted.values | {"uri": minted.values["uri"].replace(minted.values["password"], "guess")}
    assert at.use(minted.values).accepted
    assert not at.use(wrong).accepted


def test_after_its_time_nobody_gets_in(at: PostgresHarness) -> None:
    past = at.order()
    past = at.order(iat=past.iat - 100, exp=past.iat - 1)
    minted = at.issuer.issue(past, at.issuer.prepare(past))
    assert not at.use(minted.values).accepted
    assert at.issuer.status(minted.handle).standing is Standing.LIVE  # it is still there, and its sessions may be


def test_parameters_that_no_login_could_be_held_to_are_refused(at: PostgresHarness) -> None:
    order = at.order(actions=(), limited=("read",), parameters={"amount": 5})
    with pytest.raises(IssuerError, match="parameters") as caught:
        at.issuer.issue(order, at.issuer.prepare(order))
    assert caught.value.happened is False


# --- The end of one ---------------------------------------------------------------------------------------------------


def test_open_sessions_are_ended_while_they_work(at: PostgresHarness) -> None:
    minted = issued(at)
    idle, busy = opened(minted), opened(minted)
    with ThreadPoolExecutor() as pool:
        working = pool.submit(busy.execute, "SELECT pg_sleep(60)")
        while not at.server.run("SELECT 1 FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(60)%'"):
            threading.Event().wait(0.005)
        assert at.issuer.status(minted.handle).note == "2 sessions are open"
        at.issuer.revoke(minted.handle)
        assert at.sessions_of(minted.values["username"]) == 0
        with pytest.raises(psycopg.OperationalError):
            working.result(10)
    with pytest.raises(psycopg.OperationalError):
        idle.execute("SELECT 1")
    assert at.issuer.status(minted.handle).standing is Standing.GONE
    assert at.existing() == set()


def test_nobody_slips_in_while_the_door_closes(at: PostgresHarness) -> None:
    """Whoever was authenticated a moment before is in no list of sessions yet."""

    def storm(minted: Minted) -> list[psycopg.Connection[tuple[Any, ...]]]:
        sessions = []
        with suppress(psycopg.OperationalError):
            while True:
                sessions.append(opened(minted))
        return sessions

    for _ in range(3):
        minted = issued(at, connection_limit=1_000)
        with ThreadPoolExecutor() as pool:
            storms = [pool.submit(storm, minted) for _ in range(4)]
            while at.sessions_of(minted.values["username"]) < 4:
                threading.Event().wait(0.005)
            at.issuer.revoke(minted.handle)
            sessions = [session for each in storms for session in each.result(20)]
        for session in sessions:
            with pytest.raises(psycopg.OperationalError):
                session.execute("SELECT 1")
            session.close()
        assert at.issuer.status(minted.handle).standing is Standing.GONE
    assert at.existing() == set()


def test_a_role_that_owns_objects_is_locked_and_kept(at: PostgresHarness) -> None:
    minted = issued(at, roles="app_write")
    with opened(minted) as session:
        session.execute("CREATE TABLE report (x int); INSERT INTO report VALUES (42)")
        error = refused(at, minted)
        assert "owns 1 object in the database app" in error.sentence
        assert error.happened is False
    assert at.server.run("SELECT x FROM report", "app") == [(42,)]
    at.server.run("DROP TABLE report", "app")
    at.issuer.revoke(minted.handle)
    assert at.existing() == set()


def test_or_its_objects_are_reassigned_in_every_database(at: PostgresHarness) -> None:
    at.server.run("CREATE ROLE keeper; GRANT keeper TO tp_admin;")
    at.server.run("CREATE DATABASE other")
    at.server.run("GRANT CREATE ON SCHEMA public TO keeper, app_write", "other")
    at.server.run("GRANT CREATE ON SCHEMA public TO keeper", "app")
    issuer = at.make(owned="reassign", reassign_to="keeper")
    minted = issued(at, issuer, roles="app_write")
    for uri in (minted.values["uri"], minted.values["uri"].replace("/app", "/other")):
        with psycopg.connect(uri) as session:
            session.execute("CREATE TABLE report (x int)")
    issuer.revoke(minted.handle)
    issuer.shut_down()
    owner = "SELECT tableowner FROM pg_tables WHERE tablename = 'report'"
    assert [at.server.run(owner, name) for name in ("app", "other")] == [[("keeper",)]] * 2
    at.server.run("DROP TABLE report", "app")
    at.server.run("DROP DATABASE other")
    assert at.existing() == set()


def test_what_somebody_else_granted_to_it_keeps_it_locked(at: PostgresHarness) -> None:
    minted = issued(at)
    at.server.run(f"GRANT INSERT ON app_table TO {minted.values['username']}", "app")
    with opened(minted) as session:
        session.execute("INSERT INTO app_table VALUES (1)")
        assert "privileges of its own" in refused(at, minted).sentence
    at.server.run(f"DROP OWNED BY {minted.values['username']}", "app")
    at.issuer.revoke(minted.handle)
    assert at.existing() == set()


def test_what_ends_with_its_sessions_does_not_keep_it(at: PostgresHarness) -> None:
    minted = issued(at, roles="app_write")
    with closing(opened(minted)) as session:
        session.execute("CREATE TEMP TABLE mine AS SELECT 1; BEGIN; CREATE TABLE half_done (x int)")
        at.issuer.revoke(minted.handle)
    assert at.existing() == set()


def test_a_prepared_transaction_keeps_it_locked(at: PostgresHarness) -> None:
    minted = issued(at, roles="app_write")
    with opened(minted) as session:
        session.execute("BEGIN")
        session.execute("CREATE TABLE later (x int)")
        session.execute("PREPARE TRANSACTION 'mine'")
    error = refused(at, minted)
    assert error.retry_after_s == 1
    at.server.run("ROLLBACK PREPARED 'mine'", "app")
    at.issuer.revoke(minted.handle)


def test_a_role_that_is_gone_already_is_gone(at: PostgresHarness) -> None:
    minted = issued(at)
    at.server.run(f"DROP ROLE {minted.values['username']}")
    at.issuer.revoke(minted.handle)
    assert at.issuer.status(minted.handle).standing is Standing.GONE


def test_sessions_that_outlive_their_role_are_not_forgotten(at: PostgresHarness) -> None:
    minted = issued(at)
    with opened(minted) as session:
        at.server.run(f"DROP ROLE {minted.values['username']}")
        found = at.issuer.status(minted.handle)
        assert (found.standing, found.note) == (Standing.LIVE, "1 session is open")
        with pytest.raises(IssuerError, match="Somebody else dropped the role"):
            at.issuer.revoke(minted.handle)
        at.server.run("GRANT pg_signal_backend TO tp_admin")  # whoever gives it this right has no such case
        at.issuer.revoke(minted.handle)
        at.server.run("REVOKE pg_signal_backend FROM tp_admin")
        with pytest.raises(psycopg.OperationalError):
            session.execute("SELECT 1")
    assert at.issuer.status(minted.handle).standing is Standing.GONE
    assert at.existing() == set()


def test_a_role_of_our_name_that_is_not_ours_is_left_alone(at: PostgresHarness) -> None:
    order = at.order()
    prepared = at.issuer.prepare(order)
    at.server.run(f"CREATE ROLE {prepared['role']} LOGIN")
    with pytest.raises(IssuerError, match="has a role of this name"):
        at.issuer.issue(order, prepared)
    with pytest.raises(IssuerError, match="does not bear the mark"):
        at.issuer.revoke(prepared)
    assert at.issuer.status(prepared).standing is Standing.LIVE
    assert list(at.issuer.orphans()) == []
    assert at.server.run(f"SELECT rolcanlogin FROM pg_roles WHERE rolname = '{prepared['role']}'") == [(True,)]
    at.server.run(f"DROP ROLE {prepared['role']}")


def test_brokers_on_one_server_see_their_own_roles_alone(at: PostgresHarness) -> None:
    other = at.make(ledger=f"{EPOCH}-and-more")
    mine, theirs = issued(at), issued(at, other)
    assert [handle["role"] for handle in at.issuer.orphans()] == [mine.values["username"]]
    assert [handle["role"] for handle in other.orphans()] == [theirs.values["username"]]
    with pytest.raises(IssuerError, match="mark"):
        at.issuer.revoke(theirs.handle)
    assert at.use(theirs.values).accepted
    other.revoke(theirs.handle)
    other.shut_down()


# --- Faults -----------------------------------------------------------------------------------------------------------


def test_refused_connections_did_nothing(at: PostgresHarness) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        free = probe.getsockname()[1]
    with pytest.raises(IssuerError, match="cannot be reached") as caught:
        issued(at, at.make(dsn=f"postgresql://tp_admin@127.0.0.1:{free}/app"))
    assert caught.value.happened is False


def test_a_wrong_password_did_nothing_and_is_not_shown(at: PostgresHarness) -> None:
    at.password_file.write_text("not-the-password")
    with pytest.raises(IssuerError, match="does not let the broker in") as caught:
        issued(at)
    assert caught.value.happened is False
    assert "not-the-password" not in repr(caught.value)
    at.password_file.write_text(ADMIN_PASSWORD)  # read anew each time: nothing need be restarted
    issued(at)


def test_a_lacking_right_did_nothing(at: PostgresHarness) -> None:
    at.server.run("ALTER ROLE tp_admin NOCREATEROLE")
    with pytest.raises(IssuerError, match="setup_sql") as caught:
        issued(at)
    assert caught.value.happened is False
    at.server.run("ALTER ROLE tp_admin CREATEROLE")


def test_a_server_that_only_reads_says_so(at: PostgresHarness) -> None:
    minted = issued(at)
    at.issuer.shut_down()
    at.server.run("ALTER ROLE tp_admin SET default_transaction_read_only = on")
    for call in (lambda: issued(at), lambda: at.issuer.revoke(minted.handle)):
        with pytest.raises(IssuerError, match="read only") as caught:
            call()
        assert caught.value.happened is False
    assert at.issuer.status(minted.handle).standing is Standing.LIVE
    at.server.run("ALTER ROLE tp_admin RESET default_transaction_read_only")
    at.issuer.shut_down()


def test_a_restart_between_two_calls_is_not_noticed(at: PostgresHarness) -> None:
    minted = issued(at)
    at.server.stop()
    at.server.start()
    at.issuer.revoke(minted.handle)
    assert at.existing() == set()


def test_while_the_server_is_down_nothing_is_gone(at: PostgresHarness) -> None:
    minted = issued(at)
    at.server.stop()
    for call in (at.issuer.revoke, at.issuer.status):
        with pytest.raises(IssuerError) as caught:
            call(minted.handle)
        assert caught.value.happened is False
    at.server.start()
    assert at.use(minted.values).accepted
    at.issuer.revoke(minted.handle)
    assert at.existing() == set()


FIRST = "LOCK TABLE pg_authid IN SHARE MODE"  # where a creation waits for it before its intent is asked for
LAST = "LOCK TABLE pg_shdescription IN SHARE MODE"  # and where it does after that


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGQUIT])
def test_a_crash_in_the_middle_of_a_creation(at: PostgresHarness, how: signal.Signals) -> None:
    order = at.order()
    prepared = at.issuer.prepare(order)
    with psycopg.connect(at.server.url()) as blocking, ThreadPoolExecutor() as pool:
        blocking.execute(LAST)
        issuing = pool.submit(at.issuer.issue, order, prepared)
        until_blocked(at)
        at.server.stop(how)
        with pytest.raises(IssuerError) as caught:
            issuing.result(10)
        assert caught.value.happened is None
        blocking.close()
    at.server.start()
    at.issuer.revoke(prepared)
    assert at.issuer.status(prepared).standing is Standing.GONE
    assert at.existing() == set()


def until_blocked(at: PostgresHarness) -> None:
    while not at.server.run("SELECT 1 FROM pg_stat_activity WHERE usename = 'tp_admin' AND wait_event_type = 'Lock'"):
        threading.Event().wait(0.005)


def test_a_creation_that_outlives_its_connection_is_waited_for(at: PostgresHarness) -> None:
    """The server works on, and does not know that nobody listens: a revocation that only looked would find nothing."""
    order = at.order()
    prepared = at.issuer.prepare(order)
    with psycopg.connect(at.server.url()) as blocking, ThreadPoolExecutor() as pool:
        blocking.execute(LAST)
        issuing = pool.submit(at.issuer.issue, order, prepared)
        until_blocked(at)
        at.proxy.cut()
        with pytest.raises(IssuerError) as caught:
            issuing.result(10)
        assert caught.value.happened is None
        revoking = pool.submit(at.issuer.revoke, prepared)
        while at.server.run("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'") != [(2,)]:
            threading.Event().wait(0.005)
        blocking.commit()
        revoking.result(10)
    assert at.existing() == set()


def test_a_server_that_says_nothing_holds_nobody_for_long(at: PostgresHarness) -> None:
    issuer = at.make(statement_timeout_s=1, connect_timeout_s=2)
    issued(at, issuer)
    at.proxy.silent = True
    with pytest.raises(IssuerError) as caught:
        issued(at, issuer)
    assert caught.value.happened is False  # it was never told to commit
    at.proxy.silent = False
    at.proxy.cut()
    order = at.order()

    def silenced() -> Intent:
        at.proxy.silent = True
        return Intent(order, issuer.prepare(order))

    with pytest.raises(IssuerError) as caught:
        issuer.issue_when(wish_of(order), silenced)
    assert caught.value.happened is None
    at.proxy.silent = False
    at.proxy.cut()
    issuer.shut_down()


@pytest.mark.parametrize("lock", [FIRST, LAST])
def test_a_lock_that_is_not_given_did_nothing(at: PostgresHarness, lock: str) -> None:
    issuer = at.make(statement_timeout_s=1)
    with psycopg.connect(at.server.url()) as blocking:
        blocking.execute(lock.encode())
        with pytest.raises(IssuerError) as caught:
            issued(at, issuer)
    assert caught.value.happened is False
    issuer.shut_down()


# --- While the intent is being committed ------------------------------------------------------------------------------


def wish_of(order: Order) -> Wish:
    return Wish(order.actions, order.limited, order.settings)


def new_roles(at: PostgresHarness) -> list[tuple[Any, ...]]:
    """Every role that is not of the harness itself, by the server's own view."""
    return at.server.run("SELECT rolname FROM pg_roles WHERE starts_with(rolname, 'tp_') AND rolname <> 'tp_admin'")


def test_before_its_intent_nobody_sees_anything_of_a_login(at: PostgresHarness) -> None:
    order = at.order()
    prepared = at.issuer.prepare(order)

    def intent() -> Intent:
        assert new_roles(at) == []
        assert list(at.issuer.orphans()) == []
        at.issuer.revoke(prepared)  # which waits for nobody
        assert at.server.run("SELECT state FROM pg_stat_activity WHERE query LIKE 'BEGIN; CREATE ROLE%'") == [
            ("idle in transaction",)
        ]
        return Intent(order, prepared)

    minted = at.issuer.issue_when(wish_of(order), intent)
    assert minted is not None
    assert new_roles(at) == [(prepared["role"],)]
    assert at.use(minted.values).accepted


def test_two_may_be_begun_at_once_with_the_same_privileges(at: PostgresHarness) -> None:
    """What a creation that waits for its intent has locked, nobody else needs."""
    order, other = at.order(), at.order()

    def intent() -> Intent:
        assert at.issuer.issue(other, at.issuer.prepare(other)).values
        return Intent(order, at.issuer.prepare(order))

    assert at.issuer.issue_when(wish_of(order), intent) is not None
    assert len(at.existing()) == 2


def test_without_an_intent_it_is_undone(at: PostgresHarness) -> None:
    assert at.issuer.issue_when(wish_of(at.order()), lambda: None) is None
    assert new_roles(at) == []
    assert at.server.run("SELECT state FROM pg_stat_activity WHERE usename = 'tp_admin'") == [("idle",)]


def test_an_intent_that_fails_undoes_it(at: PostgresHarness) -> None:
    def intent() -> Intent:
        raise IssuerError("The ledger took too long.", happened=False)

    with pytest.raises(IssuerError, match="took too long") as caught:
        at.issuer.issue_when(wish_of(at.order()), intent)
    assert caught.value.happened is False
    assert new_roles(at) == []


@pytest.mark.parametrize("how", [signal.SIGKILL, None])
def test_whoever_dies_while_it_waits_for_its_intent_nothing_is_there(
    at: PostgresHarness, how: signal.Signals | None
) -> None:
    """The server, or the way to the broker: as when the broker dies. Whether its intent was durable is open then."""
    order = at.order()
    prepared = at.issuer.prepare(order)

    def intent() -> Intent:
        if how is None:
            at.proxy.cut()
        else:
            at.server.stop(how)
        return Intent(order, prepared)

    with pytest.raises(IssuerError):
        at.issuer.issue_when(wish_of(order), intent)
    if how is not None:
        at.server.start()
    while at.server.run("SELECT 1 FROM pg_stat_activity WHERE query LIKE 'BEGIN; CREATE ROLE%'"):
        threading.Event().wait(0.005)
    assert new_roles(at) == []
    at.issuer.revoke(prepared)
    assert at.issuer.status(prepared).standing is Standing.GONE


# --- Settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"dsn": None}, "'dsn'"),
        ({"dsn": "postgresql://a:hunter2@h/d"}, "must not hold a password"),
        ({"dsn": "postgresql://h/d"}, "must name the admin role"),
        ({"dsn": "= ="}, "not a connection string"),
        ({"prefix": "Bad-"}, "'prefix'"),
        ({"owned": "drop"}, "'owned'"),
        ({"owned": "reassign"}, "'reassign_to'"),
        ({"reassign_to": "x"}, "'reassign_to'"),
        ({"password_file": "a", "password_env": "b"}, "not both"),
        ({"min_ttl_s": 9, "max_ttl_s": 8}, "above"),
        ({"connections": 0}, "at least 1"),
        ({"connections": True}, "a number"),
        ({"port": "5432"}, "a number"),
        ({"host": 5}, "text"),
        ({"pasword_file": "x"}, "no setting"),
    ],
)
def test_a_wrong_section_is_refused_with_a_sentence(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        server_of({key: value for key, value in ({"dsn": DSN} | change).items() if key != "dsn" or value})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "'roles'"),
        ({"roles": ""}, "'roles'"),
        ({"roles": {}}, "'roles'"),
        ({"roles": {"read": 5}}, "'roles'"),
        ({"roles": "r", "dbname": ""}, "'dbname'"),
        ({"roles": "r", "connection_limit": 0}, "'connection_limit'"),
        ({"roles": "r", "connection_limit": True}, "'connection_limit'"),
        ({"roles": "r", "search_path": "public"}, "'search_path'"),
        ({"roles": "r", "search_path": [1]}, "'search_path'"),
        ({"roles": "r", "search_path": 5}, "'search_path'"),
        ({"roles": "r", "session": {"a;b": "c"}}, "'session'"),
        ({"roles": "r", "session": {"a": 5}}, "'session'"),
        ({"roles": "r", "session": ["a"]}, "'session'"),
        ({"role": "r"}, "no setting"),
    ],
)
def test_wrong_settings_of_a_resource_are_refused_with_a_sentence(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        settings_of(settings)


def test_the_broker_is_given_no_more_than_it_hands_out(server: Server) -> None:
    (row,) = server.run(
        "SELECT rolsuper, rolcreatedb, rolbypassrls, rolreplication FROM pg_roles WHERE rolname='tp_admin'"
    )
    assert row == (False,) * 4
    described = server_of({"dsn": DSN, "owned": "reassign", "reassign_to": "keeper"})
    new = setup_sql(described, ["b", 'a"x'], version=16)
    assert 'GRANT "a""x" TO "tp_admin" WITH ADMIN TRUE, INHERIT FALSE, SET FALSE;' in new
    assert 'GRANT "keeper" TO "tp_admin";' in new
    assert "ADMIN" not in setup_sql(described, ["a"], version=15)


def test_where_agents_are_sent(at: PostgresHarness) -> None:
    other = at.make(host="::1", port=6432, sslmode="verify-full")
    values = issued(at, other, dbname="the app").values
    assert values["uri"].endswith("@[::1]:6432/the%20app?sslmode=verify-full")
    by_socket = at.make(host=str(at.server.place))
    minted = issued(at, by_socket)
    assert minted.values["uri"].startswith(f"postgresql://{minted.values['username']}:")
    assert "@/app?host=%2F" in minted.values["uri"]
    for issuer in (other, by_socket):
        issuer.shut_down()
