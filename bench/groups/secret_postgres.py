"""What the broker adds to making a PostgreSQL login: one request for a credential against the bare statements.

Beside: psycopg on an open session of the same server as the same admin role, with the same statements in one
transaction and the verifier computed for it, in turns with requests to `taskpass serve`. On: everything; three durable
commits of the ledger for each credential, and a PostgreSQL that is as durable. One at a time: no queue is compared.
"""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import psycopg
import yaml

from bench.run import Run
from bench.secret_calls import above, asking, in_turns
from bench.serving import serving
from bench.site import Site
from demo.postgres import Server, binaries
from issuers.postgres import server_of, setup_sql

FIGURE = "secret_postgres_overhead"
BARE = """BEGIN; CREATE ROLE {role} LOGIN CONNECTION LIMIT 5 PASSWORD '{verifier}' VALID UNTIL '2099-01-01';
COMMENT ON ROLE {role} IS 'bench'; GRANT app_read TO {role}; COMMIT"""


def measure(run: Run) -> None:
    """`secret_postgres_overhead`."""
    if binaries() is None:
        run.book.skipped([FIGURE], "PostgreSQL is not installed")
        return
    site = run.site()
    with _database() as dsn:
        _name_the_issuer(site, dsn)
        with serving(site, core=run.server_core), psycopg.connect(dsn, autocommit=True) as bare:
            ours, theirs, fresh = in_turns(run, asking(site), lambda: _bare(bare), lambda: _fresh(dsn))
    p50, p99 = (above(percentile, ours, theirs) for percentile in (50, 99))
    run.book.figure(
        FIGURE,
        p50,
        also=lambda: p99 < 25,
        note=f"p99 {p99:.0f} %; p50 {median(ours):.1f} ms against {median(theirs):.1f} ms bare, and "
        f"{median(fresh):.1f} ms bare on a new session each",
    )
    run.book.detail("secret_postgres", {"credential_ms": ours, "bare_ms": theirs, "bare_new_session_ms": fresh})


@contextmanager
def _database() -> Iterator[str]:
    """A server with an admin role for the broker; how to reach it."""
    folder = binaries()
    assert folder is not None
    server = Server(folder, {})
    try:
        dsn = f"postgresql://tp_admin@127.0.0.1:{server.port}/postgres"
        server.run("CREATE ROLE app_read")
        server.run(setup_sql(server_of({"dsn": dsn, "connections": 20}), ["app_read"], version=server.version))
        yield dsn
    finally:
        server.close()


def _name_the_issuer(site: Site, dsn: str) -> None:
    with site.config_path.open("a", encoding="utf-8") as config:
        config.write(f'\n[issuers.orders]\nkind = "postgres"\ndsn = "{dsn}"\n')
    path = site.directory / "registry" / "resources.yaml"
    resources = yaml.safe_load(path.read_text(encoding="utf-8"))
    resources["resources"]["records"] |= {"issuer": "orders", "settings": {"roles": "app_read"}}
    path.write_text(yaml.safe_dump(resources), encoding="utf-8")


def _bare(session: psycopg.Connection[Any]) -> None:
    role, password = f"bare_{secrets.token_hex(8)}", secrets.token_urlsafe(32)
    verifier = session.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
    session.execute(BARE.format(role=role, verifier=verifier).encode())


def _fresh(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as session:
        _bare(session)
