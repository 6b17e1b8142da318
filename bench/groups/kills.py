"""From a kill's commit to the last of 100 connected verifiers refusing a real token, with the token worker saturated.

Beside: 64 connections that ask for tokens as fast as they are answered. On: everything. The token worker and the load
are pinned to different cores; the control process and the verifiers, which elsewhere would have machines of their own,
run wherever there is room. The clock starts at the kill's ledger time, which is taken before its transaction begins,
and stops when the SDK's `verify` first raises in the last verifier: durable commit, feed, parsing and all.
"""

import time
from statistics import median

from bench.client import Operator, Tokens
from bench.figures import percentile
from bench.load import BurstFailed, Target, finish, start
from bench.machine import all_cores, pin
from bench.run import Run
from bench.serving import Serving, serving
from bench.site import AGENTS, Site, agent_name
from bench.verifiers import verifiers

FEW, MANY = 20, 100
_BETWEEN_S = 0.2  # until the last kill has been reported by everyone


def measure(run: Run) -> None:
    """`kill_p90_ms_100`, and the plain time to the last of 20."""
    for number in (FEW, MANY):
        seen = sorted(latencies(run, verifiers_connected=number, kills=run.times(60, 20)))
        p90 = percentile(seen, 90)
        run.book.detail(f"kill {number}", {"ms": seen, "p50": median(seen), "p90": p90, "max": seen[-1]})
        if number == MANY:
            run.book.figure("kill_p90_ms_100", p90, note=f"median {median(seen):.1f}, worst {seen[-1]:.1f}")
        print(f"  {f'kill to the last of {number}':26} {median(seen):>10.1f}  ms, p90 {p90:.1f}, worst {seen[-1]:.1f}")


def latencies(run: Run, *, verifiers_connected: int, kills: int, saturated: bool = True) -> list[float]:
    """Milliseconds from each kill's commit to the last refusal."""
    site = run.site(agents=AGENTS + kills)
    with serving(site, core=run.server_core) as broker:
        pin(broker.control, all_cores())
        with verifiers(site, number=verifiers_connected, cores=all_cores()) as fleet:
            victims = [agent_name(AGENTS + n) for n in range(kills)]
            tokens = Tokens(site)
            held = {agent: tokens.get(agent) for agent in victims}
            load = _load(run, site, broker, seconds=3 + kills // 2) if saturated else None
            time.sleep(1.0)  # until the load is there
            operator, seen = Operator(site), []
            operator.call("GET", "/v1/whoami")
            for agent in victims:
                fleet.watch(held[agent])
                receipt = operator.pause(agent)
                seen.append(max(fleet.refusals()) / 1e6 - receipt["at"])
                time.sleep(_BETWEEN_S)
            if load is not None:
                result = finish(load)
                if result["refused"] or result["ran_out"]:
                    raise BurstFailed(f"load beside kills: {result}")
    return seen


def _load(run: Run, site: Site, broker: Serving, *, seconds: int):
    target = Target("kills", f"{site.issuer}/oauth2/token", site.issuer, broker.pids)
    requests = run.scratch / "kills.requests"
    run.signers.requests(
        requests,
        url=target.url,
        audience=target.audience,
        number=target.most_per_s * seconds,
        agents=AGENTS,
    )
    return start(target, requests, connections=64, seconds=seconds, cores=run.load_cores)
