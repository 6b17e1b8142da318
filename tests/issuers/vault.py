"""A real OpenBao server in its development mode, with a real PostgreSQL behind its database engine."""

import json
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests

from demo.ports import free_port
from issuers.vault import Setup, VaultIssuer, connect, settings_of
from issuers.vault.link import Link
from issuers.vault.login import Login
from tests.postgres import Server as Postgres
from tests.postgres import server_or_skip

READONLY: Mapping[str, Any] = {"path": "database/creds/readonly"}
SEVERED: Mapping[str, Any] = {**READONLY, "admin": "orders"}
WRAPPED: Mapping[str, Any] = {**READONLY, "wrap_ttl_s": 60, "policy": "taskpass-readonly-wrapped"}
WRITER: Mapping[str, Any] = {"path": "database/creds/writer"}
SLOW: Mapping[str, Any] = {"path": "database/creds/slow"}  # takes the database a second
CERTIFICATE: Mapping[str, Any] = {
    "path": "pki/issue/agents",
    "method": "write",
    "parameters": {"common_name": "{agent}.agents.internal", "ttl": "{ttl}"},
}
UNLEASED = {**CERTIFICATE, "path": "pki/issue/unleased", "static": True}
SSH: Mapping[str, Any] = {
    "path": "ssh/sign/agents",
    "method": "write",
    "static": True,
    "parameters": {"public_key": "{parameters.key}", "ttl": "{ttl}"},
}
PASSWORD_V2: Mapping[str, Any] = {"path": "secret/data/mail", "kv": 2}
PASSWORD_V1: Mapping[str, Any] = {"path": "old/mail", "kv": 1}
ALL = (READONLY, WRAPPED, WRITER, SLOW, CERTIFICATE, UNLEASED, SSH, PASSWORD_V2, PASSWORD_V1)

_CREATE = "CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}' IN ROLE reader"


def wall() -> int:
    return time.time_ns() // 1_000_000


class Bao:
    """The server, by the rights of its root token: what a test needs to see and to break."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.root = f"root-{secrets.token_hex(8)}"
        self._process: subprocess.Popen[bytes] | None = None
        self.address = os.environ.get("VAULT_ADDR", "")
        binary = shutil.which("bao")
        if binary is not None:
            self.address = self._start(binary)
        elif self.address and "VAULT_TOKEN" in os.environ:
            self.root = os.environ["VAULT_TOKEN"]
            status = requests.get(f"{self.address}/v1/sys/seal-status", timeout=5).json()
            if status.get("storage_type") != "inmem":  # mounts and policies are replaced here
                pytest.skip("the server at VAULT_ADDR is not one for development, and is left alone")
        else:
            pytest.skip("no OpenBao: bao is not on the PATH, and VAULT_ADDR with VAULT_TOKEN is not set")
        health = requests.get(f"{self.address}/v1/sys/health", timeout=5).json()
        self.version: str = health["version"]

    def _start(self, binary: str) -> str:
        address = f"127.0.0.1:{free_port()}"
        keys = self.place / "init.txt"
        command = [binary, "server", "-dev", "-dev-no-store-token", f"-dev-root-token-id={self.root}"]
        with keys.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, f"-dev-listen-address={address}"],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={"PATH": os.environ["PATH"], "HOME": str(self.place)},
            )
        deadline = time.monotonic() + 30
        while True:
            try:
                if requests.get(f"http://{address}/v1/sys/health", timeout=2).ok:
                    return f"http://{address}"
            except requests.ConnectionError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.02)

    def close(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(20)

    def ask(self, method: str, path: str, body: object = None, *, token: str | None = None) -> Any:
        """The answer's JSON; None if there is no body. Raises for an error."""
        answer = requests.request(
            method, f"{self.address}/v1/{path}", json=body, headers={"X-Vault-Token": token or self.root}, timeout=20
        )
        if answer.status_code == 404 and method == "LIST":
            return {"data": {"keys": []}}
        if not answer.ok:
            raise AssertionError(f"{method} {path}: {answer.status_code} {answer.text}")
        return answer.json() if answer.content else None

    def refuses(self, method: str, path: str, body: object = None, *, token: str) -> bool:
        answer = requests.request(
            method, f"{self.address}/v1/{path}", json=body, headers={"X-Vault-Token": token}, timeout=20
        )
        return answer.status_code == 403

    def leases(self, path: str) -> list[str]:
        return [f"{path}/{key}" for key in self.ask("LIST", f"sys/leases/lookup/{path}/")["data"]["keys"]]

    def accessors(self) -> list[str]:
        keys: list[str] = self.ask("LIST", "auth/token/accessors/")["data"]["keys"]
        return keys

    def unseal_key(self) -> str:
        """That of the development mode, which it prints."""
        for line in (self.place / "init.txt").read_text().splitlines():
            if line.startswith("Unseal Key:"):
                return line.split(":")[1].strip()
        raise AssertionError("the server printed no key")


