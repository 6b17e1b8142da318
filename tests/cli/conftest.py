import io
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from structlog.testing import capture_logs

from broker.cli import sessions, taskpass
from broker.cli.errors import run_to_exit_code
from broker.cli.http import Transport
from broker.cli.sessions import OperatorSession
from broker.sdk.protocol import Request, Response
from tests.kit import Broker, Home


@dataclass(frozen=True)
class Ran:
    """What one command line did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, Any]:
        """The one object on standard error."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        return dict(json.loads(lines[0])["error"])


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No broker, no identity and no session but what the test gives."""

    for name in list(os.environ):
        if name.startswith("TASKPASS_") or name in ("NO_COLOR", "FORCE_COLOR"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO())


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Runs a command line in this process."""

    def runner(*arguments: object, code: int | None = 0) -> Ran:
        capsys.readouterr()
        exit_code = run_to_exit_code(taskpass, [str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert code is None or exit_code == code, f"exit code {exit_code}\n{out}\n{err}"
        return Ran(exit_code, out, err)

    return runner


class Site:
    """A real broker behind the command line, and how to be somebody to it."""

    def __init__(self, broker: Broker, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.broker, self.home = broker, broker.home
        self.requests: list[Request] = []
        self._token_file = place / "identity.jwt"
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(Transport, "send", self._send)
        monkeypatch.setenv("TASKPASS_URL", self.home.issuer)

    def _send(self, request: Request, *, timeout_s: float = 0) -> Response:
        self.requests.append(request)
        url = urlsplit(request.url)
        assert f"{url.scheme}://{url.netloc}" == self.home.issuer
        target = f"{url.path}?{url.query}" if url.query else url.path
        answer = self.broker.request(request.method, target, headers=dict(request.headers), content=request.body)
        return Response(answer.status_code, dict(answer.headers), answer.content)

    def be_agent(self, **claims: Any) -> None:
        """The next command has a fresh workload identity."""
        self._token_file.write_text(self.home.assertion(**claims))
        self._monkeypatch.setenv("TASKPASS_TOKEN_FILE", str(self._token_file))

    def be_operator(self, name: str = "operator") -> None:
        """Commands from here on have an operator's session, and no workload identity."""
        self._monkeypatch.delenv("TASKPASS_TOKEN_FILE", raising=False)
        issuer, token = self.home.issuer, self.broker.session(name)
        sessions.keep(OperatorSession(issuer, issuer, name, int(time.time()) + 600, token))

    def key(self, name: str) -> Path:
        """The private key of an operator."""
        return self.home.path / "keys" / f"{name}.pem"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A running broker of this test alone, on the wall clock: the command line knows no other."""
    home = Home(tmp_path / "broker", clock=wall_ms)
    broker = Broker(_one_process(home))
    try:
        with capture_logs():  # the broker's log has no place in the command's streams
            yield Site(broker, tmp_path, monkeypatch)
    finally:
        broker.close()


def _one_process(home: Home) -> Home:
    serve = home.config.serve.model_copy(update={"control_url": home.issuer})
    home.config = home.config.model_copy(update={"serve": serve})
    return home
