"""Real broker processes: `taskpass serve` as a child, pinned, with the processes told apart.

`python -m bench.serving taskpass.toml` is what is started: the supervisor of `taskpass serve` and nothing else.
"""

import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from bench import loops
from bench.machine import children_of, pin, several
from bench.site import Site
from broker import processes

_START_S, _STOP_S = 90, 20
_LOG = "serve.log"


@dataclass(frozen=True, slots=True)
class Serving:
    """A broker that answers."""

    site: Site
    supervisor: int
    control: int
    workers: list[int]

    @property
    def pids(self) -> list[int]:
        """The processes that do the work."""
        return [self.control, *self.workers]


@contextmanager
def serving(site: Site, *, core: int | set[int], environment: Mapping[str, str] | None = None) -> Iterator[Serving]:
    """`taskpass serve` on `core`, control process and token workers alike, until the context ends."""
    with _started(site, environment or {}) as supervisor:
        for url in (site.issuer, site.control):
            _wait(url, supervisor, site.directory / _LOG)
        found = [child for child in children_of(supervisor.pid) if "resource_tracker" not in _command(child)]
        running = Serving(site, supervisor.pid, found[0], found[1:])
        for pid in (supervisor.pid, *running.pids):
            pin(pid, several(core))
        yield running


@contextmanager
def _started(site: Site, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    log = (site.directory / _LOG).open("ab")
    supervisor = subprocess.Popen(
        [sys.executable, "-m", "bench.serving", str(site.config_path)],
        stdout=log,
        stderr=log,
        env={**os.environ, **environment},
        start_new_session=True,
    )
    try:
        yield supervisor
    finally:
        supervisor.send_signal(signal.SIGTERM)
        try:
            supervisor.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(supervisor.pid, signal.SIGKILL)
            supervisor.wait()
        log.close()


def _wait(url: str, supervisor: "subprocess.Popen[bytes]", log: Path) -> None:
    """Until `/readyz` there says ready. Raises TimeoutError, or RuntimeError as soon as the supervisor has ended; both
    with the end of its log, which goes with the run.
    """
    parts = urlsplit(url)
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if supervisor.poll() is not None:
            raise RuntimeError(f"the broker of {url} has ended, and said: {_end_of(log)}")
        connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=5)
        try:
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.05)
    raise TimeoutError(f"{url} did not become ready in {_START_S} s, and said: {_end_of(log)}")


def _end_of(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-1_000:]


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace")


def main() -> int:
    """The supervisor of `taskpass serve`."""
    from broker.config import load_config
    from broker.log import configure_logging

    path = Path(sys.argv[1])
    config = load_config(path)
    configure_logging(config.log.level, config.log.format)
    return processes.Supervisor(config_path=path, config=config).run()


if __name__ == "__mp_main__":  # one of its processes
    processes.serve_one = loops.watched(processes.serve_one)

if __name__ == "__main__":
    sys.exit(main())
