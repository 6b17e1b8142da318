"""What the broker adds to making a PostgreSQL login: one request for a credential against the bare statements.

Beside: what a careful team would write by hand. psycopg on an open session of the same server as the same admin role;
the same statements, in one exchange and one transaction, ended by a commit that is as durable; a random password, sent
as the SCRAM verifier that libpq computes of it. In turns with requests to `taskpass serve`. On: everything; two durable
commits of the ledger for each credential. One at a time: no queue is compared. Nobody is pinned to a core: what is
compared is latency.

A yardstick is beside it too: the bare call, a request to the broker that is answered at once, and one durable write. Of
our two commits the first is made while PostgreSQL works.

Most of the bare call is one computation: PostgreSQL checks by the verifier, in some milliseconds, that the password is
not empty. libpq takes two thirds of that again to make the verifier, which the broker has ready.
"""

import secrets
from typing import Any

import psycopg

from bench.machine import all_cores
from bench.run import Run
from bench.secret_backends import missing, postgres
from bench.secret_calls import asking, overhead, yardstick
from bench.serving import serving

FIGURE = "secret_postgres_overhead"
BARE = """BEGIN;
CREATE ROLE {role} LOGIN INHERIT NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS CONNECTION LIMIT 5
 PASSWORD '{verifier}' VALID UNTIL '2099-01-01';
COMMENT ON ROLE {role} IS 'bench'; GRANT app_read TO {role}; COMMIT"""


def measure(run: Run) -> None:
    """`secret_postgres_overhead`."""
    if why := missing(vault=False):
        run.book.skipped([FIGURE], why)
        return
    site = run.site()
    with postgres() as (dsn, backend):
        backend.serves(site, "records")
        with serving(site, core=all_cores()), psycopg.connect(dsn, autocommit=True) as session:
            ready = _verifier(session)
            overhead(
                run,
                FIGURE,
                bare=lambda: _bare(session, _verifier(session)),
                ours=asking(site),
                bare_on_a_new_session=lambda: _fresh(dsn),
                bare_with_the_verifier_ready=lambda: _bare(session, ready),
                bare_with_a_request_and_an_fsync=yardstick(site, lambda: _bare(session, _verifier(session)), fsyncs=1),
            )


def _verifier(session: psycopg.Connection[Any]) -> str:
    password = secrets.token_urlsafe(32).encode()
    return session.pgconn.encrypt_password(password, b"unused", b"scram-sha-256").decode()


def _bare(session: psycopg.Connection[Any], verifier: str) -> None:
    session.execute(BARE.format(role=f"bare_{secrets.token_hex(8)}", verifier=verifier).encode())


def _fresh(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as session:
        _bare(session, _verifier(session))
