"""Half an hour at 70 % of capacity with a kill every second: memory and latency stay flat, and the invariants hold.

Beside nothing. On: everything; two agents in turn are paused and resumed, every second one of them, while the others
get tokens at a constant rate (an open loop, so a pause of the server shows in the latencies). Afterwards the ledger is
verified as a whole, and every kill's receipt must be complete. What the machine did in each window stands beside its
latencies: a run fails by these alone, and what failed it shows there.
"""

import subprocess
import sys
import threading
import time
from itertools import pairwise
from statistics import median
from typing import Any, TypeVar

from bench.client import Operator
from bench.conditions import Place, Watch, slower, table, typical, watching
from bench.load import Burst, Target, burst, finish
from bench.machine import on_core, rss_mb
from bench.run import Run
from bench.serving import Serving, serving
from bench.site import AGENTS, agent_name
from bench.verifiers import verifiers
from broker.ledger.verify import verify_ledger

Item = TypeVar("Item")

SHARE = 0.7
VERIFIERS = 20
_WINDOW_S = 10
_FLAT_LATENCY, _FLAT_MEMORY, _KEPT_UP = 1.5, 1.1, 0.99
_WORST = 5  # windows that are shown


def measure(run: Run) -> None:
    """Raises AssertionError when something was not flat, or an invariant does not hold."""
    seconds = run.minutes * 60
    site = run.site(agents=AGENTS + 2)
    with serving(site, core=run.server_core) as broker:
        target = Target("soak", f"{site.issuer}/oauth2/token", site.issuer, broker.pids)
        with verifiers(site, number=VERIFIERS, cores=run.load_cores):
            bursts = [_capacity(run, target) for _ in range(3)]
            rate = (capacity := median(each.rate for each in bursts)) * SHARE
            print(f"  capacity {capacity:.0f} tokens per second; {rate:.0f} for {run.minutes:g} minutes", flush=True)
            operator = _OperatorAtWork(Operator(site), broker)
            operator.start()
            load = _steady(run, target, rate=rate, seconds=seconds)
            watch = _watch(run, broker, load, operator)
            with watching(watch, cores=run.load_cores):
                result = finish(load)
            operator.stop()
            receipts = [operator.operator.receipt(kill) for kill in operator.kills]
    windows = _windows(result, watch)
    begun = {"capacity per s": capacity, "verify us then": median(each.calibration.verify_us for each in bursts)}
    machine = {**begun, **_machine(windows), "watching, of a core": watch.cost}
    _judge(run, {**result, "windows": windows}, operator, receipts, rate=rate, machine=machine)
    report = verify_ledger(site.ledger)
    problems = [] if report.sound else [str(report)]
    problems += [f"kill {each['id']} is incomplete" for each in receipts if each["verifiers"]["missing"]]
    run.book.detail("soak ledger", {"events": report.size, "sound": report.sound, "problems": problems[:20]})
    if problems:
        raise AssertionError("\n".join(problems[:20]))
    print(f"  ledger of {report.size} events verified; {len(receipts)} kills, every receipt complete")


def _capacity(run: Run, target: Target) -> Burst:
    return burst(
        target,
        run.signers,
        connections=64,
        seconds=4,
        server_core=run.server_core,
        load_cores=run.load_cores,
        scratch=run.scratch,
    )


def _steady(run: Run, target: Target, *, rate: float, seconds: float) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "bench.sender", "--url", target.url, "--audience", target.audience]
    command += ["--agents", str(AGENTS), "--rate", f"{rate:.0f}", "--seconds", f"{seconds:.0f}"]
    with on_core(*run.load_cores):
        return subprocess.Popen([*command, "--windows", str(_WINDOW_S)], stdout=subprocess.PIPE, text=True)


def _watch(run: Run, broker: Serving, load: "subprocess.Popen[str]", operator: "_OperatorAtWork") -> Watch:
    return Watch(
        ledger=broker.site.ledger,
        places={
            "server": Place({run.server_core}, {"worker": broker.workers[0], "control": broker.control}),
            "load": Place(run.load_cores, {"sender": load.pid}),
        },
        count={"kills": lambda: len(operator.kills)},
    )


class _OperatorAtWork(threading.Thread):
    """Pauses one of two agents each second, resumes it before its next turn, and looks at the broker's memory."""

    def __init__(self, operator: Operator, broker: Serving) -> None:
        super().__init__(daemon=True)
        self.operator = operator
        self.kills: list[str] = []
        self.memory: list[tuple[float, float, float]] = []
        self._broker = broker
        self._over = threading.Event()

    def run(self) -> None:
        start = time.monotonic()
        while not self._over.wait(max(0.0, start + len(self.kills) + 1 - time.monotonic())):
            agent = agent_name(AGENTS + len(self.kills) % 2)
            self.kills.append(self.operator.pause(agent)["id"])
            self.operator.resume(agent)
            if len(self.kills) % _WINDOW_S == 0:
                worker, control = rss_mb(self._broker.workers[0]), rss_mb(self._broker.control)
                self.memory.append((time.monotonic() - start, worker, control))

    def stop(self) -> None:
        """Let the kill that is under way finish."""
        self._over.set()
        self.join()


