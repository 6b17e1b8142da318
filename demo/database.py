"""A database of orders for the demonstration, on a PostgreSQL server of its own, where one is installed.

Its administrator has done once what the documentation asks for: a role whose privileges logins get, and the broker's
admin role with `setup_sql`. Passwords are really asked for.
"""

import secrets
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import psycopg

from demo.postgres import Server, binaries
from demo.stage import Stage, StepFailed
from issuers.postgres import server_of, setup_sql

ACCESS = "host all taskpass 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
TABLE = """
CREATE TABLE orders (number text, customer text, cents int);
INSERT INTO orders VALUES ('4711', 'Ada L.', 12900), ('4712', 'Grace H.', 4900);
GRANT SELECT ON orders TO orders_reader
"""
LOOK_UP = "SELECT customer, cents FROM orders WHERE number = '4711'"
ISSUER = """
[issuers.orders]
kind = "postgres"
dsn = "{dsn}"
password_file = "keys/orders-admin"
"""
RESOURCE = """
  orders-db:
    system: Orders database
    audience: https://orders-db.example.com
    owner: finance-platform
    data_classes: [personal]
    leaves_boundary: false
    retention: 10 years
    issuer: orders
    settings: {roles: {"orders:read": orders_reader}, connection_limit: 3, session: {statement_timeout: 5s}}
    actions:
      orders:read:
        access: read
        description: Read the orders of customers who dispute an invoice.
"""
PERMIT = """
// Look up the order behind a disputed invoice, with a login of its own for each task.
@id("dispute-bot-reads-orders")
permit (principal == Agent::"dispute-bot", action == Action::"orders:read", resource);
"""
CASE = """
  - name: reading an order needs nobody
    request: {agent: dispute-bot, action: "orders:read"}
    expect: automatic
    policies: [dispute-bot-reads-orders]
"""


@dataclass(frozen=True, slots=True)
class Database:
    """The server, running."""

    server: Server

    @classmethod
    def start(cls, broker: Path) -> "Database | None":
        """Start it and name it in the broker's configuration, registry and policies. None where there is no server."""
        folder = binaries()
        if folder is None:
            return None
        server = Server(folder, {"fsync": "off"})
        dsn, password = f"postgresql://taskpass_admin@127.0.0.1:{server.port}/shop", secrets.token_urlsafe(24)
        server.run("CREATE DATABASE shop")
        server.run("CREATE ROLE orders_reader")
        server.run(setup_sql(server_of({"dsn": dsn}), ["orders_reader"], version=server.version))
        server.run(f"ALTER ROLE taskpass_admin PASSWORD '{password}'")
        server.run(TABLE, "shop")
        server.ask_for_passwords(ACCESS)
        file = broker / "keys" / "orders-admin"
        file.touch(mode=0o600)
        file.write_text(password)
        _append(broker / "taskpass.toml", ISSUER.format(dsn=dsn))
        _append(broker / "registry" / "resources.yaml", RESOURCE)
        _append(broker / "policies" / "permits" / "invoice-disputes.cedar", PERMIT)
        _append(broker / "policies" / "cases.yaml", CASE)
        agents = broker / "registry" / "agents.yaml"
        boundary = '      credits: ["credits:propose"]\n'
        agents.write_text(agents.read_text().replace(boundary, f'{boundary}      orders-db: ["orders:read"]\n'))
        return cls(server)

    def roles(self) -> list[str]:
        """The logins that the broker made, as the server's superuser sees them."""
        return [str(name) for (name,) in self.server.run(r"SELECT rolname FROM pg_roles WHERE rolname LIKE 'tp\_%'")]


def tell(stage: Stage, database: Database | None) -> None:
    """The part of the story about a database."""
    stage.heading("Not everything takes tokens. A database login, made for one task, and gone with it.")
    if database is None:
        stage.say("skipped: no PostgreSQL server (initdb, postgres) is installed on this machine")
        return
    opened = "taskpass task open --purpose 'Look up order 4711' -o name"
    task = stage.run(opened, shown=f"LOOKUP=$({opened})").text.strip()
    ask = "taskpass secret orders-db orders:read --task {} -o json"
    login = stage.run(ask.format(task), shown=ask.format("$LOOKUP") + " > login.json", quiet=True).json()
    values = login["values"]
    assert isinstance(values, dict)
    role, uri = str(values["username"]), str(values["uri"])
    stage.say(f"{role}: until {login['expires_at']}, under {task}")
    with closing(psycopg.connect(uri, autocommit=True)) as session:
        row = session.execute(LOOK_UP).fetchone()
        stage.say(f"{role}=> {LOOK_UP}\n{row}")
        stage.expect(row == ("Ada L.", 12900), "the login should read the orders")
        stage.say("The task ends, while that session is still open.")
        stage.run(f"taskpass task end {task}", shown="taskpass task end $LOOKUP")
        stage.wait_for("the end of the login", lambda: database.roles() == [])
        stage.say(f"{role}=> SELECT 1\n{_refused(lambda: session.execute('SELECT 1'))}")
    stage.say(f"$ psql login.uri\n{_refused(lambda: psycopg.connect(uri))}")
    stage.say(f"the server's own view: roles of ours: {len(database.roles())}")
    told = stage.run(f"taskpass task receipt {task}", shown="taskpass task receipt $LOOKUP")
    stage.expect("seen gone at its backend" in told.text, "the receipt should say that the login is gone")


def _refused(attempt: Callable[[], object]) -> str:
    """What PostgreSQL says to somebody whom it does not let in any more."""
    try:
        attempt()
    except psycopg.OperationalError as error:
        text = str(error)
        return text[max(text.find("FATAL"), 0) :].splitlines()[0]
    raise StepFailed("the login should not work any more")


def _append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
