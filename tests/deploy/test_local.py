"""The topology of deploy/, for real: nginx, two brokers, PostgreSQL, Redis."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.cluster import Missing, postgres_binaries, program

ROOT = Path(__file__).parents[2]


def _what_is_missing() -> str | None:
    try:
        for name in ("nginx", "redis-server"):
            program(name)
        postgres_binaries()
    except Missing as missing:
        return str(missing)
    return None


@pytest.mark.e2e
def test_a_kill_at_one_broker_is_seen_at_the_other_through_the_whole_of_it() -> None:
    missing = _what_is_missing()
    if missing:
        assert not os.environ.get("CI"), f"{missing} is not installed"
        pytest.skip(f"{missing} is not installed")
    ran = subprocess.run(
        [sys.executable, "-m", "deploy.local"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    told = ran.stdout
    assert ran.returncode == 0, told[-3000:] + ran.stderr[-3000:]
    for fact in (
        "issued through nginx: a token under tsk_",
        "verifier at broker-a: refuses it",
        "verifier at broker-b: refuses it",
        "asked again through nginx: 400 held",
        "receipt from broker-b: 2 of 2 verifiers reported applied",
        "/metrics through nginx: 404",
        "stopped and removed",
    ):
        assert fact in told, f"{fact!r} is missing\n{told[-3000:]}"
