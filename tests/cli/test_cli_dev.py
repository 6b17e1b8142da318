"""`taskpass dev`, as a process of its own."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.conftest import Ran

Run = Callable[..., Ran]


@contextmanager
def playing(*options: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """A playground broker, and what it said until it was ready."""
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\nfrom broker.cli import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "dev", "--port", "0", *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said = []
    try:
        for line in process.stderr:
            said.append(line.rstrip("\n"))
            if "Ctrl-C" in line:
                break
        yield process, said
    finally:
        process.kill()
        process.communicate()


def exported(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    line = next(line for line in said if line.strip().startswith("export "))
    for assignment in shlex.split(line)[1:]:
        monkeypatch.setenv(*assignment.split("=", 1))


@pytest.mark.e2e
def test_what_the_banner_says_works_and_nothing_stays(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with playing() as (process, said):
        assert "DEVELOPMENT BROKER" in said[0]
        exported(said, monkeypatch)
        place = Path(os.environ["TASKPASS_KEY_FILE"]).parent.parent
        assert run("whoami", "-o", "name").out == "dispute-bot\n"
        run("token", "https://invoices.example.com", "--scope", "invoices:read")
        run("login", "operator", "--key", place / "keys/operator.pem")
        run("pause", "dispute-bot", "--reason", "just looking")
        run("token", "https://invoices.example.com", code=1)
        monkeypatch.chdir(place)
        found = {row["check"]: row["state"] for row in run("doctor", "-o", "json").json}
        assert found["broker"] == found["readiness"] == found["identity"] == found["ledger"] == "ok"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
        assert (process.returncode, err.strip()) == (0, "")
        monkeypatch.chdir("/")
        assert not place.exists()


@pytest.mark.e2e
def test_a_directory_is_kept_and_taken_up_again(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "play"
    with playing("--dir", str(place)) as (process, said):
        exported(said, monkeypatch)
        url = os.environ["TASKPASS_URL"]
        run("token", "https://invoices.example.com")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
        assert process.returncode == 0
    with playing("--dir", str(place), "--port", url.rpartition(":")[2]) as (_, said):
        run("login", "operator", "--key", place / "keys/operator.pem")
        types = [row["type"] for row in run("ledger", "ls", "-o", "json").json]
        assert types.count("ledger.created") == 1
        assert types.count("broker.started") == 2


def test_a_directory_of_another_address_is_refused(run: Run, tmp_path: Path) -> None:
    run("init", tmp_path / "play", "--issuer", "http://127.0.0.1:8700")
    assert "was made for http://127.0.0.1:8700" in run("dev", "--port", 0, "--dir", tmp_path / "play", code=2).err
