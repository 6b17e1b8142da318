"""Tokens per second and their latency, beside a peer, on one core.

Beside: node oidc-provider in memory, on the same core, under the same load from another core. On: everything that a
production broker has, identity verification with single-use assertions, replay marks, a policy bundle of ten that are
all evaluated, the durable Merkle ledger (SQLite WAL, synchronous FULL), all guards, the control process (on the same
core as the worker). The peer has no policy, no durability and no audit.

In turns with both: what the libraries alone cost (`bench.floor`), which is as fast as any work on the broker could make
it.
"""

from contextlib import ExitStack
from dataclasses import replace
from statistics import median

from bench.floor import floor
from bench.load import Burst, Target
from bench.peer import PeerMissing, install, peer, version
from bench.run import Run
from bench.serving import serving
from bench.site import AGENTS
from broker.ledger.verify import verify_ledger
from demo.ports import free_port

FIGURES = (
    "issue_ratio_c1",
    "issue_ratio_c16",
    "issue_ratio_c64",
    "issue_p99_ratio_c64",
    "issue_crypto_share_c64",
)
CONNECTIONS = (1, 16, 64)


def measure(run: Run) -> None:
    """All figures of this group, and the plain ones: tokens per second, p50, p99."""
    with ExitStack() as running:
        site = run.site()
        broker = running.enter_context(serving(site, core=run.server_core))
        targets = [Target("taskpass", f"{site.issuer}/oauth2/token", site.issuer, broker.pids)]
        missing = ""
        try:
            directory = install(run.out / "peer")
            port = free_port()
            pid = running.enter_context(peer(directory, port=port, agents=AGENTS, core=run.server_core))
            url = f"http://127.0.0.1:{port}"
            targets.append(Target("peer", f"{url}/token", url, [pid], most_per_s=6_000))
            run.book.detail("peer", version(directory))
        except PeerMissing as error:
            missing = str(error)
        port = free_port()
        pid = running.enter_context(floor(run.scratch, port=port, agents=AGENTS, core=run.server_core))
        targets.append(Target("floor", f"http://127.0.0.1:{port}/token", f"http://127.0.0.1:{port}", [pid]))
        run.warm(targets, seconds=6)
        counted = 0
        for connections in CONNECTIONS:
            rounds = run.paired(targets, connections=connections, rounds=run.times(10, 3), seconds=run.times(4, 2))
            counted += sum(each["taskpass"].tokens for each in rounds)
            _enter(run, connections, rounds)
        novel = replace(targets[0], novel=True)
        bursts = [each["taskpass"] for each in run.paired([novel], connections=64, rounds=run.times(5, 2), seconds=3)]
        counted += sum(burst.tokens for burst in bursts)
        run.book.detail("tokens c64 novel", {"taskpass": summary(bursts)})
        _say("tokens c64, all novel", summary(bursts))
    if missing:
        run.book.skipped([name for name in FIGURES if name != "issue_crypto_share_c64"], missing)
    report = verify_ledger(site.ledger)
    run.book.detail("tokens ledger", {"events": report.size, "sound": report.sound})
    if not report.sound or report.size < counted:
        raise AssertionError(f"the ledger of {counted} tokens does not verify after the load: {report}")


def _enter(run: Run, connections: int, rounds: list[dict[str, Burst]]) -> None:
    ours = [each["taskpass"] for each in rounds]
    detail = {"taskpass": summary(ours), "floor": summary([each["floor"] for each in rounds])}
    if "peer" in rounds[0]:
        theirs = [each["peer"] for each in rounds]
        ratios = [a.rate / b.rate for a, b in zip(ours, theirs, strict=True)]
        run.book.figure(f"issue_ratio_c{connections}", median(ratios), note=f"{min(ratios):.2f} to {max(ratios):.2f}")
        tails = [a.p99 / b.p99 for a, b in zip(ours, theirs, strict=True)]
        detail |= {"peer": summary(theirs), "ratios": [round(r, 2) for r in ratios], "p99_ratio": median(tails)}
        limits = [each["floor"].rate / each["peer"].rate for each in rounds]
        lowest = median(each["floor"].p99 / each["peer"].p99 for each in rounds)
        detail["floor_ratio"] = median(limits)
        print(
            f"  the libraries alone, c{connections}: {median(limits):.2f} times the peer's rate, {lowest:.2f} its p99"
        )
        if connections == 64:
            run.book.figure("issue_p99_ratio_c64", median(tails), note=f"{min(tails):.2f} to {max(tails):.2f}")
    if connections == 64:
        run.book.figure("issue_crypto_share_c64", median(burst.crypto_share for burst in ours))
    run.book.detail(f"tokens c{connections}", detail)
    _say(f"tokens c{connections}", detail["taskpass"])


def _say(name: str, seen: dict[str, float]) -> None:
    print(
        f"  {name:26} {seen['per_s']:>10.0f}  tokens per second, p50 {seen['p50_ms']:.1f} ms, "
        f"p99 {seen['p99_ms']:.1f} ms, {seen['cpu_us']:.0f} us of CPU each",
        flush=True,
    )


def summary(bursts: list[Burst]) -> dict[str, float]:
    """Medians over bursts."""
    return {
        "per_s": median(burst.rate for burst in bursts),
        "p50_ms": median(burst.p50 for burst in bursts),
        "p99_ms": median(burst.p99 for burst in bursts),
        "cpu_us": median(burst.cpu_us for burst in bursts),
        "units": median(burst.units for burst in bursts),
        "crypto_share": median(burst.crypto_share for burst in bursts),
        "verify_us": median(burst.calibration.verify_us for burst in bursts),
        "sign_us": median(burst.calibration.sign_us for burst in bursts),
    }
