"""SIGKILL at every step of a write: after the restart nothing is lost, doubled, or out and unrecorded.

One ledger lives through all the crashes: each restart is the recovery of one crash and the start of the next.
"""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest

from broker.ledger.verify import verify_ledger
from tests.invariants.checker import Facts, Transcript, check, check_continues, read_ledger
from tests.invariants.failpoints import FILE, Failpoint
from tests.invariants.kit import AUDIENCES, Child, Client, Site, bearer, child

pytestmark = pytest.mark.e2e

WRITE = ("before:BEGIN", "after:BEGIN", "applied:{}", "before:INSERT", "after:INSERT", "before:COMMIT", "after:COMMIT")
TOKEN = (
    "authenticated",
    *(step.format("issue") for step in WRITE),
    "before:sign",
    "after:sign",
    "before:first_byte",
    "after:first_byte",
    "after:last_byte",
)


class Life:
    """A ledger with the process that serves it, through crashes."""

    def __init__(self, directory: Path) -> None:
        self.site = Site(directory)
        self.failpoint = Failpoint(directory / "failpoint")
        self.transcript = Transcript()
        self._stack = ExitStack()
        self.process: Child
        self.before: Facts = read_ledger(self.site.ledger)
        self.start()

    def start(self) -> None:
        self.process = self._stack.enter_context(child(self.site, "all", env={FILE: str(self.failpoint._file)}))

    def crash(self, step: str, act: Callable[[Client], Awaitable[Any]]) -> Any:
        """Do something that dies at `step`; then look, and start again. What the client got is the answer, or None."""
        answer = asyncio.run(self._dying(step, act))
        assert self.process.wait() == -signal.SIGKILL, f"{step} was never reached"
        self.recover()
        return answer

    def recover(self) -> None:
        """What every restart must find; the process runs again afterwards."""
        self.look()
        self.start()
        self.look()

    def look(self) -> None:
        facts = read_ledger(self.site.ledger)
        assert check(facts, self.transcript, audiences=AUDIENCES) == []
        assert check_continues(self.before, facts) == []
        report = verify_ledger(self.site.ledger)
        assert not [finding for finding in report.findings if not finding.warning], report.findings
        self.before = facts

    async def _dying(self, step: str, act: Callable[[Client], Awaitable[Any]]) -> Any:
        async with self.client() as client:
            self.failpoint.arm(step)
            try:
                return await act(client)
            except httpx2.TransportError:
                return None

    def client(self) -> "Connected":
        return Connected(self)

    def call(self, act: Callable[[Client], Awaitable[Any]]) -> Any:
        """Do something that ends well."""

        async def calling() -> Any:
            async with self.client() as client:
                return await act(client)

        return asyncio.run(calling())

    def count(self, type_: str) -> int:
        return sum(event["type"] == type_ for event in read_ledger(self.site.ledger).events)

    def close(self) -> None:
        self._stack.close()


class Connected:
    """A client that is logged in, for as long as the context lasts."""

    def __init__(self, life: Life) -> None:
        self._life = life

    async def __aenter__(self) -> Client:
        self._http = httpx2.AsyncClient(base_url=self._life.site.issuer, timeout=20)
        client = Client(self._life.site, self._http, self._life.transcript)
        await client.login()
        return client

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()


@pytest.fixture
def life(tmp_path: Path):
    life = Life(tmp_path)
    yield life
    life.close()


def test_sigkill_at_every_step_of_an_issuance(life: Life) -> None:
    for step in TOKEN:
        issued = life.count("issued")
        ask = partial(Client.token, agent="bot-0", assertion=life.site.assertion("bot-0"))
        answer = life.crash(step, ask)
        committed = step in TOKEN[TOKEN.index("after:COMMIT") :]
        assert life.count("issued") - issued == committed, step
        assert (answer is not None) <= committed, step
        again = life.call(ask)
        if committed:
            assert again.status_code == 401, step  # its mark was in the same commit: the assertion is spent for good
        else:
            assert again.status_code == 200, step
        life.look()
    assert life.call(lambda client: client.token("bot-1")).status_code == 200


KILL_STEPS = tuple(step.format("kill") for step in WRITE)


def test_sigkill_at_every_step_of_a_kill(life: Life) -> None:
    async def token_of(client: Client, agent: str) -> str:
        response = await client.token(agent)
        assert response.status_code == 200, response.text
        token: str = response.json()["access_token"]
        return token

    for step in (*KILL_STEPS, "before:first_byte", "after:last_byte"):
        token = life.call(lambda client: token_of(client, "bot-0"))
        answer = life.crash(step, lambda client: client.kill("agent", "bot-0"))
        committed = step in ("after:COMMIT", "before:first_byte", "after:last_byte")
        assert (answer is not None) <= committed, step
        alive = life.call(partial(Client.introspect, token=token))
        assert alive is not committed, step
        asked = life.call(lambda client: client.token("bot-0"))
        assert (asked.status_code, asked.json().get("outcome")) == ((400, "held") if committed else (200, None)), step
        if committed:
            lifted = life.call(lambda client: client.operate("POST", "/v1/agents/bot-0/resume", {"reason": "test"}))
            assert lifted.status_code == 200, lifted.text
            assert life.call(partial(Client.introspect, token=token)) is False  # nothing revives
        life.look()


async def _open_task(client: Client) -> httpx2.Response:
    body = {"purpose": "test", "trigger": {"kind": "user"}}
    headers = bearer(client.site.assertion("bot-2"))
    return await client.http.post("/v1/tasks", headers=headers, json=body)


OTHERS: tuple[tuple[str, str, Callable[[Client], Awaitable[httpx2.Response]]], ...] = (
    ("task", "task.opened", _open_task),
    (
        "pend",
        "approval.requested",
        lambda client: client.token(
            "bot-2",
            resource=AUDIENCES["credits"],
            authorization_details='[{"type":"task_action","actions":["credits:propose"],'
            '"parameters":{"invoice":"INV-1","amount_cents":100000}}]',
        ),
    ),
    (
        "refuse",
        "refused",
        lambda client: client.token("bot-2", resource=AUDIENCES["payments"], scope="payments:transfer"),
    ),
    ("lift", "hold.lifted", lambda client: client.operate("POST", "/v1/agents/bot-3/resume", {"reason": "test"})),
    ("rotate", "key.retired", lambda client: client.operate("POST", "/v1/keys/rotate", {"reason": "test"})),
    ("checkpoint", "", lambda client: client.operate("GET", "/v1/ledger/checkpoint")),
)


def test_sigkill_around_every_other_commit(life: Life) -> None:
    life.call(lambda client: client.kill("agent", "bot-3"))
    for name, event, act in OTHERS:
        for step, kept in ((f"applied:{name}", 0), ("after:COMMIT", 1)):
            before = life.count(event) if event else len(read_ledger(life.site.ledger).checkpoints)
            assert life.crash(step, act) is None
            after = life.count(event) if event else len(read_ledger(life.site.ledger).checkpoints)
            assert after - before == kept, (name, step)
    assert life.call(lambda client: client.token("bot-2")).status_code == 200
    assert life.call(lambda client: client.operate("GET", "/v1/ledger/checkpoint")).status_code == 200
    life.look()
