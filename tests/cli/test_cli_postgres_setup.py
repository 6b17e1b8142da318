"""`taskpass postgres-setup`: what it prints, and that it is enough to issue with."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from issuers import Standing
from issuers.postgres import PostgresIssuer, server_of
from tests.cli.conftest import Ran
from tests.issuers.harness import new_order
from tests.postgres import Server, server_or_skip

Run = Callable[..., Ran]

RESOURCE = """
  orders-db:
    system: Orders
    audience: https://orders.example.com
    owner: finance-platform
    data_classes: [personal]
    leaves_boundary: false
    retention: none
    issuer: orders
    settings: {roles: {"orders:read": reader, "orders:write": "The Writer"}}
    actions:
      orders:read: {access: read, description: Read orders.}
      orders:write: {access: write, description: Change orders.}
"""
SECTION = '\n[issuers.orders]\nkind = "postgres"\ndsn = "postgresql://tp_admin@127.0.0.1:5432/postgres"\n'


@pytest.fixture
def place(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new broker's directory with a resource at PostgreSQL, and the current one."""
    new = tmp_path / "new"
    run("init", new, "--issuer", "http://127.0.0.1:8700")
    monkeypatch.chdir(new)
    for name, text in (("registry/resources.yaml", RESOURCE), ("taskpass.toml", SECTION)):
        with (new / name).open("a") as file:
            file.write(text)
    return new


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = server_or_skip(fsync="off")
    yield server
    server.close()


def test_what_it_prints_is_enough(run: Run, place: Path, server: Server) -> None:
    printed = run("postgres-setup", "--server-version", server.version).out
    server.run('CREATE ROLE reader; CREATE ROLE "The Writer"')
    server.run(printed)
    described = server_of({"dsn": f"postgresql://tp_admin@127.0.0.1:{server.port}/postgres"})
    issuer = PostgresIssuer(server=described, ledger="x")
    settings = {"roles": {"orders:read": "reader", "orders:write": "The Writer"}}
    order = new_order(now_s=int(time.time()), ttl_s=60, actions=("orders:read", "orders:write"), settings=settings)
    minted = issuer.issue(order, issuer.prepare(order))
    with psycopg.connect(minted.values["uri"]) as session:
        assert session.execute("SELECT pg_has_role('The Writer', 'USAGE')").fetchone() == (True,)
    issuer.revoke(minted.handle)
    assert issuer.status(minted.handle).standing is Standing.GONE
    issuer.shut_down()


def test_it_names_the_roles_of_the_registry_and_no_others(run: Run, place: Path) -> None:
    told = json.loads(run("postgres-setup", "--server-version", 16, "-o", "json").out)
    assert (told["issuer"], told["roles"]) == ("orders", ["The Writer", "reader"])
    assert told["sql"].count("WITH ADMIN TRUE, INHERIT FALSE, SET FALSE;") == 2


def test_what_is_missing_or_wrong_is_said(run: Run, place: Path) -> None:
    ask = ("postgres-setup", "--server-version", 16)
    assert "none is configured" not in run(*ask).err
    assert "Which issuer" in run(*ask, "--issuer", "others", code=2).err
    resources = place / "registry/resources.yaml"
    resources.write_text(resources.read_text().replace("{roles: {", "{rolls: {"))
    assert "orders-db: settings: 'rolls'" in run(*ask, code=1).err
    resources.write_text(resources.read_text().replace("issuer: orders\n", "issuer: others\n"))
    assert "No resource of the registry names the issuer orders" in run(*ask, code=1).err
    configuration = place / "taskpass.toml"
    configuration.write_text(configuration.read_text().replace(SECTION, ""))
    assert "none is configured" in run(*ask, code=2).err
