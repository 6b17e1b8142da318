"""The machine: which cores, what a core is worth at this moment, and what processes use of it.

A core's speed changes within seconds on shared machines, so every burst is accompanied by a calibration: the cost of
one ES256 verification and one signature on the very core that serves.
"""

import contextlib
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

_ES256 = ec.ECDSA(hashes.SHA256())
_TICK_US = 1e6 / os.sysconf("SC_CLK_TCK")
_ROUNDS, _PER_ROUND = 7, 60


_ALL: list[int] = sorted(os.sched_getaffinity(0))  # before anybody is pinned


def cores() -> tuple[int, int]:
    """(for the servers, for the load). The same one twice where there is just one."""
    return _ALL[0], _ALL[1 % len(_ALL)]


def all_cores() -> set[int]:
    """Every core this run may use."""
    return set(_ALL)


def several(core: int | set[int]) -> set[int]:
    """One core as the only one of a set."""
    return core if isinstance(core, set) else {core}


@contextlib.contextmanager
def on_core(*wanted: int) -> Iterator[None]:
    """This thread on these cores, for as long as the context lasts."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, wanted)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def pin(pid: int, wanted: set[int]) -> None:
    """A process and all of its threads to these cores."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), wanted)


@dataclass(frozen=True, slots=True)
class Calibration:
    """What the primitives cost at this moment, in microseconds."""

    verify_us: float
    sign_us: float

    @property
    def crypto_us(self) -> float:
        """One verification and one signature: what no broker of signed assertions and tokens can do without."""
        return self.verify_us + self.sign_us

    @classmethod
    def between(cls, before: "Calibration", after: "Calibration") -> "Calibration":
        """The mean of one before and one after a burst."""
        return cls((before.verify_us + after.verify_us) / 2, (before.sign_us + after.sign_us) / 2)


class Yardstick:
    """One ES256 verification and one signature, timed wherever the calling thread runs."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._public = self._key.public_key()
        self._data = os.urandom(420)
        self._signature = self._key.sign(self._data, _ES256)

    def verify_us(self, *, rounds: int = _ROUNDS, per_round: int = _PER_ROUND) -> float:
        """What a verification takes, in microseconds: the median of some rounds of so many each."""
        return _median_us(lambda: self._public.verify(self._signature, self._data, _ES256), rounds, per_round)

    def sign_us(self, *, rounds: int = _ROUNDS, per_round: int = _PER_ROUND) -> float:
        """The same of a signature."""
        return _median_us(lambda: self._key.sign(self._data, _ES256), rounds, per_round)


def calibrate(core: int) -> Calibration:
    """Verify and sign on `core`, some 50 ms of it."""
    yardstick = Yardstick()
    with on_core(core):
        return Calibration(yardstick.verify_us(), yardstick.sign_us())


def _median_us(work: Callable[[], object], rounds: int, per_round: int) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter_ns()
        for _ in range(per_round):
            work()
        times.append((time.perf_counter_ns() - start) / per_round / 1000)
    return statistics.median(times)


def cpu_us(pids: list[int]) -> float:
    """CPU time that these processes have used so far, user and system, in microseconds."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total * _TICK_US


def rss_mb(pid: int) -> float:
    """Resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise LookupError(f"process {pid} has no VmRSS")


def children_of(pid: int) -> list[int]:
    """Direct children of a process, oldest first."""
    return [
        int(child)
        for thread in Path(f"/proc/{pid}/task").iterdir()
        for child in (thread / "children").read_text(encoding="ascii").split()
    ]


def described() -> dict[str, str]:
    """What the figures ran on and beside."""
    import platform

    import cryptography
    import orjson
    import uvicorn

    model = next(
        (line.partition(":")[2].strip() for line in lines_of("/proc/cpuinfo") if line.startswith("model name")),
        "unknown",
    )
    return {
        "cpu": f"{model}, {len(_ALL)} cores usable",
        "load average at the start": " ".join(f"{each:.2f}" for each in os.getloadavg()),
        "kernel": platform.release(),
        "python": sys.version.replace("\n", ""),
        "cryptography": cryptography.__version__,
        "orjson": orjson.__version__,
        "uvicorn": uvicorn.__version__,
    }


def lines_of(path: str) -> list[str]:
    """The lines of a file of the kernel's, none where it does not keep it."""
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
