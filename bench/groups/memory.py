"""A token worker's memory after 100,000 tokens, and whether it still grows.

Runs beside nothing, under 64 connections. On: everything.
"""

from bench.load import Target, finish, start
from bench.machine import rss_mb
from bench.run import Run
from bench.serving import serving

FLAT = 1.05
"""The end may be this many times the half-way mark: allocators do not give everything back at once."""


def measure(run: Run) -> None:
    """`worker_rss_mb`."""
    wanted, site, samples, issued = run.times(100_000, 15_000), run.site(), [], 0
    with serving(site, core=run.server_core) as broker:
        (worker,) = broker.workers
        target = Target("memory", f"{site.issuer}/oauth2/token", site.issuer, broker.pids)
        requests = run.scratch / "memory.requests"
        while issued < wanted:
            run.signers.requests(
                requests, url=target.url, audience=target.audience, number=5 * target.most_per_s, agents=target.agents
            )
            issued += finish(start(target, requests, connections=64, seconds=4, cores=run.load_cores))["requests"]
            samples.append((issued, round(rss_mb(worker), 1)))
        control = rss_mb(broker.control)
    half = next(rss for tokens, rss in samples if tokens >= issued / 2)
    last = samples[-1][1]
    run.book.figure(
        "worker_rss_mb",
        max(rss for _, rss in samples),
        also=lambda: last <= half * FLAT,
        note=f"{half:g} MB after half of {issued} tokens, {last:g} at the end; control process {control:.0f} MB",
    )
    run.book.detail("memory", {"samples": samples, "control_mb": control})
