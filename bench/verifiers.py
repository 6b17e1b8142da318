"""Many downstream services: SDK verifiers in a few processes, each following the feed for itself.

Each is a `broker.sdk.verifier.Verifier` as a service would make it, strict, with a connection and a registration of its
own. Told to watch a token, each verifies it; from then on it is verified again after whatever the feed applies, and the
moment at which that first fails is reported. Watching costs nothing between events, so a hundred of them do not load
the machine that they measure.

    python -m bench.verifiers ISSUER NUMBER IDENTITY      one such process; JSON lines on both streams
"""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import IO, Any

import uvloop

from bench.machine import on_core
from bench.site import AUDIENCE, VERIFIERS, Site, signer_of, verifier_name
from broker.sdk.errors import Refused
from broker.sdk.identity import KeyIdentity
from broker.sdk.verifier import Verifier

_BOUND_S = 30.0  # wide: on a crowded machine nobody should refuse for being stale, the kill is what is measured


class Fleet:
    """All verifiers."""

    def __init__(self, processes: "list[subprocess.Popen[str]]") -> None:
        self._processes = processes

    def watch(self, token: str) -> None:
        """Have every verifier accept `token`, and look out for the moment when it does not."""
        for process in self._processes:
            _say(process.stdin, {"watch": token})
        for process in self._processes:
            _hear(process.stdout)

    def refusals(self) -> list[int]:
        """When each verifier first refused the watched token, in nanoseconds of wall time."""
        found = []
        for process in self._processes:
            found += _hear(process.stdout)["refused"]
        return found


@contextmanager
def verifiers(site: Site, *, number: int, cores: set[int]) -> Iterator[Fleet]:
    """So many connected verifiers, on these cores, until the context ends."""
    share, rest = divmod(number, VERIFIERS)
    shares = [share + (n < rest) for n in range(VERIFIERS)]
    processes = []
    try:
        with on_core(*cores):
            for n, size in enumerate(shares):
                command = [sys.executable, "-m", "bench.verifiers", site.issuer, str(size), verifier_name(n)]
                processes.append(
                    subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
                )
        for process in processes:
            _hear(process.stdout)
        yield Fleet(processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _say(stream: "IO[str] | None", what: dict[str, Any]) -> None:
    assert stream is not None
    stream.write(json.dumps(what) + "\n")
    stream.flush()


def _hear(stream: "IO[str] | None") -> dict[str, Any]:
    assert stream is not None
    line = stream.readline()
    if not line:
        raise RuntimeError("a process of verifiers ended")
    heard: dict[str, Any] = json.loads(line)
    return heard


class Watched:
    """One verifier, which looks at the watched token again after every event of its feed."""

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier
        self._token = ""
        self.refused_ns = 0
        self.refused = asyncio.Event()
        view = verifier._view  # noqa: SLF001  (there is no public hook, and a loop of polling would be the load)
        applied = view.apply

        def apply(event: str, body: Any) -> Any:
            then = applied(event, body)
            if self._token and not self.refused.is_set():
                self._look()
            return then

        view.apply = apply  # type: ignore[method-assign]

    def watch(self, token: str) -> None:
        self._verifier.verify(token)  # raises unless it is good now
        self._token = token
        self.refused.clear()

    def _look(self) -> None:
        try:
            self._verifier.verify(self._token)
        except Refused:
            self.refused_ns = time.time_ns()
            self.refused.set()


async def _run(issuer: str, number: int, name: str) -> None:
    identity = KeyIdentity(client_id=name, key=signer_of(name)._key)  # noqa: SLF001  (the bench's own key)
    async with AsyncExitStack() as running:
        watched = []
        for _ in range(number):
            verifier = Verifier(
                issuer=issuer, audience=AUDIENCE, identity=identity, staleness_bound_s=_BOUND_S, start_timeout_s=30
            )
            watched.append(Watched(verifier))
            await running.enter_async_context(verifier)
        _say(sys.stdout, {"ready": number})
        while line := await asyncio.to_thread(sys.stdin.readline):
            token = json.loads(line)["watch"]
            for each in watched:
                each.watch(token)
            _say(sys.stdout, {"watching": number})
            for each in watched:
                await each.refused.wait()
            _say(sys.stdout, {"refused": [each.refused_ns for each in watched]})


if __name__ == "__main__":
    uvloop.run(_run(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
