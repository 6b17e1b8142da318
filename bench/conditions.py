"""What the machine was doing, moment by moment, beside a long run: so that a slow window names its cause.

A thread looks every two seconds, from the load's cores. It times a few ES256 verifications, and two `fdatasync` of a
page beside the ledger; the rest are counters of the kernel's, of which a window gets the difference by second. So a
time in seconds becomes a share: of a core, of the disk, or of the window.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

from bench.machine import Yardstick, cpu_us, lines_of, on_core

Conditions = dict[str, float]
"""Of a window. A name that ends in a unit is in that; any other is a share, or a number by second."""

_EVERY_S = 2.0
_VERIFICATIONS = {"rounds": 4, "per_round": 3}  # with everything else 2 ms, of every two seconds
_PAGE, _SYNCS = 4096, 2
_TICKS = os.sysconf("SC_CLK_TCK")
_SECTOR = 512
_SPENT = {"busy": (0, 1, 2, 5, 6), "iowait": (4,), "steal": (7,)}  # columns of a core in /proc/stat


@dataclass(frozen=True, slots=True)
class Place:
    """Cores, and the processes that are pinned to them, by name."""

    cores: set[int]
    pids: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Moment:
    """One look. `at` is on the monotonic clock, which all processes share."""

    at: float
    verify_us: float
    fsyncs_ms: tuple[float, ...]
    totals: Mapping[str, float]
    sizes: Mapping[str, float]


class Watch:
    """Looks at the machine while `watching` lasts."""

    def __init__(self, *, ledger: Path, places: Mapping[str, Place], count: Mapping[str, Callable[[], int]]) -> None:
        """Places, and things to count, each by the name that its figures shall have."""
        self.moments: list[Moment] = []
        self.cost = 0.0
        """The share of a core that the watching itself took."""
        self._ledger = ledger
        self._places = places
        self._count = count
        self._yardstick = Yardstick()
        self._over = threading.Event()

    def during(self, start: float, end: float) -> Conditions:
        """How it was between two moments of the monotonic clock; empty when nobody looked in between."""
        within = [each for each in self.moments if start < each.at <= end]
        before = [each for each in self.moments if each.at <= start][-1:]
        if len(seen := before + within) < 2:
            return {}
        first, last = seen[0], seen[-1]
        fsyncs = [each for moment in within for each in moment.fsyncs_ms]
        rates = {name: (last.totals[name] - first.totals[name]) / (last.at - first.at) for name in first.totals}
        return {
            "verify us": median(each.verify_us for each in within),
            "fdatasync ms": median(fsyncs),
            "fdatasync worst ms": max(fsyncs),
            **rates,
            **{f"{name} core left": self._left(name, place, rates) for name, place in self._places.items()},
            **last.sizes,
        }

    @staticmethod
    def _left(name: str, place: Place, rates: Mapping[str, float]) -> float:
        """What of a place's cores nobody else had: neither another machine nor a process of somebody else's."""
        own = sum(rates[f"{pid} cpu"] for pid in place.pids) / len(place.cores)
        return 1 - rates[f"{name} core steal"] - max(0.0, rates[f"{name} core busy"] - own)

    def stop(self) -> None:
        self._over.set()

    def run(self, cores: set[int]) -> None:
        """Look until stopped, or until one of the processes is gone."""
        page = os.urandom(_PAGE)
        probe = os.open(self._ledger.with_name("fdatasync.probe"), os.O_RDWR | os.O_CREAT, 0o600)
        start = time.monotonic()
        try:
            with on_core(*cores):
                while not self._over.wait(max(0.0, start + len(self.moments) * _EVERY_S - time.monotonic())):
                    self.moments.append(self._look(probe, page))
                    self.cost = time.thread_time() / max(_EVERY_S, time.monotonic() - start)
        except OSError:  # the load generator ended first
            return
        finally:
            os.close(probe)

    def _look(self, probe: int, page: bytes) -> Moment:
        totals = {name: float(count()) for name, count in self._count.items()}
        for place in self._places.values():
            totals |= {f"{name} cpu": cpu_us([pid]) / 1e6 for name, pid in place.pids.items()}
        totals |= _core_seconds(self._places) | _stalled_seconds() | _disk(self._ledger.parent)
        sizes = {"ledger MB": _mb(self._ledger), "wal MB": _mb(self._ledger.with_name(self._ledger.name + "-wal"))}
        syncs = tuple(_sync_ms(probe, page) for _ in range(_SYNCS))
        return Moment(time.monotonic(), self._yardstick.verify_us(**_VERIFICATIONS), syncs, totals, sizes)


@contextmanager
def watching(watch: Watch, *, cores: set[int]) -> Iterator[Watch]:
    """Have `watch` look, from these cores, until the context ends."""
    thread = threading.Thread(target=watch.run, args=(cores,), daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        watch.stop()
        thread.join()


def _core_seconds(places: Mapping[str, Place]) -> dict[str, float]:
    """What the cores of each place did, at the mean of them."""
    rows = {row[0]: row[1:] for row in (line.split() for line in lines_of("/proc/stat")) if row}
    return {
        f"{name} core {what}": mean(sum(int(rows[f"cpu{core}"][n]) for n in columns) for core in place.cores) / _TICKS
        for name, place in places.items()
        for what, columns in _SPENT.items()
    }


def _stalled_seconds() -> dict[str, float]:
    """For how long some, or all, of the machine's work waited for each of its means. Of kernels that keep count."""
    return {
        f"{means} stall {how}": int(rest.rpartition("total=")[2]) / 1e6
        for means in ("cpu", "io", "memory")
        for how, _, rest in (line.partition(" ") for line in lines_of(f"/proc/pressure/{means}"))
    }


