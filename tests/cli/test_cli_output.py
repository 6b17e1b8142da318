"""Streams and formats: standard output is data, everything else is not."""

import json
from collections.abc import Callable

import pytest
import yaml

from broker.sdk.testkit import FakeBroker
from tests.cli.conftest import Ran, Site

Run = Callable[..., Ran]


def test_a_list_in_every_format(site: Site, run: Run) -> None:
    site.be_operator()
    ids = sorted(row["id"] for row in run("agents", "ls", "-o", "json").json)
    assert "dispute-bot" in ids
    assert yaml.safe_load(run("agents", "ls", "-o", "yaml").out)[0]["id"] == ids[0]
    assert run("agents", "ls", "-o", "name").out.split() == ids
    table = run("agents", "ls").out.splitlines()
    assert table[0].split()[:3] == ["AGENT", "STATE", "OWNER"]
    assert len(table) == len(ids) + 1


@pytest.mark.parametrize("command", [("holds", "ls"), ("kills", "ls"), ("approvals", "ls"), ("task", "ls")])
def test_an_empty_list_is_an_empty_list(site: Site, run: Run, command: tuple[str, ...]) -> None:
    site.be_operator()
    assert run(*command, "-o", "json").json == []
    assert yaml.safe_load(run(*command, "-o", "yaml").out) == []
    assert run(*command, "-o", "name").out == ""
    told = run(*command)
    assert told.out == ""
    assert told.err == "Nothing found.\n"


def test_options_stand_before_or_after_the_command(site: Site, run: Run) -> None:
    site.be_operator()
    assert run("-o", "json", "holds", "ls").json == run("holds", "ls", "-o", "json").json == []


def test_the_variable_sets_the_format_and_the_option_wins(
    site: Site, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.be_operator()
    monkeypatch.setenv("TASKPASS_OUTPUT", "json")
    assert run("holds", "ls").json == []
    assert run("holds", "ls", "-o", "table").out == ""


@pytest.mark.parametrize("arguments", [("-o", "xml", "holds", "ls"), ("holds", "ls", "-o", "xml")])
def test_an_unknown_format_is_refused(run: Run, arguments: tuple[str, ...]) -> None:
    told = run(*arguments, code=2)
    assert told.out == ""
    assert "'xml' is not one of" in told.err


def test_an_unknown_format_in_the_variable_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKPASS_OUTPUT", "xml")
    assert "'xml' is not one of" in run("holds", "ls", code=2).err


def test_a_failure_in_json_is_one_object_on_standard_error(site: Site, run: Run) -> None:
    site.be_agent()
    told = run(
        "token",
        "https://payments.example.com",
        "--scope",
        "payments:transfer",
        "--param",
        "amount_cents=1",
        "-o",
        "json",
        code=3,
    )
    assert told.out == ""
    error = told.error
    assert error.keys() >= {"code", "message", "decision_id", "policies", "approval", "next"}
    assert error["code"] == "access_denied"
    assert error["policies"] == ["no-agent-moves-money"]
    assert error["decision_id"].startswith("dec_")


@pytest.mark.parametrize("flag", [("-o", "json"), ("-ojson",), ("--output", "json"), ("--output=json",)])
def test_wrong_usage_in_json_is_one_object_too(run: Run, flag: tuple[str, ...]) -> None:
    told = run("kill", "agent", *flag, code=2)
    assert told.out == ""
    assert told.error["code"] == "usage"


def test_the_format_of_a_command_that_is_run_is_its_own(run: Run) -> None:
    told = run("run", "--resource", "https://x.example", "--", "tool", "-o", "json", code=2)
    assert told.err.startswith("error: ")


def test_agents_words_cannot_move_the_cursor(site: Site, run: Run) -> None:
    site.broker.open_task(purpose="innocent\u202eevil\u200f \u2066task")
    site.be_operator()
    out = run("task", "ls").out
    assert "innocentevil task" in out
    assert out.isascii()
    raw = run("task", "ls", "-o", "json").json[0]["purpose"]
    assert "\u202e" in raw


def test_a_command_nearly_right_is_suggested(run: Run) -> None:
    assert "Did you mean 'token'?" in run("tokne", code=2).err


def test_colours_only_where_they_are_wanted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b[" not in run("whoami", "--url", "ftp://x", code=2).err
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in run("whoami", "--url", "ftp://x", code=2).err


def test_debug_tells_what_was_asked_and_never_a_secret(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKPASS_TOKEN", "fake.identity.assertion")
    with FakeBroker().serve() as url:
        told = run("-v", "token", "https://x.example", "-o", "json", "--url", url)
    assert f"POST {url}/oauth2/token -> 200" in told.err
    assert "fake.identity" not in told.err
    assert json.loads(told.out)["access_token"] not in told.err
