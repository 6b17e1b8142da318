"""What the broker adds to a Vault lease: one request for a credential against the bare lease of the same login.

Beside: the same role of the same server, read on a kept connection with a token that stands, in turns with requests to
`taskpass serve`. On: everything; three durable commits of the ledger for each credential. Vault is OpenBao's server for
development, which keeps its storage in memory: a durable one makes the bare lease slower, and the overhead smaller. The
PostgreSQL behind it is durable. One at a time: no queue is compared. The figure is of requests within one task; a task
for each request opens a Vault session for each, and is in the note.
"""

import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import requests
import yaml

from bench.run import Run
from bench.secret_calls import above, asking, in_turns
from bench.serving import serving
from bench.site import Site
from demo.ports import free_port
from demo.postgres import Server, binaries
from issuers.vault import Setup, settings_of
from issuers.vault.link import Link

FIGURE = "secret_vault_overhead"
SETTINGS = {"path": "database/creds/bench"}
CREATE = "CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}' IN ROLE app_read"


def measure(run: Run) -> None:
    """`secret_vault_overhead`."""
    bao = shutil.which("bao")
    if bao is None or binaries() is None:
        run.book.skipped([FIGURE], "OpenBao or PostgreSQL is not installed")
        return
    site = run.site()
    with _vault(bao, run.scratch) as vault:
        _name_the_issuer(site, vault, run.scratch)
        with serving(site, core=run.server_core):
            within, apart, bare = in_turns(run, asking(site, in_one_task=True), asking(site), vault.lease)
    p50, p99 = (above(percentile, within, bare) for percentile in (50, 99))
    run.book.figure(
        FIGURE,
        p50,
        also=lambda: p99 < 15,
        note=f"p99 {p99:.0f} %; p50 {median(within):.1f} ms against {median(bare):.1f} ms bare; with a task for each "
        f"{median(apart):.1f} ms; OpenBao {vault.version}",
    )
    run.book.detail("secret_vault", {"within_a_task_ms": within, "own_task_ms": apart, "bare_ms": bare})


class Vault:
    """A server with a database engine, by the rights of its root token."""

    def __init__(self, address: str, root: str) -> None:
        self.address, self.root = address, root
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.headers["X-Vault-Token"] = root
        self.version: str = self.ask("get", "sys/health")["version"]

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        answer = self._session.request(method, f"{self.address}/v1/{path}", json=body, timeout=30)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json() if answer.content else {}
        return found

    def lease(self) -> None:
        """The bare call."""
        if not self.ask("get", SETTINGS["path"])["lease_id"]:
            raise RuntimeError("there is no lease")


@contextmanager
def _vault(bao: str, scratch: Path) -> Iterator[Vault]:
    """OpenBao, whose database engine makes logins at a PostgreSQL."""
    folder = binaries()
    assert folder is not None
    server, root = Server(folder, {}), secrets.token_hex(16)
    address = f"127.0.0.1:{free_port()}"
    environment = {"PATH": os.environ["PATH"], "HOME": str(scratch), "BAO_DEV_ROOT_TOKEN_ID": root}
    process = subprocess.Popen(
        [bao, "server", "-dev", "-dev-no-store-token", f"-dev-listen-address={address}"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        vault = _answering(f"http://{address}", root)
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
        role = {"db_name": "bench", "creation_statements": [CREATE], "default_ttl": "1m", "max_ttl": "1h"}
        vault.ask("post", "database/roles/bench", role)
        Setup(resources=[settings_of(SETTINGS)], token_role="taskpass", max_ttl_s=86_400).apply(
            Link(address=vault.address), root
        )
        yield vault
    finally:
        process.terminate()
        process.wait(30)
        server.close()


def _answering(address: str, root: str) -> Vault:
    deadline = time.monotonic() + 30
    while True:
        try:
            return Vault(address, root)
        except requests.RequestException:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.05)


def _name_the_issuer(site: Site, vault: Vault, scratch: Path) -> None:
    token = vault.ask("post", "auth/token/create", {"policies": ["taskpass-broker"], "no_parent": True})
    file = scratch / "vault-token"
    file.write_text(token["auth"]["client_token"])
    with site.config_path.open("a", encoding="utf-8") as config:
        config.write(
            f'\n[issuers.vault]\nkind = "vault"\naddress = "{vault.address}"\nlogin = "token"\nlogin_file = "{file}"\n'
        )
    path = site.directory / "registry" / "resources.yaml"
    resources = yaml.safe_load(path.read_text(encoding="utf-8"))
    resources["resources"]["records"] |= {"issuer": "vault", "settings": SETTINGS}
    path.write_text(yaml.safe_dump(resources), encoding="utf-8")