def _disk(directory: Path) -> dict[str, float]:
    """What was written to the device of `directory`, and for how long that was at work; nothing if nobody counts."""
    device = directory.stat().st_dev
    for line in lines_of("/proc/diskstats"):
        row = line.split()
        if row[:2] == [str(os.major(device)), str(os.minor(device))]:
            return {"disk MB": int(row[9]) * _SECTOR / 1e6, "disk busy": int(row[12]) / 1000}
    return {}


def _sync_ms(file: int, page: bytes) -> float:
    start = time.perf_counter()
    os.pwrite(file, page, 0)
    os.fdatasync(file)
    return (time.perf_counter() - start) * 1000


def _mb(path: Path) -> float:
    return path.stat().st_size / 1e6 if path.exists() else 0.0


# --- What a run's windows say -----------------------------------------------------------------------------------------


def table(columns: Mapping[str, Mapping[str, float]]) -> str:
    """Windows side by side, one figure in each line."""
    names = list(dict.fromkeys(name for each in columns.values() for name in each))
    lines = [f"{'':22}" + "".join(f"{head:>12}" for head in columns)]
    lines += [f"{name:22}" + "".join(f"{_cell(each.get(name)):>12}" for each in columns.values()) for name in names]
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


@dataclass(frozen=True, slots=True)
class Slowdown:
    """How much slower than usual the machine was."""

    arithmetic: float  # times
    others: float  # times, because they left less of the server's core
    storing_ms: float  # more, for the two commits that a token waits for at most: one under way, and its own

    def __str__(self) -> str:
        return (
            f"arithmetic takes {self.arithmetic:.2f} times as long, others left {1 / self.others:.2f} times as much of "
            f"the server's core, two commits take {self.storing_ms:+.1f} ms"
        )

    def slowed(self, ms: float) -> float:
        """What usually takes so long, on the slower machine: if that is never short of anything."""
        return ms * self.arithmetic * self.others + self.storing_ms

    def evened(self, ms: float) -> float:
        """What took so long, on the usual one."""
        return max(0.0, ms - self.storing_ms) / self.arithmetic / self.others


def slower(window: Mapping[str, float], usual: Mapping[str, float]) -> Slowdown | None:
    """The machine in a window beside the machine as usual; None where nobody looked."""
    if "verify us" not in window or "verify us" not in usual:
        return None
    return Slowdown(
        window["verify us"] / usual["verify us"],
        usual["server core left"] / max(0.01, window["server core left"]),
        2 * (window["fdatasync worst ms"] - usual["fdatasync worst ms"]),
    )


def typical(windows: Sequence[Mapping[str, float]]) -> Conditions:
    """The median of each figure."""
    names = dict.fromkeys(name for each in windows for name in each)
    return {name: median(each[name] for each in windows if name in each) for name in names}
