"""Correctness does not depend on Redis: tests of the promises pass while it lies, and while it is not there.

They run as they are, in a process of their own, with `TASKPASS_TEST_SIGNALS` naming the liar.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.signals.servers import LIES, liar

ROOT = Path(__file__).parents[2]
SELECTED = [
    "tests/service/test_kill_switch.py",
    "tests/service/test_pipeline.py",
    "tests/service/test_replay.py",
    "tests/web/test_feed.py",
    "tests/invariants/test_race.py",
    "tests/invariants/test_feed.py",
]


@pytest.mark.e2e
def test_every_answer_is_the_same_while_redis_lies():
    with liar(*LIES) as server:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", *SELECTED],
            cwd=ROOT,
            env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
            | {"TASKPASS_TEST_SIGNALS": server.url},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-4000:]
        assert server.asked > 20, "the tests did use it"
