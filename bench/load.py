"""Bursts of token requests at one endpoint, from `wrk` on a core of its own.

wrk is a closed loop: each connection sends its next request when the last one is answered. Its latencies therefore
leave out what an open loop would have queued; they are compared with a peer's under the very same loop.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.assertions import Assertions
from bench.machine import Calibration, calibrate, cpu_us, on_core

_SCRIPT = Path(__file__).with_name("token_load.lua")


class BurstFailed(Exception):
    """A burst whose numbers mean nothing: requests were refused, or ran out."""


@dataclass(frozen=True, slots=True)
class Target:
    """A token endpoint under load."""

    name: str
    url: str
    audience: str  # of the assertions
    pids: list[int]  # whose CPU time is charged to the tokens
    agents: int = 50
    novel: bool = False  # every request has a parameter that none had before: no decision can be remembered
    most_per_s: int = 9_000  # no more than this many requests are prepared for a second of a burst


@dataclass(frozen=True, slots=True)
class Burst:
    """What one burst showed. Latencies in milliseconds."""

    target: str
    connections: int
    tokens: int
    seconds: float
    p50: float
    p90: float
    p99: float
    cpu_us: float  # of the servers, for one token
    load_share: float  # of one core, that the load generator used
    calibration: Calibration

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds

    @property
    def units(self) -> float:
        """CPU time for one token, in ES256 verifications."""
        return self.cpu_us / self.calibration.verify_us

    @property
    def crypto_share(self) -> float:
        """The rate, as a share of what one core could do if it only verified and signed."""
        return self.rate * self.calibration.crypto_us / 1e6


def wrk() -> str | None:
    """Where wrk is, if it is installed."""
    return shutil.which("wrk")


def burst(
    target: Target,
    signers: Assertions,
    *,
    connections: int,
    seconds: int,
    server_core: int,
    load_cores: set[int],
    scratch: Path,
) -> Burst:
    """Load `target` for so long. Raises BurstFailed when a request was refused: every one of them must get a token."""
    requests = scratch / f"{target.name}.requests"
    signers.requests(
        requests,
        url=target.url,
        audience=target.audience,
        number=target.most_per_s * (seconds + 1),
        agents=target.agents,
        novel=target.novel,
    )
    before, used = calibrate(server_core), cpu_us(target.pids)
    result = finish(start(target, requests, connections=connections, seconds=seconds, cores=load_cores))
    used, after = cpu_us(target.pids) - used, calibrate(server_core)
    requests.unlink()
    if result["refused"] or result["ran_out"] or not result["requests"]:
        raise BurstFailed(f"{target.name}: {result}")
    return Burst(
        target=target.name,
        connections=connections,
        tokens=result["requests"],
        seconds=result["duration_us"] / 1e6,
        p50=result["p50_us"] / 1000,
        p90=result["p90_us"] / 1000,
        p99=result["p99_us"] / 1000,
        cpu_us=used / result["requests"],
        load_share=result["load_cpu_s"] / (result["duration_us"] / 1e6),
        calibration=Calibration.between(before, after),
    )


def command(target: Target, requests: Path, *, connections: int, seconds: int) -> list[str]:
    """The load generator's command line: wrk, or our own where that is not installed. The last line it prints is JSON.

    wrk reads its requests from the file that TASKPASS_BENCH_REQUESTS names.
    """
    found = wrk()
    if found is not None:
        return [found, "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "-s", str(_SCRIPT), target.url]
    ours = [sys.executable, "-m", "bench.sender", "--url", target.url, "--requests", str(requests)]
    return [*ours, "--connections", str(connections), "--seconds", str(seconds)]


def start(
    target: Target, requests: Path, *, connections: int, seconds: int, cores: set[int]
) -> "subprocess.Popen[str]":
    """The load generator at work, on its own cores. `finish` waits for it."""
    with on_core(*cores):
        return subprocess.Popen(
            command(target, requests, connections=connections, seconds=seconds),
            env={**os.environ, "TASKPASS_BENCH_REQUESTS": str(requests)},
            stdout=subprocess.PIPE,
            text=True,
        )


def finish(process: "subprocess.Popen[str]") -> dict[str, Any]:
    """What the load generator saw. Raises BurstFailed when it failed itself."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    output, _ = process.communicate()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        raise BurstFailed(f"the load generator exited with {process.returncode}")
    found: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    found["load_cpu_s"] = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return found
