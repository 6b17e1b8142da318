"""What an operator types, against the real broker."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.cli import sessions
from broker.cli.sessions import OperatorSession
from tests.cli.conftest import Ran, Site
from tests.kit import INVOICES

Run = Callable[..., Ran]


def test_login_keeps_a_session_that_only_its_owner_reads(site: Site, run: Run) -> None:
    told = run("login", "operator", "--key", site.key("operator"), "-o", "json").json
    file = Path(told["file"])
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert run("whoami", "-o", "name").out == "operator\n"
    assert "session_token" not in json.dumps(told)
    assert run("logout", "-o", "name").out == "operator\n"
    assert run("whoami", "-o", "json", code=4).error["code"] == "no_identity"


def test_the_latest_login_says_where_the_broker_is(site: Site, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run("login", "operator", "--key", site.key("operator"))
    monkeypatch.delenv("TASKPASS_URL")
    assert run("whoami", "-o", "name").out == "operator\n"


def test_login_with_the_wrong_key_is_four(site: Site, run: Run) -> None:
    assert (
        run("login", "operator", "--key", site.key("break-glass"), "-o", "json", code=4).error["code"]
        == "invalid_client"
    )
    assert run("login", "operator", "--key", "missing.pem", "-o", "json", code=4).error["code"] == "no_identity"


def test_a_session_that_is_over_says_so(site: Site, run: Run) -> None:
    sessions.keep(OperatorSession(site.home.issuer, site.home.issuer, "operator", int(time.time()) - 5, "x"))
    assert "is over" in run("agents", "ls", code=4).err


def test_a_session_file_that_others_can_read_is_not_used(site: Site, run: Run) -> None:
    site.be_operator()
    sessions.sessions_file().chmod(0o644)
    assert "open to others" in run("agents", "ls", code=4).err


def test_an_agent_is_no_operator(site: Site, run: Run) -> None:
    site.be_agent()
    assert run("pause", "dispute-bot", "--reason", "x", "-o", "json", code=4).error["code"] == "no_identity"


def test_pause_needs_a_reason_and_shows_first(site: Site, run: Run) -> None:
    site.be_operator()
    assert "--reason" in run("pause", "dispute-bot", code=2).err
    task = site.broker.open_task()
    site.broker.granted(task=task)
    shown = run("pause", "dispute-bot", "--dry-run").out
    assert "nothing was done" in shown
    assert "1 token (1 for invoices), 1 task" in shown
    assert run("agents", "show", "dispute-bot", "-o", "json").json["state"] == "active"


def test_pause_prints_the_receipt_and_resume_revives_nothing(site: Site, run: Run) -> None:
    site.be_operator()
    token = site.broker.granted(task=site.broker.open_task())["access_token"]
    told = run("pause", "dispute-bot", "--reason", "odd credits")
    assert told.err == ""
    kill = told.out.partition(":")[0]
    for fact in (
        "killed agent dispute-bot",
        "odd credits",
        "by operator",
        "stopped at position",
        "1 token",
        "none was connected",
    ):
        assert fact in told.out
    assert not site.broker.active(token)
    assert run("agents", "show", "dispute-bot").out.splitlines()[1].split() == ["state", "paused"]
    assert run("kills", "ls", "-o", "name").out.strip() == kill
    receipt = run("kills", "show", kill, "-o", "json").json
    assert receipt["issuance"]["stopped"] is True
    hold = run("holds", "ls", "-o", "name").out.strip()
    assert hold == receipt["issuance"]["hold"]
    site.be_agent()
    held = run("token", INVOICES, "-o", "json", code=1)
    assert held.error["outcome"] == "held"
    assert held.error["hold"] == hold
    site.be_operator()
    assert run("resume", "dispute-bot", "--reason", "fixed").out.startswith("dispute-bot: active\n")
    assert not site.broker.active(token)
    assert "has been lifted since" in run("kills", "show", kill).out


def test_kill_names_one_target(site: Site, run: Run) -> None:
    site.be_operator()
    assert "Name what to kill" in run("kill", "agent", "--reason", "x", code=2).err
    assert "Name what to kill" in run("kill", "all", "things", "--reason", "x", code=2).err
    assert run("kill", "agent", "nobody", "--reason", "x", "-o", "json", code=6).error["code"] == "not_found"


def test_kill_all_wants_to_be_meant(site: Site, run: Run) -> None:
    site.be_operator()
    assert "--yes" in run("kill", "all", "--reason", "drill", code=2).err
    assert run("holds", "ls", "-o", "json").json == []
    assert "killed everything" in run("kill", "all", "--reason", "drill", "--yes").out
    hold = run("holds", "ls", "-o", "name").out.strip()
    assert hold in run("holds", "lift", hold, "--reason", "drill over").out


def test_kill_of_a_task_is_final_and_needs_no_hold(site: Site, run: Run) -> None:
    site.be_operator()
    task = site.broker.open_task()
    told = run("kill", "task", task, "--reason", "wrong customer").out
    assert "final: nothing can be issued for it again" in told
    assert run("holds", "ls", "-o", "json").json == []


def test_kill_without_a_hold(site: Site, run: Run) -> None:
    site.be_operator()
    assert "no hold was asked for" in run("kill", "agent", "dispute-bot", "--no-hold", "--reason", "leak").out
    site.be_agent()
    run("token", INVOICES)


def test_the_break_glass_key_needs_no_session(site: Site, run: Run) -> None:
    told = run("kill", "agent", "dispute-bot", "--reason", "incident", "--break-glass-key", site.key("break-glass"))
    assert "by break-glass" in told.out
    assert site.broker.events("alarm")


def test_reload_shows_what_changes(site: Site, run: Run) -> None:
    site.be_operator()
    site.home.replace("registry/agents.yaml", "Answers customers who dispute an invoice.", "Answers disputes.")
    dry = run("reload", "--dry-run").out
    assert "~ agent dispute-bot: purpose" in dry
    assert run("reload", "registry", "--reason", "wording").out.startswith("In force.\n")
    assert "Answers disputes." in run("agents", "ls").out
    site.home.write("registry/owners.yaml", "owners: {x: {nmae: y}}\n")
    refused = run("reload", code=1)
    assert "owners.yaml:1" in refused.err


def test_keys(site: Site, run: Run) -> None:
    site.be_operator()
    before = run("keys", "ls", "-o", "json").json
    assert {row["purpose"] for row in before} == {"token", "session", "checkpoint"}
    nxt = next(row["kid"] for row in before if row["state"] == "next")
    assert run("keys", "rotate", "--reason", "drill", "-o", "name").out.strip() == nxt


def test_an_operator_without_the_right_is_four(site: Site, run: Run) -> None:
    site.be_operator("reader")
    assert run("kill", "agent", "dispute-bot", "--reason", "x", "-o", "json", code=4).error["code"] == "forbidden"


def test_the_ledger_is_listed_proven_and_kept(site: Site, run: Run, tmp_path: Path) -> None:
    decision = site.broker.granted()["decision_id"]
    position = int(decision.rpartition("_")[2])
    site.be_operator()
    rows = run("ledger", "ls", "--from", position, "--limit", 1, "-o", "json").json
    assert [(row["position"], row["type"]) for row in rows] == [(position, "issued")]
    proven = run("ledger", "proof", position)
    assert proven.out.startswith(f"Verified: position {position} is in the ledger.")
    key = run("ledger", "proof", position, "-o", "json").json["keys"][0]
    assert "as given" in run("ledger", "proof", position, "--checkpoint-key", key).out
    run("ledger", "proof", position, "--checkpoint-key", "nonsense", code=2)
    run("ledger", "proof", 10_000, "-o", "json", code=6)
    note = tmp_path / "kept.note"
    note.write_text(run("ledger", "checkpoint").out)
    audited = run("ledger", "verify", site.home.config.ledger.path, "--checkpoint", note, "--checkpoint-key", key)
    assert "sound" in audited.out
    assert "1 kept ones are extended" in audited.out


def test_a_changed_proof_does_not_hold(site: Site, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    site.be_operator()
    from broker.cli.api import Api

    honest = Api.get

    def changed(self: Api, path: str, **query: object) -> object:
        body = honest(self, path, **query)  # type: ignore[arg-type]
        if path == "/v1/ledger":
            body[0]["bytes"] = body[0]["bytes"].replace('"t":1', '"t":2')
        return body

    monkeypatch.setattr(Api, "get", changed)
    assert "does NOT hold" in run("ledger", "proof", 2, code=1).err
