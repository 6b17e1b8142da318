"""Secrets that `taskpass run` hands over: in variables, in files that are gone afterwards, and nowhere else."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.sdk.testkit import FakeBroker
from tests.cli.running import finished, python, started

PATH = "/v1/credentials"
FAKE = FakeBroker()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with FAKE.serve() as address:
        yield address


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Files go where this test alone looks."""
    FAKE.tasks.clear()
    FAKE.secrets.clear()
    FAKE.requests.clear()
    FAKE.accept(PATH)
    place = tmp_path / "runtime"
    place.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(place))
    return place


def start(url: str, options: list[str], *words: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    return started(url, options, words, stdin=stdin)


def the_task() -> dict[str, object]:
    (task,) = FAKE.tasks.values()
    return task


def test_a_secret_in_variables(url: str, forget: Path) -> None:
    show = python("import json, os; print(json.dumps(dict(os.environ)))")
    code, out, err = finished(start(url, ["--secret", "DB_=orders-db orders:read shop=4"], *show))
    assert (code, err) == (0, "")
    environment = json.loads(out)
    assert environment["DB_USERNAME"].startswith("fake-")
    assert len(environment["DB_PASSWORD"]) > 10
    assert "TASKPASS_ACCESS_TOKEN" not in environment
    assert "TASKPASS_TOKEN" not in environment
    asked = next(seen.body for seen in FAKE.requests if seen.path == PATH)
    task = the_task()
    assert asked == {"resource": "orders-db", "actions": ["orders:read"], "parameters": {"shop": 4}, "task": task["id"]}
    assert task["state"] == "ended"
    assert list(forget.iterdir()) == []


def test_several_secrets_and_a_token(url: str) -> None:
    show = python("import os; print(' '.join(sorted(n for n in os.environ if n[:2] in ('A_', 'B_') or 'ACCESS' in n)))")
    options = ["--secret", "A_=a x", "--secret", "B_=b x", "--resource", "https://invoices.test"]
    code, out, _ = finished(start(url, options, *show))
    assert (code, out) == (0, "A_PASSWORD A_USERNAME B_PASSWORD B_USERNAME TASKPASS_ACCESS_TOKEN\n")


READ = (
    "import os, pathlib\n"
    "place = pathlib.Path(os.environ['DB'])\n"
    "print(place)\n"
    "for file in sorted(place.iterdir()):\n"
    "    print(file.name, oct(file.stat().st_mode & 0o777), len(file.read_text()) > 3)\n"
    "print(oct(place.parent.stat().st_mode & 0o777))\n"
    "print([name for name, value in os.environ.items() if (place / 'password').read_text() in value])"
)


def test_a_secret_in_files_is_the_owners_alone_and_gone_afterwards(url: str, forget: Path) -> None:
    code, out, err = finished(start(url, ["--secret-file", "DB=orders-db orders:read"], *python(READ)))
    assert (code, err) == (0, "")
    place, *told = out.splitlines()
    assert Path(place).parent.parent == forget
    assert told == ["password 0o600 True", "username 0o600 True", "0o700", "[]"]
    assert list(forget.iterdir()) == []


def test_without_a_runtime_directory_files_are_in_shared_memory(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("there is no shared memory here")
    code, out, _ = finished(start(url, ["--secret-file", "DB=orders-db orders:read"], *python(READ)))
    assert code == 0
    assert out.startswith("/dev/shm/taskpass-")
    assert not Path(out.splitlines()[0]).exists()


WAIT = "import os, signal\nprint(os.environ['DB'], flush=True)\nwhile True: signal.pause()"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_files_are_gone_after_a_signal(url: str, forget: Path, number: signal.Signals) -> None:
    process = start(url, ["--secret-file", "DB=orders-db orders:read"], *python(WAIT))
    assert process.stdout is not None
    assert Path(process.stdout.readline().strip(), "password").exists()
    process.send_signal(number)
    assert finished(process)[0] in (128 + number, 1)
    assert list(forget.iterdir()) == []
    assert the_task()["state"] == "ended"


def test_files_are_gone_when_the_command_dies_or_is_not_there(url: str, forget: Path) -> None:
    killed = python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert finished(start(url, ["--secret-file", "DB=orders-db orders:read"], *killed))[0] == 128 + signal.SIGKILL
    assert finished(start(url, ["--secret-file", "DB=orders-db orders:read"], "/nonexistent"))[0] == 127
    assert list(forget.iterdir()) == []


def test_files_are_renewed_as_a_whole(url: str, forget: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FAKE, "lifetime_s", 1)
    until_changed = (
        "import os, time\n"
        "def pair():\n"
        "    held = os.open(os.environ['DB'], os.O_RDONLY)\n"
        "    try:\n"
        "        return [os.read(os.open(n, os.O_RDONLY, dir_fd=held), 100) for n in ('username', 'password')]\n"
        "    except FileNotFoundError: return pair()\n"
        "first = pair()\n"
        "while pair() == first: time.sleep(0.01)\n"
        "second = pair()\n"
        "assert second[0] != first[0] and second[1] != first[1]"
    )
    assert finished(start(url, ["--secret-file", "DB=orders-db orders:read"], *python(until_changed))) == (0, "", "")
    assert list(forget.iterdir()) == []


def test_what_is_in_variables_lives_as_long_as_the_command(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FAKE, "lifetime_s", 1)
    process = start(url, ["--secret", "DB_=orders-db orders:read"], *python("input()"), stdin=subprocess.PIPE)
    while sum(seen.path.endswith("/renew") for seen in FAKE.requests) < 2:
        time.sleep(0.01)
    (secret,) = FAKE.secrets
    assert {seen.path for seen in FAKE.requests if seen.path.endswith("/renew")} == {f"{PATH}/{secret}/renew"}
    out, err = process.communicate("\n", timeout=30)
    assert (process.returncode, out, err) == (0, "", "")


def test_what_lives_as_long_as_its_task_is_renewed_no_more(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FAKE, "lifetime_s", 1)
    process = start(url, ["--secret", "DB_=orders-db orders:read"], *python("input()"), stdin=subprocess.PIPE)
    while not FAKE.secrets:
        time.sleep(0.01)
    (secret,) = FAKE.secrets
    renewal = f"{PATH}/{secret}/renew"
    FAKE.refuse(renewal, 409, code="conflict", outcome="at_its_limit", detail="It lives as long as it may already.")
    while not any(seen.path == renewal for seen in FAKE.requests):
        time.sleep(0.01)
    assert process.communicate("\n", timeout=30) == ("", "")  # and nobody is told of what is as it should be
    assert process.returncode == 0


def test_a_refusal_runs_nothing_leaves_nothing_and_ends_the_task(url: str, forget: Path, tmp_path: Path) -> None:
    FAKE.refuse(PATH, 403, code="access_denied", outcome="approval", detail="Ask.", approval={"id": "apr_1"})
    code, _, err = finished(start(url, ["--secret-file", "DB=orders-db orders:read"], "touch", str(tmp_path / "ran")))
    assert code == 5
    assert "apr_1" in err
    assert not (tmp_path / "ran").exists()
    assert list(forget.iterdir()) == []
    assert the_task()["state"] == "ended"


def test_no_secret_is_in_arguments_or_output(url: str) -> None:
    look = (
        "import os\n"
        "secret = os.environ['DB_PASSWORD']\n"
        "for pid in (os.getpid(), os.getppid()):\n"
        "    assert secret not in open(f'/proc/{pid}/cmdline').read()\n"
        "print(secret)"
    )
    code, out, err = finished(start(url, ["--secret", "DB_=orders-db orders:read", "-v"], *python(look)))
    assert code == 0, err
    assert out.strip() not in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "Give --resource"),
        (["--secret", "DB_=orders-db"], "write 'NAME=RESOURCE ACTION"),
        (["--secret", "=orders-db x"], "write 'NAME=RESOURCE ACTION"),
        (["--secret", "1X=orders-db x"], "write 'NAME=RESOURCE ACTION"),
        (["--secret-file", "DB= "], "write 'NAME=RESOURCE ACTION"),
        (["--secret", "DB=a x", "--secret-file", "DB=b x"], "both be called DB"),
        (["--secret", "DB=a x", "--scope", "x"], "give its --resource"),
        (["--secret", "DB=a x", "--write-token", "t"], "give its --resource"),
    ],
)
def test_wrong_usage_opens_no_task(url: str, options: list[str], said: str) -> None:
    code, _, err = finished(start(url, options, "true"))
    assert code == 2
    assert re.search(said, err)
    assert not FAKE.tasks
