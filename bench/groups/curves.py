"""How cost grows: tokens with agents, policies, live grants and the ledger's length; a kill with verifiers.

Beside: at each point, the smallest one of its curve, in paired bursts, so that a curve shows growth and not the
weather. On: everything. These have no targets; they are drawn in docs/performance.md.
"""

from collections.abc import Callable, Sequence
from statistics import median

from bench.groups.kills import latencies
from bench.load import Target
from bench.run import Run
from bench.seeding import load_rules, seed
from bench.serving import serving
from bench.site import AGENTS, Site, agent_name


def measure(run: Run) -> None:
    """The detail `curves`: for each, its points as (size, cost)."""
    known = dict(run.book.details.get("curves", {}))

    def keep(name: str, points: list[tuple[int, float]]) -> None:
        known[name] = points
        run.book.detail("curves", known)
        print(f"  {name}: " + ", ".join(f"{size}: {cost:.2f}" for size, cost in points), flush=True)

    def sizes(*each: int) -> tuple[int, ...]:
        return each[:-1] if run.quick else each

    keep("agents", _tokens(run, sizes(50, 500, 5_000), lambda n: run.site(agents=n)))
    keep("policies", _tokens(run, sizes(10, 100, 1_000, 5_000), lambda n: run.site(policies=n)))
    keep("live grants", _tokens(run, sizes(0, 10_000, 100_000, 1_000_000), lambda n: _seeded(run, n, ttl_ms=3_600_000)))
    keep("ledger length", _tokens(run, sizes(0, 10_000, 100_000, 1_000_000), lambda n: _seeded(run, n, ttl_ms=1_000)))
    keep("verifiers", _kills(run, sizes(1, 20, 50, 100, 200)))


def _tokens(run: Run, sizes: Sequence[int], make: Callable[[int], Site]) -> list[tuple[int, float]]:
    """CPU time of one token at each size, as a multiple of that at the smallest."""
    smallest, points = make(sizes[0]), [(sizes[0], 1.0)]
    for size in sizes[1:]:
        grown = make(size)
        with serving(smallest, core=run.server_core) as one, serving(grown, core=run.server_core) as other:
            targets = [
                Target(name, f"{each.site.issuer}/oauth2/token", each.site.issuer, each.pids, agents=each.site.agents)
                for name, each in (("smallest", one), ("grown", other))
            ]
            run.warm(targets, seconds=2)
            rounds = run.paired(targets, connections=64, rounds=run.times(5, 2), seconds=2)
        points.append((size, median(each["grown"].cpu_us / each["smallest"].cpu_us for each in rounds)))
    return points


def _seeded(run: Run, grants: int, *, ttl_ms: int) -> Site:
    site = run.site(ttl_s=3_600)
    if grants:
        load_rules(site)
        seed(site, [agent_name(n) for n in range(AGENTS)], grants=grants, ttl_ms=ttl_ms)
    return site


def _kills(run: Run, sizes: Sequence[int]) -> list[tuple[int, float]]:
    """Median milliseconds from a kill's commit to the last refusal, by the number of connected verifiers."""
    return [
        (size, median(latencies(run, verifiers_connected=size, kills=run.times(15, 6), saturated=False)))
        for size in sizes
    ]
