"""Kill against issue: two token workers and a control process on one SQLite file, everybody as fast as they can, and
their clocks a second and a half apart.

`TASKPASS_SOAK=<seconds>` makes the same run longer.
"""

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import httpx2
import pytest

from broker.ledger.verify import verify_ledger
from demo.ports import free_port
from tests.invariants.checker import Facts, Transcript, check, killers_of, kills_in, read_ledger
from tests.invariants.child import CLOCK_OFFSET_MS
from tests.invariants.kit import AGENTS, AUDIENCES, OWNERS, Client, Site, bearer, child

pytestmark = pytest.mark.e2e

SECONDS = float(os.environ.get("TASKPASS_SOAK", "12"))
MUST_DO_S = 60  # longer no run goes on to get its kills
ISSUERS = 12  # concurrent clients of each worker
ENOUGH_KILLS, ENOUGH_TOKENS, ENOUGH_REFUSALS = 50, 500, 50  # or nothing was put to the test


class Run:
    """The clients of one run, and what they share."""

    def __init__(
        self,
        site: Site,
        workers: list[str],
        *,
        controls: Sequence[str] = (),
        seconds: float = SECONDS,
        issuers: int = ISSUERS,
        kills: int = 0,
    ) -> None:
        """`controls` are the processes that kill, if there are several. It goes on until there were so many `kills`."""
        self.site, self.workers, self.controls = site, workers, controls or [site.control]
        self.transcript = Transcript()
        self.compact: dict[str, str] = {}  # jti -> token
        self.tasks: list[tuple[str, str]] = []  # (agent, task)
        self.answers: Counter[str] = Counter()
        self.until = time.monotonic() + seconds
        self._issuers, self._kills = issuers, kills

    @property
    def going(self) -> bool:
        over = time.monotonic() - self.until
        return over < 0 or (over < MUST_DO_S and len(self.transcript.kills) < self._kills)

    async def play(self) -> None:
        """Everything at once, until the time is over; then ask about every token of the last moments."""
        async with AsyncExitStack() as stack:
            operators = []
            for control in self.controls:
                http = await stack.enter_async_context(httpx2.AsyncClient(base_url=control, timeout=30))
                operators.append(Client(self.site, http, self.transcript))
                await operators[-1].login()
            async with asyncio.TaskGroup() as group:
                for number, worker in enumerate(self.workers):
                    for each in range(self._issuers):
                        group.create_task(self._issue(worker, random.Random(number * 1000 + each)))
                    group.create_task(self._work(worker))
                for number, operator in enumerate(operators):
                    group.create_task(self._kill(operator, random.Random(number * 10 + 1)))
                    group.create_task(self._look(operator, random.Random(number * 10 + 2)))
            for hold in (await operator.operate("GET", "/v1/holds")).json():
                await operator.operate("POST", f"/v1/holds/{hold['id']}/lift", {"reason": "over"})
            for jti in random.Random(3).sample(sorted(self.compact), min(300, len(self.compact))):
                await operator.introspect(self.compact[jti])

    async def _issue(self, worker: str, dice: random.Random) -> None:
        async with httpx2.AsyncClient(base_url=worker, timeout=30) as http:
            client = Client(self.site, http, self.transcript)
            while self.going:
                agent, form = dice.choice(AGENTS), {}
                if self.tasks and dice.random() < 0.4:
                    agent, form["task"] = dice.choice(self.tasks[-20:])
                if dice.random() < 0.3:
                    form["resource"] = AUDIENCES["credits"]
                    form["authorization_details"] = (
                        '[{"type":"task_action","actions":["credits:propose"],'
                        '"parameters":{"invoice":"INV-1","amount_cents":100}}]'
                    )
                replay = (
                    self.transcript.tokens[-1].assertion if self.transcript.tokens and dice.random() < 0.02 else None
                )
                response = await client.token(agent, assertion=replay, **form)
                body = response.json()
                if response.status_code == 200:
                    assert replay is None
                    jti = f"grt_{body['decision_id'].removeprefix('dec_')}"
                    self.compact[jti] = body["access_token"]
                self.answers["issued" if response.status_code == 200 else body.get("outcome") or body["error"]] += 1

    async def _work(self, worker: str) -> None:
        """Open and end tasks."""
        async with httpx2.AsyncClient(base_url=worker, timeout=30) as http:
            for number in range(100_000):
                if not self.going:
                    return
                agent = AGENTS[number % len(AGENTS)]
                body = {"purpose": "race", "trigger": {"kind": "agent"}}
                response = await http.post("/v1/tasks", headers=bearer(self.site.assertion(agent)), json=body)
                if response.status_code == 201:
                    self.tasks.append((agent, response.json()["id"]))
                if len(self.tasks) > 10 and number % 3 == 0:
                    owner, task = self.tasks.pop(0)
                    await http.post(f"/v1/tasks/{task}/end", headers=bearer(self.site.assertion(owner)))
                await asyncio.sleep(0.01)

    async def _kill(self, operator: Client, dice: random.Random) -> None:
        """Kills of every kind; what is held is let go again soon, so that there is always something to kill."""
        while self.going:
            target, value = self._victim(dice)
            response = await operator.kill(target, value, hold=None if dice.random() < 0.8 else False)
            no_next_key = target == "key" and response.status_code == 409
            assert response.status_code in (201, 404) or no_next_key or self._unsettled(response), response.text
            self.answers[f"kill {target} {response.status_code}"] += 1
            await asyncio.sleep(dice.random() * 0.02)
            if target == "agent" and dice.random() < 0.5:
                resumed = await operator.operate("POST", f"/v1/agents/{value}/resume", {"reason": "race"})
                assert resumed.status_code in (200, 409) or self._unsettled(resumed), resumed.text
            holds = await operator.operate("GET", "/v1/holds")
            assert holds.status_code == 200 or self._unsettled(holds), holds.text
            for hold in holds.json() if holds.status_code == 200 else []:
                lifted = await operator.operate("POST", f"/v1/holds/{hold['id']}/lift", {"reason": "race"})
                another_did = len(self.controls) > 1 and lifted.status_code == 409
                assert lifted.status_code == 200 or another_did or self._unsettled(lifted), lifted.text

    def _unsettled(self, response: httpx2.Response) -> bool:
        """Among several brokers one may wait too long for its turn: then its kill is provisional, the rest refused."""
        return len(self.controls) > 1 and response.status_code in (202, 503)

    def _victim(self, dice: random.Random) -> tuple[str, str]:
        kind = dice.choices(("agent", "owner", "resource", "all", "task", "grant", "key"), (8, 3, 3, 1, 4, 4, 0.3))[0]
        if kind == "agent":
            return kind, dice.choice(AGENTS)
        if kind == "owner":
            return kind, dice.choice(OWNERS)
        if kind == "resource":
            return kind, dice.choice(("invoices", "credits"))
        if kind == "task" and self.tasks:
            return kind, dice.choice(self.tasks[-10:])[1]
        if kind in ("grant", "task") and self.transcript.tokens:
            return "grant", self.transcript.tokens[-1].claims["jti"]
        if kind == "key" and self.transcript.tokens:
            return kind, self.transcript.tokens[-1].header["kid"]
        return "all", ""

    async def _look(self, operator: Client, dice: random.Random) -> None:
        """Introspect tokens of the last moments while all this goes on."""
        while self.going:
            await asyncio.sleep(0.02)
            if self.compact:
                await operator.introspect(self.compact[dice.choice(list(self.compact)[-30:])])


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[tuple[Site, list[str]]]:
    site = Site(tmp_path)
    with ExitStack() as stack:
        stack.enter_context(child(site, "control"))
        second = f"http://127.0.0.1:{free_port()}"
        for address, ahead_ms in ((site.issuer, 0), (second, 1_500)):
            env = {CLOCK_OFFSET_MS: str(ahead_ms)}
            stack.enter_context(child(site, "tokens", address.removeprefix("http://"), env=env))
        yield site, [site.issuer, second]


