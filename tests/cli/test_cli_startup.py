"""What is imported when: whoever asks for one token must not wait for a server."""

import os
import subprocess
import sys

import click
import pytest

import broker.cli
from broker.cli.errors import run_to_exit_code
from broker.sdk.testkit import FakeBroker

HEAVY = {
    "cedarpy",
    "cryptography",
    "fastapi",
    "httpx",
    "httpx2",
    "jwt",
    "orjson",
    "pydantic",
    "rich",
    "starlette",
    "structlog",
    "uvicorn",
    "yaml",
    "asyncio",
}


def modules_after(code: str, **environment: str) -> set[str]:
    ran = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; sys.stderr.write('\\n' + ' '.join(sys.modules))"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(ran.stderr.splitlines()[-1].split())


def test_importing_the_command_line_imports_click_alone() -> None:
    added = modules_after("import broker.cli") - modules_after("import click")
    assert {name.partition(".")[0] for name in added} - sys.stdlib_module_names == {"broker"}
    assert {name for name in added if name.startswith("broker.")} == {
        "broker.cli",
        "broker.cli.lazy",
        "broker.cli.options",
    }


def test_a_token_needs_no_http_stack_and_no_models() -> None:
    with FakeBroker().serve() as url:
        loaded = modules_after(
            "import sys; sys.argv = ['taskpass', 'token', 'https://x.example', '-o', 'json']\n"
            "from broker.cli import main\n"
            "try: main()\n"
            "except SystemExit as end: assert end.code == 0",
            TASKPASS_URL=url,
            TASKPASS_TOKEN="fake.identity.assertion",
        )
    assert "broker.cli.token" in loaded
    assert not {name.partition(".")[0] for name in loaded} & HEAVY


@pytest.mark.parametrize("name", [name for commands in broker.cli.TABLE.values() for name in commands])
def test_the_table_tells_what_the_command_tells(name: str) -> None:
    context = click.Context(broker.cli.taskpass)
    command = broker.cli.taskpass.get_command(context, name)
    assert command is not None
    text = next(
        text for commands in broker.cli.TABLE.values() for known, (_, text) in commands.items() if known == name
    )
    assert command.short_help == text
    assert command.name == name


def all_commands(group: click.Command, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    assert isinstance(group, click.Group)
    found = []
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        found.append((*path, name))
        if isinstance(command, click.Group):
            found += all_commands(command, (*path, name))
    return found


@pytest.mark.parametrize("path", all_commands(broker.cli.taskpass), ids=" ".join)
def test_every_command_explains_itself(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_to_exit_code(broker.cli.taskpass, [*path, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"Usage: taskpass {' '.join(path)}")
    assert "\\b" not in out
    assert max(len(line) for line in out.splitlines()) <= 100


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_to_exit_code(broker.cli.taskpass, ["completion", shell]) == 0
    assert "_TASKPASS_COMPLETE" in capsys.readouterr().out


def test_completion_completes() -> None:
    environment = {
        **os.environ,
        "_TASKPASS_COMPLETE": "bash_complete",
        "COMP_WORDS": "taskpass kill a",
        "COMP_CWORD": "2",
    }
    code = "import sys; sys.argv = ['taskpass']; from broker.cli import main; main()"
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert ran.stdout.split() == ["plain,agent", "plain,all"]
