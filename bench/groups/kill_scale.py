"""Killing an agent with 100,000 live tokens, against one with 10.

Beside nothing. On: everything. The grants are put into the ledger through its own commands. Timed is the kill itself,
from the operator's request to a connected verifier refusing a real token; the count of what it ended, which the receipt
shows, is made afterwards and is not waited for.
"""

import time
from statistics import median

from bench.client import Operator, Tokens
from bench.run import Run
from bench.seeding import seed
from bench.serving import serving
from bench.site import agent_name
from bench.verifiers import Fleet, verifiers

MANY, FEW = 100_000, 10


def measure(run: Run) -> None:
    """`kill_scale_ratio`."""
    pairs = run.times(7, 3)
    times = {MANY: [], FEW: []}
    answers = {MANY: [], FEW: []}
    site = run.site(agents=2 * pairs, ttl_s=600)
    with serving(site, core=run.server_core) as broker, verifiers(site, number=4, cores=run.load_cores) as fleet:
        assert broker.workers
        operator, tokens = Operator(site), Tokens(site)
        operator.call("GET", "/v1/whoami")
        for pair in range(pairs):
            sizes = (MANY, FEW) if pair % 2 else (FEW, MANY)
            for place, size in enumerate(sizes):
                agent = agent_name(2 * pair + place)
                seed(site, [agent], grants=size - 1, ttl_ms=600_000)
                token = tokens.get(agent)
                time.sleep(0.5)  # until what the seeding left is written and nobody is busy
                took, answered = _kill(fleet, operator, agent, token)
                times[size].append(took)
                answers[size].append(answered)
    ratio = median(times[MANY]) / median(times[FEW])
    run.book.figure("kill_scale_ratio", ratio, note=f"{median(times[MANY]):.1f} ms against {median(times[FEW]):.1f} ms")
    run.book.detail("kill scale", {"refused_ms": times, "answered_ms": answers})


def _kill(fleet: Fleet, operator: Operator, agent: str, token: str) -> tuple[float, float]:
    """Milliseconds from the request to the last refusal, and to the answer."""
    fleet.watch(token)
    start = time.time_ns()
    operator.pause(agent)
    answered = time.time_ns()
    return (max(fleet.refusals()) - start) / 1e6, (answered - start) / 1e6