def test_no_credential_is_issued_under_a_kill_by_two_workers(workers, capsys: pytest.CaptureFixture[str]) -> None:
    site, urls = workers
    run = Run(site, urls, kills=ENOUGH_KILLS)
    asyncio.run(run.play())

    facts = read_ledger(site.ledger)
    assert check(facts, run.transcript, audiences=AUDIENCES) == []
    assert not [each for each in verify_ledger(site.ledger).findings if not each.warning]
    with capsys.disabled():
        print(_figures(run, facts))
    assert len(run.transcript.kills) >= ENOUGH_KILLS
    assert run.answers["issued"] >= ENOUGH_TOKENS
    assert run.answers["held"] >= ENOUGH_REFUSALS


def _figures(run: Run, facts: Facts) -> str:
    events = facts.events
    kills = {kill.position: kill for kill in run.transcript.kills}
    in_order = list(kills_in(events))
    first = [next(killers_of(in_order, each.claims, each.header["kid"]), None) for each in run.transcript.tokens]
    on_arrival = sum(
        killer in kills and kills[killer].received < token.received
        for token, killer in zip(run.transcript.tokens, first, strict=True)
    )
    waits = sorted(kill.received - kill.sent for kill in run.transcript.kills)
    killed = len(first) - first.count(None)
    return (
        f"\n  {sum(n for name, n in run.answers.items() if not name.startswith('kill'))} attempts, "
        f"{run.answers['issued']} issued, {killed} of them killed ({on_arrival} dead on arrival), "
        f"{len(kills)} kills (median {waits[len(waits) // 2] * 1000:.0f} ms, "
        f"slowest {waits[-1] * 1000:.0f} ms), {len(events)} events, "
        f"{len(run.transcript.introspections)} introspections, no violation\n  {dict(run.answers)}"
    )