class Site:
    """OpenBao and PostgreSQL, set up as the documentation tells an operator to."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.bao = Bao(place)
        try:
            self.postgres: Postgres = server_or_skip(fsync="off")
        except BaseException:
            self.bao.close()
            raise
        self.mounts()
        resources = [settings_of(each) for each in ALL]
        Setup(resources=resources, token_role="taskpass", max_ttl_s=7200).apply(
            Link(address=self.bao.address), self.bao.root
        )
        self.admin_file = place / "admin"
        self.admin_file.write_text(self.postgres.url())
        self.token_file = place / "token"
        self.new_broker_token()

    def close(self) -> None:
        self.bao.close()
        self.postgres.close()

    def mounts(self) -> None:
        bao, pg = self.bao, self.postgres
        pg.run("CREATE ROLE reader")
        mounted = bao.ask("GET", "sys/mounts")["data"]
        for mount, kind, options in (
            ("database", "database", {}),
            ("pki", "pki", {}),
            ("ssh", "ssh", {}),
            ("old", "kv", {"version": "1"}),
        ):
            if f"{mount}/" in mounted:
                bao.ask("DELETE", f"sys/mounts/{mount}")
            bao.ask("POST", f"sys/mounts/{mount}", {"type": kind, "options": options})
        self.connect_database()
        role = {"db_name": "orders", "creation_statements": [_CREATE], "default_ttl": "10m", "max_ttl": "1h"}
        bao.ask("POST", "database/roles/readonly", role)
        bao.ask("POST", "database/roles/writer", {**role, "default_ttl": "1m"})
        bao.ask("POST", "database/roles/slow", {**role, "creation_statements": ["SELECT pg_sleep(1)", _CREATE]})
        bao.ask("POST", "pki/root/generate/internal", {"common_name": "Test CA", "ttl": "10h"})
        domain = {"allowed_domains": "agents.internal", "allow_subdomains": True, "max_ttl": "2h"}
        bao.ask("POST", "pki/roles/agents", {**domain, "generate_lease": True})
        bao.ask("POST", "pki/roles/unleased", domain)
        bao.ask("POST", "ssh/config/ca", {"generate_signing_key": True})
        bao.ask("POST", "ssh/roles/agents", {"key_type": "ca", "allow_user_certificates": True, "allowed_users": "*",
                                             "default_user": "agent", "max_ttl": "2h"})  # fmt: skip
        bao.ask("POST", "secret/data/mail", {"data": {"user": "agent", "password": "s3cret-kv-two", "port": 465}})
        bao.ask("POST", "old/mail", {"password": "s3cret-kv-one"})

    def connect_database(self, namespace: str = "") -> None:
        """Let the database engine reach PostgreSQL."""
        address = f"127.0.0.1:{self.postgres.port}/postgres?sslmode=disable"
        config = {
            "plugin_name": "postgresql-database-plugin",
            "allowed_roles": "*",
            "connection_url": f"postgresql://{{{{username}}}}:{{{{password}}}}@{address}",
            "username": "taskpass",
            "password": "unused",
        }
        self.bao.ask("POST", f"{namespace}database/config/orders", config)

    def new_broker_token(self, **more: object) -> str:
        body = {"policies": ["taskpass-broker"], "no_default_policy": True, "ttl": "1h", "no_parent": True} | more
        token: str = self.bao.ask("POST", "auth/token/create", body)["auth"]["client_token"]
        self.token_file.write_text(token)
        return token

    def issuer(self, *, address: str | None = None, timeout_s: float = 10, **more: Any) -> VaultIssuer:
        """One of a broker that has just started."""
        vault = connect(
            address=address or self.bao.address,
            login=more.pop("login", Login("token", self.token_file)),
            now=more.pop("now", wall),
            name=more.pop("name", "tests"),
            timeout_s=timeout_s,
        )
        return VaultIssuer(vault=vault, admins={"orders": f"file:{self.admin_file}"}, **more)

    def connect(self, values: Mapping[str, str]) -> psycopg.Connection[Any]:
        return psycopg.connect(
            host="127.0.0.1", port=self.postgres.port, dbname="postgres", user=values["username"],
            password=values["password"], autocommit=True,
        )  # fmt: skip

    def roles(self) -> set[str]:
        """The logins that the database engine made and PostgreSQL still knows."""
        return {str(row[0]) for row in self.postgres.run("SELECT rolname FROM pg_roles WHERE rolname LIKE 'v-%'")}


def dumped(value: object) -> str:
    return json.dumps(value, default=str)
