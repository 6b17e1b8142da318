"""One broker process for tests that kill it: `python -m tests.invariants.child CONFIG READY_FD serve | ROLE [LISTEN]`.

`serve` is the real thing, supervisor and all. A single process of a role may be told by its environment to use another
clock, to fail at a chosen step (`failpoints`), and to be of the next version (`next_version`).
"""

import asyncio
import os
import sys
from functools import partial
from pathlib import Path

from broker import processes, stores
from broker.app import Role
from broker.config import load_config
from broker.issuing import Opened
from broker.stores import wall_clock
from tests.invariants import failpoints, next_version
from tests.invariants.file_backend import PLACE, FileIssuer

CLOCK_OFFSET_MS = "INVARIANTS_CLOCK_OFFSET_MS"
CLOCK_IS_OURS_ALONE = "INVARIANTS_CLOCK_IS_OURS_ALONE"
"""Set: the clock is the host's, and a ledger in a database goes by the database's."""


class _Supervisor(processes.Supervisor):
    """Says when the last process is ready."""

    ready_fd = -1

    def _watch(self) -> None:
        if self.ready_fd >= 0:
            _tell(self.ready_fd)
            self.ready_fd = -1
        super()._watch()


def _tell(descriptor: int) -> None:
    os.write(descriptor, b"ready")
    os.close(descriptor)


def main() -> int:
    config_path, ready_fd, what, *listen = sys.argv[1:]
    config = load_config(Path(config_path))
    if what == "serve":
        supervisor = _Supervisor(config_path=Path(config_path), config=config)
        supervisor.ready_fd = int(ready_fd)
        return supervisor.run()
    role = Role[what.upper()]
    address = listen[0] if listen else config.serve.control_listen if role is Role.CONTROL else config.serve.listen
    offset = int(os.environ.get(CLOCK_OFFSET_MS, "0"))
    backend = os.environ.get(PLACE)
    issuers = {"file": Opened(FileIssuer(Path(backend)))} if backend else {}
    processes.running = partial(processes.running, now=lambda: wall_clock() + offset, issuers=issuers)
    if CLOCK_IS_OURS_ALONE in os.environ:
        stores._instead_of_the_databases = lambda _: None
    failpoints.install()
    next_version.install()
    listening = processes.listen_on(address)
    asyncio.run(processes.serve_one(config, role=role, listening=listening, ready=lambda: _tell(int(ready_fd))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