def _windows(result: dict[str, Any], watch: Watch) -> list[dict[str, float]]:
    """Each window of the load with the machine's conditions in it, but the first and the last, which are not whole."""
    found = [{**result["windows"][0], "at_s": 0.0}, *result["windows"]]
    joined = [
        {**window, **watch.during(result["started_s"] + earlier["at_s"], result["started_s"] + window["at_s"])}
        for earlier, window in pairwise(found)
    ]
    return joined[1:-1] or joined


def _machine(windows: list[dict[str, float]]) -> dict[str, Any]:
    """What of the latencies the machine explains. It excuses nothing: the plain p99 decides whether a run passed."""
    usual = typical(windows)
    worst = sorted(windows, key=lambda each: -each["p99_us"])[:_WORST]
    print(table({"median": usual, **{f"worst {n}": each for n, each in enumerate(worst, 1)}}))
    early, late = _halves([_evened(each, usual) for each in windows])
    slow = [each for each in windows if each["p99_us"] > usual["p99_us"] * _FLAT_LATENCY]
    return {
        "p99_ms early, late, if the machine were always the same": [median(early), median(late)],
        "slow windows": _why(slow, [each for each in windows if each not in slow]) if slow else "none",
    }


def _halves(items: list[Item]) -> tuple[list[Item], list[Item]]:
    """What came early, and late: of a single one, the same twice."""
    half = len(items) // 2
    return items[: half or 1], items[half:]


def _evened(window: dict[str, float], usual: dict[str, float]) -> float:
    p99, slowdown = window["p99_us"] / 1000, slower(window, usual)
    return slowdown.evened(p99) if slowdown else p99


def _why(slow: list[dict[str, float]], others: list[dict[str, float]]) -> str:
    """A sentence about windows of a high p99, with the numbers that it rests on."""
    there, usual = typical(slow), typical(others)
    p99, before, slowdown = there["p99_us"] / 1000, usual["p99_us"] / 1000, slower(there, usual)
    said = f"{len(slow)} of {len(slow) + len(others)}, p99 {p99:.1f} ms where the others have {before:.1f}"
    if slowdown is None:
        return f"{said}; nobody looked at the machine then"
    longer, by_machine = p99 - before, slowdown.slowed(before) - before
    said += f"; the machine: {slowdown}, which makes {by_machine:.1f} of these {longer:.1f} ms more"
    needed, left = (usual["worker cpu"] + usual["control cpu"]) * slowdown.arithmetic, there["server core left"]
    if longer <= by_machine * _FLAT_LATENCY:
        return f"{said}: the machine, not the broker, was slower by a like factor"
    if needed >= left:  # from here on a queue grows for as long as it lasts, however little slower the machine is
        return f"{said}: at that speed the broker needs {needed:.2f} of its core, and others left it {left:.2f}"
    return f"{said}: the machine does not explain it"


def _judge(
    run: Run,
    result: dict[str, Any],
    operator: _OperatorAtWork,
    receipts: list[dict[str, Any]],
    *,
    rate: float,
    machine: dict[str, Any],
) -> None:
    windows = result["windows"]
    acknowledged = [each["verifiers"]["slowest_ms"] for each in receipts if each["verifiers"]["slowest_ms"] is not None]
    early, late = _halves(windows)
    memory = operator.memory or [(0.0, 0.0, 0.0)]
    middle, last = memory[len(memory) // 2], memory[-1]
    seen = {
        "minutes": run.minutes,
        "requests": result["requests"],
        "refused": result["refused"],
        "p50_ms": median(each["p50_us"] for each in windows) / 1000,
        "p99_ms early, late": [median(each["p99_us"] for each in part) / 1000 for part in (early, late)],
        "worker_mb middle, end": [middle[1], last[1]],
        "control_mb middle, end": [middle[2], last[2]],
        "kills": len(operator.kills),
        "slowest acknowledgement of each kill, median ms": median(acknowledged) if acknowledged else None,
        **machine,
        "windows": windows,
        "memory": memory,
    }
    run.book.detail("soak", seen)
    for name, value in seen.items():
        if name not in ("windows", "memory"):
            print(f"  {name}: {value}")
    first, second = seen["p99_ms early, late"]
    wanted = rate * run.minutes * 60
    if result["requests"] < wanted * _KEPT_UP:
        raise AssertionError(f"{result['requests']} tokens where {wanted:.0f} were asked for")
    if result["refused"] or result["socket_errors"]:
        raise AssertionError(
            f"{result['refused']} refused, {result['socket_errors']} broken: {result['first_refusal']}"
        )
    if second > first * _FLAT_LATENCY:
        raise AssertionError(f"p99 grew from {first:.1f} to {second:.1f} ms")
    if last[1] > middle[1] * _FLAT_MEMORY or last[2] > middle[2] * _FLAT_MEMORY:
        raise AssertionError(f"memory grew from {middle[1:]} to {last[1:]} MB")
