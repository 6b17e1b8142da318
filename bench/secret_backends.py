"""The backends of the groups about secrets: a PostgreSQL, an OpenBao with its database engine on another, and how a
broker of the bench comes to know them.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Final, TypeVar

import requests
import yaml

from bench.secret_calls import Client
from bench.site import Site
from demo.ports import free_port
from demo.postgres import Server, binaries
from issuers.postgres import server_of, setup_sql
from issuers.vault import Setup, settings_of
from issuers.vault.link import Link

T = TypeVar("T")

PATH: Final = "database/creds/bench"
_CREATE: Final = "CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}' IN ROLE app_read"


def missing(*, vault: bool) -> str | None:
    """What is not installed here, so that there is nothing to measure."""
    absent = ["PostgreSQL"] if binaries() is None else []
    if vault and shutil.which("bao") is None:
        absent.append("OpenBao (`bao`)")
    return f"{' and '.join(absent)} not installed" if absent else None


@dataclass(frozen=True, slots=True)
class Backend:
    """Where credentials are made. `section` is its part of the broker's configuration, `settings` a resource's for it,
    `count` asks the backend itself how many credentials there are.
    """

    section: Mapping[str, str]
    settings: Mapping[str, Any]
    count: Callable[[], int]

    def serves(self, site: Site, resource: str) -> None:
        """Have the broker, which is not running yet, make the credentials of this resource here."""
        with site.config_path.open("a", encoding="utf-8") as config:
            lines = "".join(f'{name} = "{value}"\n' for name, value in self.section.items())
            config.write(f"\n[issuers.{resource}]\n{lines}")
        change(site, "resources", lambda rows: rows[resource].update(issuer=resource, settings=dict(self.settings)))


def change(site: Site, kind: str, how: Callable[[dict[str, Any]], object]) -> None:
    """Edit the rows of one file of the registry."""
    path = site.directory / "registry" / f"{kind}.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    how(content[kind])
    content = json.loads(json.dumps(content))  # what stands in two places becomes two: the registry takes no anchors
    path.write_text(yaml.safe_dump(content), encoding="utf-8")


@contextmanager
def postgres() -> Iterator[tuple[str, Backend]]:
    """A durable server with an admin role for the broker: how to reach it as that, and as a backend."""
    folder = binaries()
    assert folder is not None
    server = Server(folder, {})
    try:
        dsn = f"postgresql://tp_admin@127.0.0.1:{server.port}/postgres"
        server.run("CREATE ROLE app_read")
        server.run(setup_sql(server_of({"dsn": dsn, "connections": 20}), ["app_read"], version=server.version))
        yield (
            dsn,
            Backend({"kind": "postgres", "dsn": dsn}, {"roles": "app_read"}, lambda: _logins(server, r"tp\_%\_%")),
        )
    finally:
        server.close()


def _logins(server: Server, pattern: str) -> int:
    ((count,),) = server.run(f"SELECT count(*) FROM pg_roles WHERE rolname LIKE '{pattern}'")
    return int(str(count))


class Vault:
    """A server with a database engine, by the rights of its root token."""

    def __init__(self, address: str, root: str) -> None:
        self.address, self.root = address, root
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.headers["X-Vault-Token"] = root
        self.version: str = self.ask("get", "sys/health")["version"]
        self._client = Client(address)

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        answer = self._session.request(method, f"{self.address}/v1/{path}", json=body, timeout=30)
        if method == "list" and answer.status_code == 404:  # which is how an empty list is told
            return {"data": {"keys": []}}
        answer.raise_for_status()
        found: dict[str, Any] = answer.json() if answer.content else {}
        return found

    def lease(self) -> None:
        """The bare call: on a connection of its own, for it is timed."""
        if not self._client.ask("GET", f"/v1/{PATH}", headers={"X-Vault-Token": self.root})["lease_id"]:
            raise RuntimeError("there is no lease")

    def leases(self) -> int:
        """How many there are."""
        return len(self.ask("list", f"sys/leases/lookup/{PATH}")["data"]["keys"])


@contextmanager
def vault(scratch: Path, *, ttl: str = "1m") -> Iterator[tuple[Vault, Backend]]:
    """OpenBao as it is run in earnest, but for TLS: one server of a Raft cluster, durable. Its database engine makes
    logins at a durable PostgreSQL, for so long: what is longer than a task costs one more exchange, which has it end
    with the task.
    """
    folder = binaries()
    assert folder is not None
    server, port = Server(folder, {}), free_port(in_a_row=2)
    address, place = f"http://127.0.0.1:{port}", Path(mkdtemp(dir=scratch))
    config = {
        "storage": {"raft": {"path": str(place), "node_id": "bench"}},
        "listener": [{"tcp": {"address": f"127.0.0.1:{port}", "tls_disable": True}}],
        "api_addr": address,
        "cluster_addr": f"http://127.0.0.1:{port + 1}",
        "disable_mlock": True,
    }
    (place / "config.json").write_text(json.dumps(config), encoding="utf-8")
    process = subprocess.Popen(
        ["bao", "server", "-config", str(place / "config.json")],
        env={"PATH": os.environ["PATH"], "HOME": str(place)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        found = _unsealed(address)
        _set_up(found, server, ttl)
        token = found.ask("post", "auth/token/create", {"policies": ["taskpass-broker"], "no_parent": True})
        file = scratch / "vault-token"
        file.write_text(token["auth"]["client_token"])
        section = {"kind": "vault", "address": found.address, "login": "token", "login_file": str(file)}
        yield found, Backend(section, {"path": PATH}, lambda: found.leases() + _logins(server, "v-%"))
    finally:
        process.terminate()
        process.wait(30)
        server.close()


def _set_up(vault: Vault, server: Server, ttl: str) -> None:
    server.run("CREATE ROLE app_read")
    vault.ask("post", "sys/mounts/database", {"type": "database"})
    there = f"127.0.0.1:{server.port}/postgres?sslmode=disable"
    config = {
        "plugin_name": "postgresql-database-plugin",
        "allowed_roles": "*",
        "connection_url": f"postgresql://{{{{username}}}}:{{{{password}}}}@{there}",
        "username": "taskpass",
        "password": "unused",
    }
    vault.ask("post", "database/config/bench", config)
    role = {"db_name": "bench", "creation_statements": [_CREATE], "default_ttl": ttl, "max_ttl": "1h"}
    vault.ask("post", "database/roles/bench", role)
    Setup(resources=[settings_of({"path": PATH})], token_role="taskpass", max_ttl_s=86_400).apply(
        Link(address=vault.address), vault.root
    )


def _unsealed(address: str) -> Vault:
    """The new server, made ready. Raises TimeoutError."""
    initial = _until(lambda: _put(address, "init", {"secret_shares": 1, "secret_threshold": 1}))
    _put(address, "unseal", {"key": initial["keys"][0]})
    return _until(lambda: Vault(address, initial["root_token"]))  # it has to win an election of one first


def _put(address: str, verb: str, body: Mapping[str, Any]) -> dict[str, Any]:
    answer = requests.put(f"{address}/v1/sys/{verb}", json=body, timeout=30)
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


def _until(attempt: Callable[[], T]) -> T:
    deadline = time.monotonic() + 60
    while True:
        try:
            return attempt()
        except requests.RequestException as error:
            if time.monotonic() > deadline:
                raise TimeoutError("OpenBao did not become ready") from error
        time.sleep(0.05)
