"""PostgreSQL as the ledger: its cost beside SQLite, what a second broker adds, a kill across brokers, a broker's death.

On: everything, and PostgreSQL as durable as it comes (fsync, synchronous_commit). The database runs on the load's
cores, where it has more room than beside the broker: elsewhere it has a machine of its own. `pg_two_brokers_ratio` is
modelled, because two brokers, a database and the load need more cores than there are here: both brokers run at once,
and from the CPU time that a token costs each of them follows what two would do with a core each, up to the limit that
the head row sets, which one writer at a time holds.
"""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path
from statistics import median
from tempfile import mkdtemp
from time import perf_counter

import httpx2

from bench.client import Operator, Tokens
from bench.figures import percentile
from bench.groups.tokens import summary
from bench.load import BurstFailed, Target, finish, start
from bench.machine import all_cores, cpu_us, on_core
from bench.run import Run
from bench.serving import Serving, serving
from bench.site import AGENTS, AUDIENCE, Site, agent_name, another_broker, signer_of, verifier_name
from bench.verifiers import verifiers
from broker.ledger.postgres import PostgresLedger
from broker.ledger.postgres_audit import PostgresStore
from broker.ledger.verify import verify_store
from broker.sdk.errors import Refused
from broker.sdk.identity import KeyIdentity
from broker.sdk.verifier import Verifier
from demo.ports import free_port
from demo.postgres import Server, binaries
from tests.invariants.cluster import Balanced
from tests.ledger.postgres import PostgresMade
from tests.ledger.test_postgres_faults import issue

FIGURES = ("pg_ratio_c64", "pg_two_brokers_ratio", "kill_cross_p90_ms", "failover_s")
_BATCH, _BATCHES = 64, 100


def measure(run: Run) -> None:
    """All figures of this group."""
    folder = binaries()
    if folder is None:
        run.book.skipped(FIGURES, "PostgreSQL is not installed")
        return
    with on_core(*run.load_cores):
        server = Server(folder, {})
    try:
        rate = _beside_sqlite(run, server)
        _two_brokers(run, server, rate)
        _across(run, server)
        _failover(run, server)
    finally:
        server.close()


def _site(run: Run, server: Server, **options: object) -> tuple[Site, str]:
    """A broker on a new database, and the database's URL."""
    url = server.url(server.new_database())
    return run.site(database=url, **options), url


def _sound(url: str) -> bool:
    return verify_store(PostgresStore(url, "the bench's database")).sound


def _beside_sqlite(run: Run, server: Server) -> float:
    """`pg_ratio_c64`, and tokens per second on PostgreSQL."""
    sqlite = run.site()
    postgres, url = _site(run, server)
    with serving(sqlite, core=run.server_core) as one, serving(postgres, core=run.server_core) as other:
        targets = [
            Target(name, f"{each.site.issuer}/oauth2/token", each.site.issuer, each.pids)
            for name, each in (("sqlite", one), ("postgres", other))
        ]
        run.warm(targets, seconds=4)
        rounds = run.paired(targets, connections=64, rounds=run.times(10, 3), seconds=run.times(4, 2))
    ratios = [each["postgres"].rate / each["sqlite"].rate for each in rounds]
    found = {name: summary([each[name] for each in rounds]) for name in rounds[0]}
    run.book.figure(
        "pg_ratio_c64",
        median(ratios),
        also=lambda: _sound(url),
        note=f"{min(ratios):.2f} to {max(ratios):.2f}; {found['postgres']['cpu_us']:.0f} us of CPU a token"
        f" against {found['sqlite']['cpu_us']:.0f}",
    )
    run.book.detail("postgres beside sqlite", found)
    return found["postgres"]["per_s"]


# --- Two brokers ------------------------------------------------------------------------------------------------------


def _two_brokers(run: Run, server: Server, alone_per_s: float) -> None:
    """`pg_two_brokers_ratio`."""
    site, url = _site(run, server)
    with _pair(run, site) as (one, other):
        seconds, costs, rates = run.times(4, 2), [], []
        _both(run, site, [one, other], seconds=2)
        for _ in range(run.times(6, 2)):
            (alone,), _ = _both(run, site, [one], seconds=seconds)
            together, rate = _both(run, site, [one, other], seconds=seconds)
            costs.append((alone, sum(together) / 2))
            rates.append(rate)
    alone, together = (median(each) for each in zip(*costs, strict=True))
    limit = 1e6 / _turn_us(server)
    ratio = min(2 * alone / together, limit / alone_per_s)
    run.book.figure(
        "pg_two_brokers_ratio",
        ratio,
        also=lambda: _sound(url),
        note=f"a token costs a broker {together:.0f} us of CPU beside another, {alone:.0f} us alone; the head row's"
        f" turns allow {limit:.0f} tokens per second; both together on these {len(all_cores())} cores, shared with the"
        f" database and the load: {median(rates):.0f}",
    )
    run.book.detail("two brokers", {"cpu_us": costs, "together_per_s": rates, "turns_per_s": limit})


@contextmanager
def _pair(run: Run, site: Site) -> Iterator[tuple[Serving, Serving]]:
    """The broker of `site` and a second one on the same ledger."""
    second = another_broker(site, Path(mkdtemp(dir=run.scratch)) / "site", port=free_port(in_a_row=2))
    with serving(site, core=all_cores()) as one, serving(second, core=all_cores()) as other:
        yield one, other


