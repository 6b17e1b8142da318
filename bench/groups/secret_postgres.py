"""What the broker adds to making a PostgreSQL login: one request for a credential against the bare statements.

Beside: psycopg on an open session of the same server as the same admin role, with the same statements in one
transaction and the verifier computed for it, in turns with requests to `taskpass serve`. On: everything; three durable
commits of the ledger for each credential, and a PostgreSQL that is as durable. One at a time: no queue is compared.
"""

import http.client
import json
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median, quantiles
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

import psycopg
import yaml

from bench.assertions import assertion
from bench.run import Run
from bench.serving import serving
from bench.site import SCOPE, Site, agent_name
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
            ours, theirs, fresh = _in_turns(run, _asking(site), lambda: _bare(bare), lambda: _fresh(dsn))
    p50, p99 = (_above(percentile, ours, theirs) for percentile in (50, 99))
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


def _in_turns(run: Run, *calls: Callable[[], None]) -> tuple[list[float], ...]:
    """Milliseconds of each call, one of each in every round. The first rounds warm everything up."""
    warm, rounds = 20, run.times(300, 60)
    times: tuple[list[float], ...] = tuple([] for _ in calls)
    for number in range(warm + rounds):
        for call, found in zip(calls, times, strict=True):
            start = perf_counter()
            call()
            if number >= warm:
                found.append((perf_counter() - start) * 1000)
    return times


def _asking(site: Site) -> Callable[[], None]:
    """A request for one credential, in a session that was opened before."""
    where = urlsplit(site.issuer)
    connection = http.client.HTTPConnection(str(where.hostname), where.port)

    def post(path: str, bearer: str, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {bearer}", "Content-Type": "application/json"}
        connection.request("POST", path, json.dumps(body), headers)
        response = connection.getresponse()
        answer: dict[str, Any] = json.loads(response.read())
        if response.status != 201:
            raise RuntimeError(f"{path} answered {response.status}: {answer}")
        return answer

    session = post("/v1/sessions", assertion(agent_name(0), site.issuer), {})["session_token"]
    return lambda: post("/v1/credentials", session, {"resource": "records", "actions": [SCOPE]}) and None


def _bare(session: psycopg.Connection[Any]) -> None:
    role, password = f"bare_{secrets.token_hex(8)}", secrets.token_urlsafe(32)
    verifier = session.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
    session.execute(BARE.format(role=role, verifier=verifier).encode())


def _fresh(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as session:
        _bare(session)


def _above(percentile: int, ours: list[float], theirs: list[float]) -> float:
    mine, bare = (quantiles(times, n=100)[percentile - 1] for times in (ours, theirs))
    return (mine / bare - 1) * 100
