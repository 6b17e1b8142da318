"""`taskpass run`, as a process of its own: what the child gets, and how it ends."""

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.sdk.testkit import FakeBroker
from tests.cli.running import finished, python, started

RESOURCE = "https://invoices.test"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with FAKE.serve() as address:
        yield address


FAKE = FakeBroker()


@pytest.fixture(autouse=True)
def forget() -> None:
    FAKE.tasks.clear()


def start(url: str, *words: str, options: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    return started(url, ["--resource", RESOURCE, *options], words)


def the_task() -> dict[str, object]:
    (task,) = FAKE.tasks.values()
    return task


def test_the_child_has_its_credential_and_not_our_identity(url: str) -> None:
    code, out, err = finished(
        start(
            url, *python("import json, os; print(json.dumps(dict(os.environ)))"), options=("--scope", "invoices:read")
        )
    )
    assert (code, err) == (0, "")
    environment = json.loads(out)
    assert environment["TASKPASS_ACCESS_TOKEN"].count(".") == 2
    assert environment["TASKPASS_TASK"] == the_task()["id"]
    assert "TASKPASS_TOKEN" not in environment
    asked = next(seen.body for seen in reversed(FAKE.requests) if seen.path == "/oauth2/token")
    assert asked["task"] == the_task()["id"]
    assert the_task() | {"state": "ended", "outcome": "completed"} == the_task()


def test_the_exit_code_is_the_childs(url: str) -> None:
    assert finished(start(url, *python("raise SystemExit(7)")))[0] == 7
    assert the_task()["outcome"] == "exit 7"


def test_a_signal_that_ends_the_child_is_mirrored(url: str) -> None:
    code, _, _ = finished(start(url, *python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")))
    assert code == 128 + signal.SIGKILL
    assert the_task()["state"] == "ended"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_are_passed_on(url: str, number: signal.Signals) -> None:
    process = start(
        url,
        *python(
            "import signal, sys\n"
            f"signal.signal({int(number)}, lambda *_: sys.exit(42))\n"
            "print('ready', flush=True)\n"
            "while True: signal.pause()"
        ),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert finished(process)[0] == 42
    assert the_task()["outcome"] == "exit 42"


def test_the_token_in_a_file_is_the_owners_alone_and_gone_afterwards(url: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    code, out, _ = finished(
        start(
            url,
            *python(
                "import os\n"
                "path = os.environ['TASKPASS_ACCESS_TOKEN_FILE']\n"
                "print(oct(os.stat(path).st_mode & 0o777), open(path).read().count('.'))\n"
                "print('TASKPASS_ACCESS_TOKEN' in os.environ)"
            ),
            options=("--write-token", str(file)),
        )
    )
    assert (code, out) == (0, "0o600 2\nFalse\n")
    assert not file.exists()


def test_a_refusal_runs_nothing_and_ends_the_task(url: str, tmp_path: Path) -> None:
    FAKE.refuse("/oauth2/token", 400, error="access_denied", outcome="never", error_description="Never: no.")
    try:
        code, _, err = finished(start(url, "touch", str(tmp_path / "ran")))
    finally:
        FAKE.accept("/oauth2/token")
    assert code == 3
    assert err.startswith("never: no.")
    assert not (tmp_path / "ran").exists()
    assert the_task()["state"] == "ended"


def test_a_command_that_is_not_there(url: str) -> None:
    assert finished(start(url, "/nonexistent/tool"))[0] == 127
    assert finished(start(url, "/"))[0] == 126
    assert {task["state"] for task in FAKE.tasks.values()} == {"ended"}


def test_wrong_usage_opens_no_task(url: str) -> None:
    assert finished(start(url, "true", options=("--param", "a=1")))[0] == 2
    assert finished(start(url))[0] == 2
    assert not FAKE.tasks


def test_a_heartbeat_keeps_the_task(url: str) -> None:
    wait = "import sys, pathlib\nprint('ready', flush=True)\nimport signal\nsignal.sigwait([signal.SIGTERM])"
    block = "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"
    process = start(url, *python(block + wait), options=("--heartbeat", "1"))
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    FAKE.feed.until(lambda: any(seen.path.endswith("/heartbeat") for seen in FAKE.requests))
    process.terminate()
    assert finished(process)[0] == 0


def test_the_token_in_a_file_is_kept_fresh(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FAKE, "lifetime_s", 1)
    until_changed = (
        "import os, time\n"
        "path = os.environ['TASKPASS_ACCESS_TOKEN_FILE']\n"
        "first = open(path).read()\n"
        "while open(path).read() == first: time.sleep(0.01)"
    )
    process = start(url, *python(until_changed), options=("--write-token", str(tmp_path / "token")))
    assert finished(process) == (0, "", "")