def _both(run: Run, site: Site, brokers: list[Serving], *, seconds: int) -> tuple[list[float], float]:
    """CPU time of one token at each of the brokers, loaded at once, in us; and their tokens per second together."""
    loads = []
    for number, each in enumerate(brokers):
        target = Target(f"broker {number}", f"{each.site.issuer}/oauth2/token", site.issuer, each.pids)
        requests = run.scratch / f"{target.name}.requests"
        run.signers.requests(
            requests,
            url=target.url,
            audience=target.audience,
            number=target.most_per_s * (seconds + 1),
            agents=AGENTS,
        )
        loads.append((target, requests))
    used = [cpu_us(target.pids) for target, _ in loads]
    running = [start(*each, connections=64, seconds=seconds, cores=all_cores()) for each in loads]
    results = [finish(each) for each in running]
    used = [cpu_us(target.pids) - before for (target, _), before in zip(loads, used, strict=True)]
    for result in results:
        if result["refused"] or result["ran_out"] or not result["requests"]:
            raise BurstFailed(f"two brokers: {result}")
    costs = [us / result["requests"] for us, result in zip(used, results, strict=True)]
    return costs, sum(result["requests"] / (result["duration_us"] / 1e6) for result in results)


def _turn_us(server: Server) -> float:
    """How long one issuance keeps the head row, in batches of 64: transaction, events, commit, everything."""
    made = PostgresMade(server)
    try:
        ledger: PostgresLedger = made.open()
        batches = [[issue(made, f"{batch}.{n}") for n in range(_BATCH)] for batch in range(_BATCHES)]
        begun = perf_counter()
        for batch in batches:
            ledger.commit(batch)
        return (perf_counter() - begun) / (_BATCH * _BATCHES) * 1e6
    finally:
        made.close()


# --- Across brokers ---------------------------------------------------------------------------------------------------


def _across(run: Run, server: Server) -> None:
    """`kill_cross_p90_ms`: from the kill's commit at one broker to the last of 100 verifiers at another."""
    kills, port = run.times(30, 10), free_port(in_a_row=2)
    site, _ = _site(run, server, agents=AGENTS + kills, control=f"http://127.0.0.1:{port + 1}")
    second = another_broker(site, Path(mkdtemp(dir=run.scratch)) / "site", port=port)
    cores = all_cores()
    with (
        serving(site, core=cores),
        serving(second, core=cores),
        verifiers(site, number=100, cores=cores) as fleet,
    ):
        victims = [agent_name(AGENTS + n) for n in range(kills)]
        tokens, operator, seen = Tokens(site), Operator(site), []
        held = {agent: tokens.get(agent) for agent in victims}
        operator.call("GET", "/v1/whoami")
        time.sleep(1)
        for agent in victims:
            fleet.watch(held[agent])
            receipt = operator.pause(agent)
            seen.append(max(fleet.refusals()) / 1e6 - receipt["at"])
            time.sleep(0.1)
    seen.sort()
    p90 = percentile(seen, 90)
    run.book.figure("kill_cross_p90_ms", p90, note=f"median {median(seen):.1f}, worst {seen[-1]:.1f}; no Redis")
    run.book.detail("kill across brokers", {"ms": seen})


def _failover(run: Run, server: Server) -> None:
    """`failover_s`: from SIGKILL of a broker under load to the last of 20 verifiers following another."""
    site, url = _site(run, server)
    took = []
    for _ in range(run.times(5, 2)):
        with _pair(run, site) as (one, other):
            took.append(asyncio.run(_outlived(run, site, one, other)))
    run.book.figure("failover_s", max(took), also=lambda: _sound(url), note=f"the worst of {len(took)}; tree verified")
    run.book.detail("failover", {"s": took})


def _is_elsewhere(verifier: Verifier) -> bool:
    return verifier.status is not None and verifier.status.reconnects > 0 and verifier.status.connected


async def _outlived(run: Run, site: Site, dying: Serving, other: Serving) -> float:
    name = verifier_name(0)
    identity = KeyIdentity(client_id=name, key=signer_of(name)._key)  # noqa: SLF001  (the bench's own key)
    ways = [Balanced([dying.site.control, other.site.control]) for _ in range(20)]
    async with AsyncExitStack() as stack:
        following = [
            await stack.enter_async_context(
                Verifier(
                    issuer=site.issuer,
                    audience=AUDIENCE,
                    identity=identity,
                    staleness_bound_s=30,
                    http=lambda way=way: httpx2.AsyncClient(transport=way, timeout=5),
                )
            )
            for way in ways
        ]
        tokens = Tokens(site)
        token, dead = tokens.get(agent_name(0)), tokens.get(agent_name(1))
        Operator(site).kill("agent", agent_name(1))
        target = Target("failover", f"{other.site.issuer}/oauth2/token", site.issuer, other.pids)
        requests = run.scratch / "failover.requests"
        run.signers.requests(requests, url=target.url, audience=target.audience, number=20_000, agents=AGENTS)
        load = start(target, requests, connections=16, seconds=4, cores=all_cores())
        await asyncio.sleep(1)
        begun = time.monotonic()
        for pid in (dying.supervisor, *dying.pids):
            os.kill(pid, signal.SIGKILL)
        while not all(map(_is_elsewhere, following)):  # noqa: ASYNC110  (there is no event for it)
            await asyncio.sleep(0.005)
        took = time.monotonic() - begun
        for each in following:
            each.verify(token)
            with suppress(Refused):
                each.verify(dead)
                raise AssertionError("a dead token was accepted")
        await asyncio.to_thread(finish, load)
    return took
