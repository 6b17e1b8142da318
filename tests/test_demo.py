"""The demonstration, from its first line to its last."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from demo.postgres import binaries

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.e2e
def test_the_demo_tells_its_story() -> None:
    ran = subprocess.run(
        [sys.executable, "demo/run.py"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    told = ran.stdout
    assert ran.returncode == 0, told[-3000:] + ran.stderr
    for fact in (
        "agent dispute-bot",
        "< 200 ",
        "(exit code 5)",
        "(exit code 3)",
        "no-agent-moves-money",
        "killed agent dispute-bot",
        "1 of 1 reported applied",
        "< 401 ",
        "dispute-bot: active",
        "is in the ledger",
        "sound",
        "A database login, made for one task, and gone with it",
        "seen gone at its backend" if binaries() else "skipped: no PostgreSQL server",
        "Nothing is left running",
    ):
        assert fact in told, f"{fact!r} is missing\n{told[-3000:]}"
    measured = re.search(r"acknowledgement (\d+) ms after the commit; first refusal seen by a client (-?\d+) ms", told)
    assert measured is not None
    assert int(measured[2]) <= 1000
    assert not re.search(r"eyJ[\w-]{20,}", told), "a token is in the transcript"
    assert not re.search(r"postgresql://\w+:", told), "a password is in the transcript"
