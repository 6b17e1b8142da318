"""Vault's issuer for the conformance suite: a real OpenBao, whose database engine makes logins at a real PostgreSQL."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests

from issuers import Handle, Minted, Order
from tests.issuers import api_server
from tests.issuers import vault as kit
from tests.issuers.api_server import ApiServer, Asked, Reply
from tests.issuers.harness import Fault, Harness, Use, new_order
from tests.issuers.postgres_harness import valid_until

NAME = "conformance"
PATH = kit.READONLY["path"]
EFFECTS = (f"/v1/{PATH}", "/v1/sys/leases/revoke/", "/v1/sys/leases/renew/", "/v1/auth/token/revoke-accessor")


class Between(ApiServer):
    """Passes everything on to the real server, but for what a test wants to fail."""

    def __init__(self, target: str) -> None:
        super().__init__()
        self._target = target
        self.next_effect: list[api_server.Fault] = []

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        if self.next_effect and handler.path.startswith(EFFECTS):
            self.faults.append(self.next_effect.pop())
        super().answer(handler)

    def act(self, asked: Asked) -> Reply:
        kept = {k: v for k, v in asked.headers.items() if k.startswith("x-vault") or k == "content-type"}
        answer = requests.request(asked.method, self._target + asked.path, data=asked.body, headers=kept, timeout=30)
        return Reply(answer.status_code, answer.content, {"Content-Type": "application/json"})


class VaultHarness(Harness):
    """The issuer talks through a server that fails when told to; looks go straight to the backends, as root."""

    fails = frozenset(Fault)
    renewable = True

    def __init__(self, site: kit.Site, between: Between) -> None:
        self.site, self._between = site, between
        self.never_shown = (site.token_file.read_text(), site.bao.root)
        self.issuer = site.issuer(address=between.url, name=NAME, sweep=[PATH])

    def order(self, **changes: Any) -> Order:
        return new_order(now_s=kit.wall() // 1000, ttl_s=300, **{"settings": kit.READONLY} | changes)

    def use(self, values: Mapping[str, str]) -> Use:
        try:
            with self.site.connect(values) as session:
                row = session.execute("SELECT current_user").fetchone()
        except psycopg.OperationalError:
            return Use(accepted=False)
        assert row is not None
        return Use(accepted=True, proof=row[0])

    def existing(self) -> set[str]:
        leases = set(self.site.bao.leases(PATH))
        unleased = {"a login without a lease"} if len(self.site.roles()) > len(leases) else set()
        return leases | unleased | set(self._sessions())

    def _sessions(self) -> Iterator[str]:
        for accessor in self.site.bao.accessors():
            facts = self.site.bao.ask("POST", "auth/token/lookup-accessor", {"accessor": accessor})["data"]
            if (facts["meta"] or {}).get("taskpass") == NAME:
                yield accessor

    def name(self, handle: Handle) -> str:
        return handle.get("accessor") or handle["lease_id"]

    def lives_until(self, values: Mapping[str, str]) -> int:
        return valid_until(self.site.postgres, values["username"])

    def fail_next(self, fault: Fault) -> None:
        self._between.next_effect = [api_server.Fault("cut", happened=fault is Fault.HAPPENED)]

    def after(self, minted: Minted) -> None:
        pytest.skip("the clocks of OpenBao and PostgreSQL cannot be moved")


@contextmanager
def vault(place: Path) -> Iterator[Harness]:
    """For the conformance suite."""
    if shutil.which("bao") is None:
        pytest.skip("no OpenBao of our own to look into: bao is not on the PATH")
    site = kit.Site(place)
    try:
        with Between(site.bao.address) as between:
            yield VaultHarness(site, between)
    finally:
        site.close()
