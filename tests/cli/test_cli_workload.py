"""What a workload types, against the real broker: answers and exit codes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Ran, Site

Run = Callable[..., Ran]
INVOICES, CREDITS, PAYMENTS = (f"https://{name}.example.com" for name in ("invoices", "credits", "payments"))


def test_the_token_is_all_of_standard_output(site: Site, run: Run) -> None:
    site.be_agent()
    told = run("token", INVOICES, "--scope", "invoices:read")
    assert told.err == ""
    assert site.broker.active(told.out.removesuffix("\n"))


def test_json_has_all_that_was_granted(site: Site, run: Run) -> None:
    site.be_agent()
    body = run(
        "token",
        CREDITS,
        "--scope",
        "credits:propose",
        "--param",
        "invoice=INV-1",
        "--param",
        "amount_cents=4000",
        "-o",
        "json",
    ).json
    assert body["authorization_details"][0]["parameters"] == {"invoice": "INV-1", "amount_cents": 4000}
    assert body["authorization_details"][0]["actions"] == ["credits:propose"]
    assert body["expires_in"] == 300
    site.be_agent()
    assert run("token", INVOICES, "-o", "name").out.startswith("dec_")


def test_a_quoted_parameter_is_text(site: Site, run: Run) -> None:
    site.be_agent()
    asked = ("token", CREDITS, "--action", "credits:propose", "--param", "amount_cents=1", "-o", "json", "--param")
    assert "invoice" in run(*asked, "invoice=4711", code=2).error["message"]
    site.be_agent()
    assert run(*asked, 'invoice="4711"').json["authorization_details"][0]["parameters"]["invoice"] == "4711"


def test_never_is_three(site: Site, run: Run) -> None:
    site.be_agent()
    told = run("token", PAYMENTS, "--scope", "payments:transfer", "--param", "amount_cents=1", code=3)
    assert told.out == ""
    assert told.err.startswith("never: No agent moves money")
    assert "no-agent-moves-money" in told.err


def test_approval_pending_is_five(site: Site, run: Run) -> None:
    site.be_agent()
    told = run(
        "token",
        CREDITS,
        "--scope",
        "credits:propose",
        "--param",
        "invoice=I",
        "--param",
        "amount_cents=9000",
        "-o",
        "json",
        code=5,
    )
    assert told.error["approval"]["approvers"] == ["finance-oncall"]
    site.be_agent()
    assert run("approvals", "ls", "-o", "name").out.strip() == told.error["approval"]["id"]
    site.be_agent()
    shown = run("approvals", "show", told.error["approval"]["id"]).out
    assert "amount_cents=9000" in shown
    assert "credit-over-limit" in shown


def test_no_identity_is_four(site: Site, run: Run) -> None:
    told = run("token", INVOICES, "-o", "json", code=4)
    assert told.error["code"] == "no_identity"
    assert "--token-file" in told.error["next"]


def test_a_wrong_or_spent_identity_is_four(site: Site, run: Run) -> None:
    site.be_agent(sub="stranger")
    assert run("token", INVOICES, "-o", "json", code=4).error["code"] == "invalid_client"
    site.be_agent()
    run("token", INVOICES)
    assert "used before" in run("token", INVOICES, "-o", "json", code=4).error["message"]


def test_what_is_not_there_is_six(site: Site, run: Run) -> None:
    for command in (("task", "show", "tsk_00000000_1"), ("explain", "dec_00000000_1"), ("approvals", "show", "x")):
        site.be_agent()
        assert run(*command, "-o", "json", code=6).error["code"] == "not_found"


def test_a_wrong_request_is_two(site: Site, run: Run) -> None:
    site.be_agent()
    assert run("token", INVOICES, "--scope", "invoices:burn", "-o", "json", code=2).error["code"] == "invalid_scope"
    assert run("token", INVOICES, "--param", "a=1", "-o", "json", code=2).error["code"] == "usage"
    assert run("token", INVOICES, "--scope", "x", "--param", "=1", "-o", "json", code=2).error["code"] == "usage"


def test_nobody_answering_is_one(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKPASS_TOKEN", "a.b.c")
    told = run("token", INVOICES, "--url", "http://127.0.0.1:1", "-o", "json", code=1)
    assert told.error["code"] == "unreachable"


def test_nowhere_to_ask_is_two(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKPASS_TOKEN", "a.b.c")
    assert "TASKPASS_URL" in run("token", INVOICES, code=2).err
    assert "loopback" in run("token", INVOICES, "--url", "http://broker.example.com", code=2).err


def test_the_configuration_here_says_where_the_broker_is(site: Site, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TASKPASS_URL")
    monkeypatch.chdir(site.home.path)
    site.be_agent()
    assert run("whoami", "-o", "name").out == "dispute-bot\n"


def test_two_identities_are_one_too_many(site: Site, run: Run) -> None:
    site.be_agent()
    assert "give one" in run("token", INVOICES, "--token-command", "true", code=2).err


def test_a_key_needs_its_subject(site: Site, run: Run) -> None:
    assert "--client-id" in run("token", INVOICES, "--key", "x.pem", code=2).err


def test_a_command_can_print_the_identity(site: Site, run: Run, tmp_path: Path) -> None:
    printed = tmp_path / "printed.jwt"
    printed.write_text(site.home.assertion())
    assert run("whoami", "--token-command", f"cat {printed}", "-o", "name").out == "dispute-bot\n"
    assert "exited with 1" in run("whoami", "--token-command", "cat /nonexistent", code=4).err
    assert "did not print a JWT" in run("whoami", "--token-command", "echo hello", code=4).err
    assert "cannot be run" in run("whoami", "--token-command", "/nonexistent", code=4).err


def test_the_audience_reaches_the_identity_command(site: Site, run: Run, tmp_path: Path) -> None:
    script = tmp_path / "identity.sh"
    script.write_text(
        f'test "$1" = "{site.home.issuer}" && test "$TASKPASS_AUDIENCE" = "$1" && cat {tmp_path}/good.jwt\n'
    )
    (tmp_path / "good.jwt").write_text(site.home.assertion())
    run("whoami", "--token-command", f"sh {script} {{audience}}")


def test_the_life_of_a_task(site: Site, run: Run) -> None:
    site.be_agent()
    task = run(
        "task",
        "open",
        "--purpose",
        "Answer dispute 4711",
        "--trigger",
        "webhook",
        "--trigger-ref",
        "4711",
        "--heartbeat",
        60,
        "-o",
        "name",
    ).out.strip()
    site.be_agent()
    granted = run("token", INVOICES, "--scope", "invoices:read", "--task", task, "-o", "json").json
    assert granted["task"] == task
    site.be_agent()
    assert "next heartbeat before" in run("task", "heartbeat", task).out
    site.be_agent()
    assert run("task", "end", task, "--outcome", "answered", "-o", "json").json["state"] == "ended"
    assert not site.broker.active(granted["access_token"])
    site.be_agent()
    receipt = run("task", "receipt", task).out
    for told in ("webhook 4711", "Answer dispute 4711", granted["decision_id"], "dispute-bot-reads-invoices", "ended"):
        assert told in receipt
    site.be_agent()
    explained = run("explain", granted["decision_id"]).out
    assert "automatic by dispute-bot-reads-invoices" in explained
    assert "invoices:read on invoices" in explained


def test_whoami_tells_agent_and_operator(site: Site, run: Run) -> None:
    site.be_agent()
    assert run("whoami").out.startswith("agent dispute-bot\n")
    site.be_operator()
    assert run("whoami").out.startswith("operator operator\n")
    site.be_agent()
    assert run("whoami", "--session").out.startswith("operator operator\n")
