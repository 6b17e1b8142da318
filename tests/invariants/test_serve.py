"""`taskpass serve` as it is run: processes that die come back, signals do what they say, and a kill is answered."""

import asyncio
import os
import signal
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Self

import httpx2
import pytest

from broker.sdk.errors import TokenKilled
from broker.sdk.identity import CallableIdentity
from broker.sdk.verifier import Verifier
from tests.invariants.checker import Transcript, check, read_ledger
from tests.invariants.kit import AUDIENCES, Child, Client, Site, bearer, child, children_of, is_running

pytestmark = pytest.mark.e2e

WITHIN_S = 20.0


async def until(condition: Callable[[], Awaitable[bool] | bool], *, within_s: float = WITHIN_S) -> None:
    """Poll something that becomes true when another process gets there."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            found = condition()
            if found if isinstance(found, bool) else await found:
                return
        except (httpx2.TransportError, AssertionError):
            pass
        assert time.monotonic() < deadline, "it never came to that"
        await asyncio.sleep(0.02)


def processes_of(served: Child) -> dict[str, int]:
    """The broker's processes by what they listen on: pids of the control process and of the workers."""
    found = {}
    for pid in children_of(served.process.pid):
        name = Path(f"/proc/{pid}/cmdline").read_bytes()
        if b"spawn_main" in name:
            found[f"{len(found)}"] = pid
    return found


class Clients:
    """An operator at the control process and agents at the workers."""

    def __init__(self, site: Site) -> None:
        self.site, self.transcript = site, Transcript()

    async def __aenter__(self) -> Self:
        # No kept connections: each request finds a process that is alive now.
        limits = httpx2.Limits(max_keepalive_connections=0)
        self._https = [
            httpx2.AsyncClient(base_url=url, timeout=20, limits=limits) for url in (self.site.control, self.site.issuer)
        ]
        self.operator, self.agents = (Client(self.site, http, self.transcript) for http in self._https)
        await self.operator.login()
        return self

    async def __aexit__(self, *_: object) -> None:
        for http in self._https:
            await http.aclose()

    async def ready(self, *, at: Client) -> bool:
        return (await at.http.get("/readyz")).status_code == 200

    def sound(self) -> None:
        assert check(read_ledger(self.site.ledger), self.transcript, audiences=AUDIENCES) == []


def count(site: Site, type_: str) -> int:
    return sum(event["type"] == type_ for event in read_ledger(site.ledger).events)


def verifier_of(site: Site) -> Verifier:
    return Verifier(
        issuer=site.issuer,
        audience=AUDIENCES["invoices"],
        identity=CallableIdentity(lambda _: site.assertion("billing")),
        staleness_bound_s=30,
    )


def test_processes_that_die_come_back_and_a_stop_leaves_none(tmp_path: Path) -> None:
    site = Site(tmp_path)

    async def scenario(served: Child) -> list[int]:
        control, *workers = processes_of(served).values()
        assert len(workers) == 2
        assert all(os.getpriority(os.PRIO_PROCESS, each) > os.getpriority(os.PRIO_PROCESS, control) for each in workers)
        async with Clients(site) as clients, verifier_of(site) as verifier:
            token = (await clients.agents.token("bot-0")).json()["access_token"]
            assert (await verifier.averify(token)).agent == "bot-0"

            os.kill(workers[0], signal.SIGKILL)
            await until(lambda: len(processes_of(served)) == 3 and workers[0] not in processes_of(served).values())
            await until(lambda: count(site, "broker.started") == 4)
            assert (await clients.agents.token("bot-1")).status_code == 200

            task = await _open_task(clients.agents, "bot-3")
            under_task = (await clients.agents.token("bot-3", task=task)).json()["access_token"]
            assert (await verifier.averify(under_task)).task == task
            os.kill(control, signal.SIGKILL)
            await _end_task(clients.agents, "bot-3", task)  # on the feed, and the feed is gone
            await until(lambda: count(site, "broker.started") == 5)
            await until(lambda: _is_killed(verifier, under_task))
            assert (await verifier.averify(token)).agent == "bot-0"
            await until(lambda: clients.ready(at=clients.operator))
            assert (await clients.operator.kill("agent", "bot-0")).status_code == 201  # sessions outlive the process
            await until(lambda: _is_killed(verifier, token))

            registry = site.registry / "owners.yaml"
            registry.write_text(registry.read_text().replace("Finance Platform team", "Finance Platform"))
            loaded = count(site, "registry.loaded")
            served.process.send_signal(signal.SIGHUP)
            await until(lambda: count(site, "registry.loaded") == loaded + 1)
            await until(lambda: _issues(clients.agents, "bot-2"))

            processes = list(processes_of(served).values())
            requests = [asyncio.create_task(clients.agents.token("bot-4")) for _ in range(50)]
            served.process.send_signal(signal.SIGTERM)  # with a verifier listening and requests on their way
            await asyncio.gather(*requests, return_exceptions=True)
            await until(lambda: served.process.poll() == 0)
        clients.sound()
        return processes

    with child(site, "serve") as served:
        processes = asyncio.run(scenario(served))
        assert len(processes) == 3
        assert not [pid for pid in processes if is_running(pid)]


