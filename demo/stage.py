"""What the demo's story needs: processes that are gone afterwards, commands as a user types them, and a watch."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
_READY_WITHIN_S = 30
_GRACE_S = 8
_JWT = re.compile(r"eyJ[\w-]{8,}\.[\w-]+\.[\w-]+")


class StepFailed(Exception):
    """Reality differs from the story."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command or a request answered."""

    code: int
    text: str

    def json(self) -> dict[str, object]:
        """The answer as an object."""
        body: dict[str, object] = json.loads(self.text)
        return body


class Stage:
    """A directory, an environment, and the processes in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        bin_directory = str(Path(sys.executable).parent)
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("TASKPASS_")},
            "PATH": f"{bin_directory}{os.pathsep}{os.environ.get('PATH', '')}",
            "PYTHONPATH": str(ROOT),
            "XDG_CONFIG_HOME": str(directory / "config"),
            "NO_COLOR": "1",
        }
        self._children: list[subprocess.Popen[bytes]] = []

    # --- Telling ------------------------------------------------------------------------------------------------------

    def say(self, text: str = "") -> None:
        """A line of the transcript, with tokens cut short: a transcript is no place for them."""
        sys.stdout.write(_JWT.sub(lambda found: f"{found[0][:8]}...({len(found[0])} characters)", text) + "\n")
        sys.stdout.flush()

    def heading(self, text: str) -> None:
        """A new part of the story."""
        self.say(f"\n# {text}")

    def expect(self, true: object, what: str) -> None:
        """Raise StepFailed unless it is so."""
        if not true:
            raise StepFailed(what)

    # --- Doing --------------------------------------------------------------------------------------------------------

    def export(self, **variables: str) -> None:
        """Set variables for every command from here on, visibly."""
        self.environment.update(variables)
        for name, value in variables.items():
            self.say(f"$ export {name}={shlex.quote(value)}")

    def run(self, command: str, *, code: int = 0, shown: str | None = None, quiet: bool = False) -> Answer:
        """Run a command as typed, print it and what it says, and check its exit code."""
        ran = subprocess.run(  # noqa: S603
            shlex.split(command),
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=False,
        )
        out, err = ran.stdout.decode(), ran.stderr.decode()
        self.say(f"$ {shown or command}")
        if not quiet or ran.returncode != code:
            for line in (out + err).splitlines():
                self.say(line)
        if ran.returncode != 0:
            self.say(f"(exit code {ran.returncode})")
        self.expect(ran.returncode == code, f"`{command}` should exit with {code}, not {ran.returncode}")
        return Answer(ran.returncode, out if out else err)

    def call(self, method: str, url: str, token: str, body: dict[str, object] | None = None) -> Answer:
        """Call the service with a token, and print that."""
        self.say(f"> {method} {url}" + (f"  {json.dumps(body)}" if body else "") + "  Authorization: Bearer $TOKEN")
        answer = request(method, url, token, body)
        self.say(f"< {answer.code} {answer.text}")
        return answer

    # --- Processes ----------------------------------------------------------------------------------------------------

    def start(self, name: str, *words: str) -> None:
        """Start a process that runs until the end. Its log is kept in the directory."""
        with (self.directory / f"{name}.log").open("wb") as log:
            child = subprocess.Popen(  # noqa: S603
                words,
                cwd=self.directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._children.append(child)

    def wait_for(self, what: str, ready: Callable[[], bool]) -> None:
        """Wait until it is so, or one of the processes has died, or it takes too long."""
        until = time.monotonic() + _READY_WITHIN_S
        while not ready():
            dead = [child for child in self._children if child.poll() is not None]
            if dead or time.monotonic() > until:
                logs = "\n".join(path.read_text()[-2000:] for path in sorted(self.directory.glob("*.log")))
                raise StepFailed(f"{what} did not come about\n{logs}")
            time.sleep(0.02)

    def stop(self) -> None:
        """End every process, and everything that it started: politely, then not."""
        for child in reversed(self._children):
            _signal_group(child, signal.SIGTERM)
        until = time.monotonic() + _GRACE_S
        for child in self._children:
            with suppress(subprocess.TimeoutExpired):
                child.wait(timeout=max(0.1, until - time.monotonic()))
        for child in self._children:
            _signal_group(child, signal.SIGKILL)
            child.wait()
        self._children.clear()


def _signal_group(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, number)


def request(method: str, url: str, token: str = "", body: dict[str, object] | None = None) -> Answer:
    """One request to a service on loopback; code 0 when nobody answers."""
    where = urlsplit(url)
    connection = HTTPConnection(where.netloc, timeout=5)
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {token}"} if token else {})
    try:
        connection.request(method, where.path, json.dumps(body) if body else None, headers)
        answer = connection.getresponse()
        return Answer(answer.status, answer.read().decode())
    except (OSError, HTTPException):
        return Answer(0, "")
    finally:
        connection.close()


class Watch:
    """Asks the service again and again with one token, and notes when it was first refused."""

    def __init__(self, url: str, token: str) -> None:
        self._url = urlsplit(url)
        self._token = token
        self._over = threading.Event()
        self.accepted = 0
        self.refused_at: int | None = None
        """Wall clock, ms, of the first 401."""

    @contextmanager
    def running(self) -> Iterator["Watch"]:
        """Watch while the block runs, and a moment longer if need be."""
        thread = threading.Thread(target=self._watch)
        thread.start()
        try:
            yield self
            thread.join(timeout=2)
        finally:
            self._over.set()
            thread.join()

    def _watch(self) -> None:
        connection = HTTPConnection(self._url.netloc, timeout=5)
        while not self._over.is_set():
            connection.request("GET", self._url.path, headers={"authorization": f"Bearer {self._token}"})
            answer = connection.getresponse()
            answer.read()
            if answer.status == 401:
                self.refused_at = time.time_ns() // 1_000_000
                break
            self.accepted += answer.status == 200
            time.sleep(0.001)
        connection.close()
