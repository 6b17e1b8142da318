"""Half an hour at 70 % of capacity with a kill every second: memory and latency stay flat, and the invariants hold.

Beside nothing. On: everything; two agents in turn are paused and resumed, every second one of them, while the others
get tokens at a constant rate (an open loop, so a pause of the server shows in the latencies). Afterwards the ledger is
verified as a whole, and every kill's receipt must be complete.
"""

import sys
import threading
import time
from statistics import median
from typing import Any

from bench.client import Operator
from bench.load import Target, burst, finish
from bench.machine import on_core, rss_mb
from bench.run import Run
from bench.serving import Serving, serving
from bench.site import AGENTS, agent_name
from bench.verifiers import verifiers
from broker.ledger.verify import verify_ledger

SHARE = 0.7
VERIFIERS = 20
_WINDOW_S = 10
_FLAT_LATENCY, _FLAT_MEMORY, _KEPT_UP = 1.5, 1.1, 0.99


def measure(run: Run) -> None:
    """Raises AssertionError when something was not flat, or an invariant does not hold."""
    seconds = run.minutes * 60
    site = run.site(agents=AGENTS + 2)
    with serving(site, core=run.server_core) as broker:
        target = Target("soak", f"{site.issuer}/oauth2/token", site.issuer, broker.pids)
        with verifiers(site, number=VERIFIERS, cores=run.load_cores):
            capacity = median(_capacity(run, target) for _ in range(3))
            rate = capacity * SHARE
            print(f"  capacity {capacity:.0f} tokens per second; {rate:.0f} for {run.minutes:g} minutes", flush=True)
            operator = _OperatorAtWork(Operator(site), broker)
            operator.start()
            result = finish(_steady(run, target, rate=rate, seconds=seconds))
            operator.stop()
            receipts = [operator.operator.receipt(kill) for kill in operator.kills]
    _judge(run, result, operator, receipts, rate=rate)
    report = verify_ledger(site.ledger)
    problems = [] if report.sound else [str(report)]
    problems += [f"kill {each['id']} is incomplete" for each in receipts if each["verifiers"]["missing"]]
    run.book.detail("soak ledger", {"events": report.size, "sound": report.sound, "problems": problems[:20]})
    if problems:
        raise AssertionError("\n".join(problems[:20]))
    print(f"  ledger of {report.size} events verified; {len(receipts)} kills, every receipt complete")


def _capacity(run: Run, target: Target) -> float:
    return burst(
        target,
        run.signers,
        connections=64,
        seconds=4,
        server_core=run.server_core,
        load_cores=run.load_cores,
        scratch=run.scratch,
    ).rate


def _steady(run: Run, target: Target, *, rate: float, seconds: float) -> "Any":
    import subprocess

    command = [sys.executable, "-m", "bench.sender", "--url", target.url, "--audience", target.audience]
    command += ["--agents", str(AGENTS), "--rate", f"{rate:.0f}", "--seconds", f"{seconds:.0f}"]
    with on_core(*run.load_cores):
        return subprocess.Popen([*command, "--windows", str(_WINDOW_S)], stdout=subprocess.PIPE, text=True)


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


def _judge(
    run: Run, result: dict[str, Any], operator: _OperatorAtWork, receipts: list[dict[str, Any]], *, rate: float
) -> None:
    windows = result["windows"][1:-1] or result["windows"]
    acknowledged = [each["verifiers"]["slowest_ms"] for each in receipts if each["verifiers"]["slowest_ms"] is not None]
    half = len(windows) // 2
    early, late = windows[: half or 1], windows[half:]
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
