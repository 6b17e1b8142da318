"""From a kill's commit at one broker to the last of 100 verifiers at another, with Redis gone.

On: everything. Two brokers on one PostgreSQL are woken by Redis, until it is killed; the kills are after that. So this
measures what is left: PostgreSQL's notification, and behind it the look that every broker takes by itself.
"""

import shutil
import signal
import time
from pathlib import Path
from statistics import median
from tempfile import mkdtemp

from bench.client import Operator, Tokens
from bench.figures import percentile
from bench.machine import all_cores
from bench.run import Run
from bench.serving import serving
from bench.site import AGENTS, agent_name, another_broker
from bench.verifiers import verifiers
from demo.ports import free_port
from demo.postgres import Server, binaries
from tests.signals.servers import RedisServer

FIGURE = "kill_no_redis_p99_ms"
VERIFIERS = 100


def measure(run: Run) -> None:
    """`kill_no_redis_p99_ms`."""
    folder = binaries()
    if folder is None or shutil.which("redis-server") is None:
        run.book.skipped([FIGURE], "PostgreSQL or Redis is not installed")
        return
    server = Server(folder, {})
    redis = RedisServer(Path(mkdtemp(dir=run.scratch)))
    try:
        seen = sorted(_latencies(run, server, redis, kills=run.times(100, 20)))
    finally:
        redis.close()
        server.close()
    p99 = percentile(seen, 99)
    run.book.figure(FIGURE, p99, note=f"median {median(seen):.1f}, worst {seen[-1]:.1f} of {len(seen)} kills")
    run.book.detail("kill without redis", {"ms": seen})


def _latencies(run: Run, server: Server, redis: RedisServer, *, kills: int) -> list[float]:
    port = free_port(in_a_row=2)
    url = server.url(server.new_database())
    site = run.site(database=url, agents=AGENTS + kills, control=f"http://127.0.0.1:{port + 1}")
    with site.config_path.open("a", encoding="utf-8") as config:
        config.write(f'\n[signals]\nurl = "{redis.url}"\n')
    second = another_broker(site, Path(mkdtemp(dir=run.scratch)) / "site", port=port)
    cores = all_cores()
    with (
        serving(site, core=cores),
        serving(second, core=cores),
        verifiers(site, number=VERIFIERS, cores=cores) as fleet,
    ):
        victims = [agent_name(AGENTS + n) for n in range(kills)]
        tokens, operator, seen = Tokens(site), Operator(site), []
        held = {agent: tokens.get(agent) for agent in victims}
        operator.call("GET", "/v1/whoami")
        time.sleep(1)
        redis.stop(signal.SIGKILL)
        for agent in victims:
            fleet.watch(held[agent])
            receipt = operator.pause(agent)
            seen.append(max(fleet.refusals()) / 1e6 - receipt["at"])
            time.sleep(0.1)
    return seen
