"""`taskpass run` as a process of its own."""

import os
import subprocess
import sys
from collections.abc import Sequence

MAIN = "from broker.cli import main; main()"


def started(
    url: str, options: Sequence[str], words: Sequence[str], *, stdin: int = subprocess.DEVNULL
) -> subprocess.Popen[str]:
    environment = {**os.environ, "TASKPASS_URL": url, "TASKPASS_TOKEN": "fake.identity.assertion"}
    arguments = [sys.executable, "-c", MAIN, "run", *options, "--", *words]
    return subprocess.Popen(
        arguments, env=environment, text=True, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finished(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


def python(code: str) -> tuple[str, str, str]:
    return (sys.executable, "-c", code)
