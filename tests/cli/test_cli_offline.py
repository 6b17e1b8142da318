"""What needs no broker: checks of files, audits of copies, setting up."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.sealing import KeySealer
from tests.cli.conftest import Ran, Site

Run = Callable[..., Ran]
ISSUER = "http://127.0.0.1:8700"


@pytest.fixture
def place(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new broker's directory, and the current one."""
    run("init", tmp_path / "new", "--issuer", ISSUER)
    monkeypatch.chdir(tmp_path / "new")
    return tmp_path / "new"


def test_init_writes_what_loads_and_changes_nothing_that_exists(place: Path, run: Run) -> None:
    for secret in ("keys/operator.pem", "keys/encryption.key", "data/ledger.db"):
        assert (place / secret).stat().st_mode & 0o077 == 0, secret
    before = (place / "taskpass.toml").read_bytes()
    again = run("init", place, "--issuer", ISSUER, code=1)
    assert "exists already" in again.err
    assert (place / "taskpass.toml").read_bytes() == before
    assert "https" in run("init", place / "other", "--issuer", "http://example.com", code=1).err


def test_keys_are_sealed_anew_when_the_sealing_key_changes(place: Path, run: Run) -> None:
    assert run("keys", "reseal").out.startswith("Every key is sealed with the configured one")
    (place / "keys/encryption.key").rename(place / "keys/previous.key")
    KeySealer.create_file(place / "keys/encryption.key")
    error = run("keys", "reseal", "-o", "json", code=None).error
    assert error["code"] == "configuration_invalid"
    config = place / "taskpass.toml"
    config.write_text(config.read_text().replace("# previous_encryption", "previous_encryption"))
    assert len(run("keys", "reseal", "-o", "json").json["resealed"]) == 4
    config.write_text(config.read_text().replace("\nprevious_encryption", "\n# previous_encryption"))
    assert run("keys", "reseal", "-o", "json").json["resealed"] == []


def test_a_sound_registry(place: Path, run: Run) -> None:
    assert run("registry", "check").out.startswith("The registry is sound: 1 agent, 3 resources, ")


def test_a_broken_registry_names_file_and_line(place: Path, run: Run) -> None:
    owners = place / "registry/owners.yaml"
    owners.write_text(owners.read_text().replace("backup:", "bakcup:"))
    error = run("registry", "check", "-o", "json", code=1).error
    assert error["code"] == "configuration_invalid"
    assert any(problem.startswith("registry/owners.yaml:6: ") and "bakcup" in problem for problem in error["problems"])


def test_a_blocked_agent_is_named(place: Path, run: Run) -> None:
    agents = place / "registry/agents.yaml"
    lines = ["      expires: 2020-01-01" if "expires:" in line else line for line in agents.read_text().splitlines()]
    agents.write_text("\n".join(lines).replace("reviewed: 2", "reviewed: 1") + "\n")
    told = run("registry", "check", "-o", "json", code=1).json
    assert any("agents.yaml" in problem and "expired" in problem for problem in told["blocked_agents"])


def test_policies_check_test_and_tabulate(place: Path, run: Run) -> None:
    assert run("policy", "check").out.startswith("5 policies, no problems\n")
    assert run("policy", "test").out.endswith("6 cases, 0 failures\n")
    rows = {row["id"]: row["outcome"] for row in run("policy", "matrix", "-o", "json").json}
    assert rows == {
        "dispute-bot/credits:propose": "automatic",
        "dispute-bot/invoices:read": "automatic",
        "dispute-bot/payments:transfer": "never",
    }
    assert run("policy", "matrix", "--agent", "nobody", "-o", "json", code=6).error["code"] == "not_found"


def test_the_matrix_knows_the_reviewed_boundary(place: Path, run: Run) -> None:
    agents = place / "registry/agents.yaml"
    agents.write_text(agents.read_text().replace('      credits: ["credits:propose"]\n', ""))
    (row,) = run("policy", "matrix", "--action", "credits:propose", "-o", "json").json
    assert row["outcome"] == "never"
    assert "outside the reviewed boundary" in row["text"]


def test_a_wrong_policy_is_named(place: Path, run: Run) -> None:
    (place / "policies/permits/odd.cedar").write_text(
        '@id("odd")\npermit (principal, action == Action::"invoices:raed", resource);\n'
    )
    error = run("policy", "check", "-o", "json", code=1).error
    assert any("permits/odd.cedar:" in problem for problem in error["problems"])


def test_a_failing_case_and_a_policy_without_one(place: Path, run: Run) -> None:
    cases = place / "policies/cases.yaml"
    text = cases.read_text().replace("expect: automatic", "expect: never", 1)
    cases.write_text(text[: text.index("  - name: a credit below zero")])
    told = run("policy", "test", code=1).out
    assert "FAIL  reading a disputed invoice needs nobody" in told
    assert "expected never, got automatic" in told
    assert "no case exercises the policy no-agent-moves-money" in told


def test_doctor_finds_what_is_wrong(place: Path, run: Run) -> None:
    found = {row["check"]: row for row in run("doctor", "-o", "json", code=1).json}
    assert {"configuration", "registry", "policies", "policy cases", "sealing key", "ledger", "broker"} <= found.keys()
    assert {name for name, row in found.items() if row["state"] == "wrong"} == {"broker"}
    (place / "keys/encryption.key").chmod(0o644)
    told = run("doctor", code=1).out
    assert "chmod 600" in told


def test_serve_needs_a_ledger_and_create_makes_one(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("init", tmp_path / "bare", "--issuer", ISSUER, "--no-ledger")
    monkeypatch.chdir(tmp_path / "bare")
    assert "taskpass ledger create" in run("serve", code=1).err
    run("ledger", "create")
    assert "integrity" not in run("ledger", "verify").out
    assert "already" in run("ledger", "create", code=1).err


def test_dev_refuses_other_machines(run: Run) -> None:
    assert "loopback only" in run("dev", "--host", "0.0.0.0", code=2).err


def test_verify_finds_a_flipped_bit_and_a_cut_tail(site: Site, run: Run, tmp_path: Path) -> None:
    site.be_operator()
    site.broker.granted()
    note = tmp_path / "kept.note"
    note.write_text(run("ledger", "checkpoint").out)
    short = tmp_path / "short.db"
    shutil.copy(site.home.config.ledger.path, short)
    for suffix in ("-wal", "-shm"):
        source = site.home.config.ledger.path.with_name(site.home.config.ledger.path.name + suffix)
        if source.exists():
            shutil.copy(source, short.with_name(short.name + suffix))

    connection = sqlite3.connect(short)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.execute("PRAGMA journal_mode=DELETE")
    connection.close()
    assert run("ledger", "verify", short, "--checkpoint", note, "-o", "json").json["sound"] is True
    data = short.read_bytes()
    flipped = tmp_path / "flipped.db"
    flipped.write_bytes(data.replace(b'"type":"issued"', b'"type":"issueD"'))
    assert "NOT SOUND" in run("ledger", "verify", flipped, code=1).out
    empty = tmp_path / "other"
    run("init", empty, "--issuer", ISSUER)
    told = json.loads(run("ledger", "verify", empty / "data/ledger.db", "--checkpoint", note, "-o", "json", code=1).out)
    assert told["findings"][0]["code"].startswith("kept_")