async def _open_task(client: Client, agent: str) -> str:
    body = {"purpose": "test", "trigger": {"kind": "user"}}
    opened = await client.http.post("/v1/tasks", headers=bearer(client.site.assertion(agent)), json=body)
    assert opened.status_code == 201, opened.text
    task: str = opened.json()["id"]
    return task


async def _end_task(client: Client, agent: str, task: str) -> None:
    ended = await client.http.post(f"/v1/tasks/{task}/end", headers=bearer(client.site.assertion(agent)))
    assert ended.status_code == 200, ended.text


async def _issues(client: Client, agent: str) -> bool:
    return (await client.token(agent)).status_code == 200


def _is_killed(verifier: Verifier, token: str) -> bool:
    try:
        verifier.verify(token)
    except TokenKilled:
        return True
    return False


def test_processes_end_with_their_supervisor(tmp_path: Path) -> None:
    site = Site(tmp_path)
    with child(site, "serve") as served:
        processes = list(processes_of(served).values())
        assert len(processes) == 3
        served.stop(signal.SIGKILL)
        asyncio.run(until(lambda: not any(is_running(pid) for pid in processes)))


def test_a_broken_registry_at_the_start_stops_issuance_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = Site(tmp_path)
    agents = site.registry / "agents.yaml"

    async def good() -> str:
        async with Clients(site) as clients:
            return (await clients.agents.token("bot-0")).json()["access_token"]

    async def broken(token: str) -> None:
        async with Clients(site) as clients:
            ready = await clients.agents.http.get("/readyz")
            assert ready.status_code == 503
            assert "issuance is stopped" in ready.text
            refused = await clients.agents.token("bot-0")
            assert refused.status_code == 503
            assert refused.headers["retry-after"]
            assert await clients.operator.introspect(token) is True
            assert (await clients.operator.kill("agent", "bot-0")).status_code == 201
            assert await clients.operator.introspect(token) is False
            agents.write_text(whole)
            assert (await clients.operator.operate("POST", "/v1/reload", {"what": "all"})).status_code == 200
            await until(lambda: clients.ready(at=clients.agents))
            await until(lambda: _issues(clients.agents, "bot-1"))
            await _measure(clients)
        clients.sound()

    async def _measure(clients: Clients) -> None:
        """How long a kill takes while the workers have all the tokens to issue that they can."""
        loading = [asyncio.create_task(_load(site, clients.transcript)) for _ in range(8)]
        took = []
        for n in range(20):
            await asyncio.sleep(0.05)
            began = time.monotonic()
            killed = await clients.operator.kill("agent", "bot-5", hold=False)
            took.append((time.monotonic() - began) * 1000)
            assert killed.status_code == 201, n
        issued = count(site, "issued")
        for task in loading:
            task.cancel()
        await asyncio.gather(*loading, return_exceptions=True)
        with capsys.disabled():
            median, slowest = statistics.median(took), max(took)
            print(f"\n  kill under load: median {median:.0f} ms, slowest {slowest:.0f} ms, {issued} issued")

    with child(site, "serve") as served:
        token = asyncio.run(good())
        assert served.stop() == 0
    whole = agents.read_text()
    agents.write_text(whole + "\nnonsense: true\n")
    with child(site, "serve") as served:
        asyncio.run(broken(token))
        assert served.stop() == 0


async def _load(site: Site, transcript: Transcript) -> None:
    async with httpx2.AsyncClient(base_url=site.issuer, timeout=20) as http:
        client = Client(site, http, transcript)
        while True:
            await client.token("bot-1")
