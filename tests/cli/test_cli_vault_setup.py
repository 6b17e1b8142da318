"""`taskpass vault-setup`: what it prints, and that what it applies is enough to issue with."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.config import load_config
from demo.ports import free_port
from issuers import Standing
from issuers.vault import issuer_of
from tests.cli.conftest import Ran
from tests.issuers import vault as kit
from tests.issuers.harness import new_order

Run = Callable[..., Ran]

RESOURCE = """
  orders-db:
    system: Orders
    audience: https://orders.example.com
    owner: finance
    data_classes: [personal]
    leaves_boundary: false
    retention: none
    issuer: vault
    settings: {path: PATH}
    actions:
      orders:read:
        access: read
        description: Read orders.
"""
SECTION = """
[issuers.vault]
kind = "vault"
address = "ADDRESS"
login = "token"
login_file = "vault-token"
"""


@pytest.fixture
def place(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new broker's directory with a resource at Vault, and the current one."""
    new = tmp_path / "new"
    run("init", new, "--issuer", "http://127.0.0.1:8700")
    monkeypatch.chdir(new)
    owner = (new / "registry/owners.yaml").read_text().split("owners:")[1].split(":")[0].strip()
    resources = new / "registry/resources.yaml"
    resources.write_text(
        resources.read_text() + RESOURCE.replace("finance", owner).replace("PATH", "database/creds/ro")
    )
    _configure(new, "https://vault.example.com:8200")
    return new


def _configure(new: Path, address: str) -> None:
    config = new / "taskpass.toml"
    config.write_text(config.read_text().split("[issuers")[0] + SECTION.replace("ADDRESS", address))


def test_it_prints_a_script(place: Path, run: Run) -> None:
    out = run("vault-setup").out
    assert out.startswith("vault() {")
    assert "vault policy write taskpass-broker - <<'END'" in out
    assert 'path "database/creds/ro" {' in out


def test_it_prints_the_writes_as_data(place: Path, run: Run) -> None:
    told = run("vault-setup", "-o", "json").json
    assert told["applied"] is False
    assert [step["path"] for step in told["steps"]] == [
        "sys/policies/acl/taskpass-broker",
        "sys/policies/acl/taskpass-database-creds-ro",
        "auth/token/roles/taskpass",
    ]


def test_it_says_what_is_missing(place: Path, run: Run) -> None:
    assert "go together" in run("vault-setup", "--apply", code=2).err
    assert "configured are vault" in run("vault-setup", "--issuer", "other", code=2).err
    resources = place / "registry/resources.yaml"
    resources.write_text(resources.read_text().replace("database/creds/ro", "sys/raw"))
    assert "orders-db" in run("vault-setup", code=1).err


def test_a_server_that_is_not_there_is_said_so_without_the_token(place: Path, run: Run) -> None:
    _configure(place, f"http://127.0.0.1:{free_port()}")
    (place / "operator").write_text("hvs.operator-token")
    ran = run("vault-setup", "--apply", "--operator-token-file", place / "operator", code=1)
    assert "cannot be reached" in ran.err
    assert "hvs." not in ran.err


@pytest.mark.bao
def test_what_it_applies_is_enough(place: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    site = kit.Site(tmp_path / "site")
    try:
        site.bao.ask("POST", "database/roles/ro", site.bao.ask("GET", "database/roles/readonly")["data"])
        _configure(place, site.bao.address)
        (place / "operator").write_text(site.bao.root)
        told = run("vault-setup", "--apply", "--operator-token-file", place / "operator").out
        assert told.startswith("Applied: 3 writes.")
        (place / "vault-token").write_text(site.new_broker_token())
        options = load_config(place / "taskpass.toml").issuers["vault"].options
        issuer = issuer_of(options, name="tests", now=lambda: time.time_ns() // 1_000_000)
        order = new_order(now_s=int(time.time()), ttl_s=60, settings={"path": "database/creds/ro"})
        minted = issuer.issue(order, issuer.prepare(order))
        site.connect(minted.values).close()
        issuer.close(minted.handle)
        issuer.revoke(minted.handle)
        assert issuer.status(minted.handle).standing is Standing.GONE
    finally:
        site.close()
