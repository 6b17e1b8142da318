"""What happens while a backend is being asked: kills, holds, ends, slowness, a ledger that cannot be written, and many
credentials at once. 56 and 58 of the attack catalogue; invariants 1, 3, 4 and 6 from the backend's own view.
"""

import asyncio
import base64
import gc
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from broker.config import SecretsSection
from broker.wire import FeedKill
from tests.kit import Broker
from tests.service.memory_backend import (
    CANARY,
    AheadIssuer,
    ForeseeingIssuer,
    MemoryIssuer,
    Site,
    bug,
    failed,
    happened,
    opened,
    until,
)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.broker.close()


def during(site: Site, step: str, act: Callable[[], Awaitable[Any]], **ask: Any) -> tuple[Any, Any]:
    """Ask, and act while the backend stands at `step`: (the answer, what acting came to)."""
    entered, go = threading.Event(), threading.Event()

    def pause() -> None:
        entered.set()
        assert go.wait(10)

    site.issuer.before[step] = pause
    body = {"resource": "orders-db", "actions": ["orders:read"], **ask}
    asking = site.broker.ask("POST", "/v1/credentials", json=body, bearer=site.home.proof("data-bot"))

    async def acting() -> Any:
        await asyncio.to_thread(entered.wait, 10)
        try:
            return await act()
        finally:
            go.set()

    answer, outcome = site.broker.gather([asking, acting()])
    del site.issuer.before[step]
    return answer, outcome


def killing(site: Site, target: str, value: str = "", **body: Any) -> Callable[[], Awaitable[Any]]:
    sent = {"target": target, "value": value, "reason": "race", **body}
    return lambda: site.broker.ask("POST", "/v1/kills", json=sent, bearer=site.home.operator())


def clean(site: Site) -> None:
    """Nothing is left at the backend, and the ledger says so."""
    site.settle()
    site.clock.forward(66)
    site.settle()
    assert site.backend.logins == {}
    assert site.last()[0] in ("revoked", "failed")


@pytest.mark.parametrize("step", ["prepare", "issue"])
@pytest.mark.parametrize("target", ["agent", "resource", "owner", "all", "task", "grant", "hold-less agent"])
def test_56_a_credential_that_comes_after_the_kill_is_revoked_not_delivered(site: Site, step: str, target: str):
    task = site.broker.open_task("data-bot")
    values = {"agent": "data-bot", "resource": "orders-db", "owner": "data-team", "task": task}
    if target == "grant":
        answer, killed = during(site, step, lambda: killing(site, "grant", site.last()[1])(), task=task)  # noqa: PLW0108
    elif target == "hold-less agent":
        answer, killed = during(site, step, killing(site, "agent", "data-bot", hold=False), task=task)
    else:
        answer, killed = during(site, step, killing(site, target, values.get(target, "")), task=task)
    assert killed.status_code < 300, killed.text
    assert answer.status_code == 403, answer.text
    assert CANARY not in answer.text
    assert answer.json()["outcome"] in ("held", "task_over", "ended")
    assert not site.broker.events("delivered")
    if step == "prepare":
        assert site.issuer.calls["issue"] == 0
    clean(site)
    assert site.receipt(killed.json()["id"])["external"]["confirmed"] == 1


@pytest.mark.parametrize(
    ("issuer", "step"), [(ForeseeingIssuer, "issue"), (AheadIssuer, "issue"), (AheadIssuer, "begin")]
)
@pytest.mark.parametrize("target", ["agent", "task", "grant", "all"])
def test_56_so_it_is_where_the_handle_was_foreseen(
    tmp_path: Path, target: str, issuer: type[ForeseeingIssuer], step: str
):
    site = Site(tmp_path, issuer())
    task = site.broker.open_task("data-bot")
    values = {"agent": lambda: "data-bot", "task": lambda: task, "grant": lambda: site.last()[1], "all": str}

    async def kill() -> Any:
        while not site.broker.query("SELECT 1 FROM external_grants"):  # noqa: ASYNC110  (then there is one to name)
            await asyncio.sleep(0)
        return await killing(site, target, values[target]())()

    answer, killed = during(site, step, kill, task=task)
    assert killed.status_code < 300, killed.text
    assert answer.status_code == 403, answer.text
    assert CANARY not in answer.text
    assert not site.broker.events("delivered")
    clean(site)
    assert site.receipt(killed.json()["id"])["external"]["confirmed"] == 1
    site.broker.close()


def test_a_kill_that_finds_nothing_yet_is_not_confirmed_by_that(site: Site):
    """The reconciler looks before the backend has made it: its absence proves nothing then."""

    async def kill_and_look() -> Any:
        answer = await killing(site, "agent", "data-bot")()
        await site.broker.process.reconciler.settle()
        assert site.issuer.calls["status"] == 1
        assert not site.broker.events("gone")
        return answer

    answer, _ = during(site, "issue", kill_and_look)
    assert answer.status_code == 403
    assert len(site.backend.logins) == 1  # it came after the look
    clean(site)


def test_a_task_that_ends_meanwhile_takes_it_with_it(site: Site):
    task = site.broker.open_task("data-bot")
    session = site.broker.session("data-bot")
    ending = lambda: site.broker.ask("POST", f"/v1/tasks/{task}/end", json={}, bearer=session)
    answer, _ = during(site, "issue", ending, task=task)
    assert (answer.status_code, answer.json()["outcome"]) == (403, "task_over")
    clean(site)
    assert site.backend.sessions == {}


def test_what_expires_while_it_is_made_is_not_delivered(site: Site):
    async def late() -> None:
        site.clock.forward(61)

    answer, _ = during(site, "issue", late, ttl_seconds=60)
    assert (answer.status_code, answer.json()["outcome"]) == (403, "expired")
    clean(site)


@pytest.mark.parametrize("step", ["prepare", "issue"])
def test_a_kill_that_cannot_be_recorded_stops_it_between_the_commits(site: Site, step: str):
    """The ledger takes no kill, but still takes what was begun before: the stop in memory decides."""

    async def provisional() -> None:
        kill = {"id": "prv_1", "seq": -1, "matches": [["agent", "data-bot"]], "provisional": True}
        site.broker.process.broker.credentials._steps._stops.write([FeedKill.from_wire(kill)])

    answer, _ = during(site, step, provisional)
    assert (answer.status_code, answer.json()["outcome"]) == (403, "held")
    assert CANARY not in answer.text
    clean(site)


def _until(site: Site, condition: Callable[[], bool]) -> None:
    """Let the broker's loop go on until another thread has got there."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        site.broker.run(asyncio.sleep(0.01))


def test_58_a_call_that_does_not_come_back_in_time(tmp_path: Path):
    """The caller is answered, a retry makes another, and both the late one and its record are put in order."""
    site = Site(tmp_path)
    try:
        site.broker.close()
        limits = SecretsSection(call_limit_s=1)
        site.home.config = site.home.config.model_copy(update={"secrets": limits})
        site.start()
        back = threading.Event()
        site.issuer.before["issue"] = until(back)
        answer = site.ask()
        assert (answer.status_code, answer.json()["code"]) == (503, "temporarily_unavailable")
        assert site.last()[0] == "revoking"
        site.settle()
        assert site.last()[0] == "revoking"  # it is not there, and may still come
        del site.issuer.before["issue"]
        second = site.granted()
        back.set()
        _until(site, lambda: len(site.backend.logins) == 2)
        site.clock.forward(8)

        def settled() -> bool:
            site.settle()
            return set(site.backend.logins) == {second["handle"]["login"]}

        _until(site, settled)
        assert sorted(row[0] for row in site.broker.query("SELECT state FROM external_grants")) == ["live", "revoked"]
    finally:
        site.broker.close()


def test_a_client_that_goes_away_leaves_nothing_unrecorded(site: Site):
    async def leave() -> None:
        entered = threading.Event()

        def slow() -> None:
            entered.set()
            time.sleep(0.05)

        site.issuer.before["issue"] = slow
        body = {"resource": "orders-db", "actions": ["orders:read"]}
        asking = asyncio.ensure_future(
            site.broker.ask("POST", "/v1/credentials", json=body, bearer=site.home.proof("data-bot"))
        )
        await asyncio.to_thread(entered.wait, 10)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        while site.last()[0] == "issuing":  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    site.broker.run(leave())
    assert site.last()[0] == "live"  # recorded: it ends with its task, or when it expires
    assert len(site.broker.events("delivered")) == 1


# --- Invariant 6 ------------------------------------------------------------------------------------------------------


def test_no_secret_anywhere_but_in_its_answer(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """Raw, in base64, url-encoded and in hex: not in the ledger, a log, an error, a page, or a repr."""
    site = Site(tmp_path)
    answers: list[str] = []
    try:
        for failure in (None, failed, happened, bug):
            if failure is not None:
                site.issuer.fail["issue"].append(failure)
            answer = site.ask()
            if failure is not None:
                answers.append(answer.text)
        granted = site.granted(task=site.broker.open_task("data-bot"))
        site.issuer.fail["revoke"] = [bug, bug]
        site.issuer.fail["status"] = [bug]
        kill = site.broker.kill("agent", "data-bot").json()
        site.settle()
        site.clock.forward(400)
        site.settle()
        paths = [f"/v1/credentials/{granted['id']}", f"/v1/decisions/{granted['decision_id']}"]
        paths += [f"/v1/tasks/{granted['task']}/receipt", f"/v1/kills/{kill['id']}", "/v1/ledger?from=0&limit=1000"]
        answers += [site.broker.request("GET", path, bearer=site.home.operator()).text for path in paths]
        rows = site.broker.query("SELECT bytes FROM events") + site.broker.query("SELECT * FROM external_grants")
        stored = repr(rows).encode()
        answers.append(repr(site.broker.process.broker) + repr(site.broker.process.reconciler.figures()))
    finally:
        site.broker.close()
    out, err = capfd.readouterr()
    written = stored + b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    raw = CANARY.encode()
    forms = [raw, base64.b64encode(raw)[:-4], base64.urlsafe_b64encode(raw)[:-4], quote(CANARY).encode()]
    forms += [raw.hex().encode(), quote(CANARY, safe="").encode()]
    for place in (written, out.encode(), err.encode(), "".join(answers).encode()):
        for form in forms:
            assert form not in place, form
    assert b"issuing" in written
    assert "issuer_failed" in out + err


# --- Many -------------------------------------------------------------------------------------------------------------


def test_the_loop_never_stands_still_while_many_are_ended(tmp_path: Path):
    """1,200 live credentials of one agent, killed at once: threads do the waiting, commits come in batches."""
    site = Site(tmp_path, MemoryIssuer())
    try:
        site.broker.close()
        limits = SecretsSection(workers=8)
        site.home.config = site.home.config.model_copy(update={"secrets": limits})
        site.start()
        session = site.broker.session("data-bot")
        task = site.broker.open_task("data-bot", deadline_seconds=600)
        body = {"resource": "orders-db", "actions": ["orders:read"], "task": task}

        async def fill() -> None:
            for _ in range(10):
                asked = [site.broker.ask("POST", "/v1/credentials", json=body, bearer=session) for _ in range(120)]
                answers = await asyncio.gather(*asked)
                assert {answer.status_code for answer in answers} == {201}, {answer.text for answer in answers}

        site.broker.run(fill())
        assert len(site.backend.logins) == 1_200
        assert site.issuer.most_threads <= 8
        site.issuer.most_threads = 0
        gc.collect()
        gc.freeze()  # as a serving process does: what was loaded stays, and nobody walks it
        worst = 0.0

        async def killed() -> Any:
            nonlocal worst
            answer = asyncio.ensure_future(killing(site, "agent", "data-bot")())
            ended = asyncio.ensure_future(asyncio.sleep(0))
            while not (answer.done() and ended.done() and not site.backend.logins):
                if answer.done() and ended.done():
                    ended = asyncio.ensure_future(site.broker.process.reconciler.settle())
                before = time.thread_time()
                await asyncio.sleep(0.001)
                worst = max(worst, time.thread_time() - before)
            await ended
            return answer.result()

        receipt = site.receipt(site.broker.run(killed()).json()["id"])
        assert receipt["external"]["confirmed"] == 1_200
        assert receipt["external"]["complete"]
        assert site.issuer.most_threads <= 8
        # What the loop's thread itself computed at a stretch; what a busy machine adds is the benchmark's to say.
        assert worst < 0.05, f"{worst * 1000:.0f} ms"
    finally:
        gc.unfreeze()
        site.broker.close()


def test_one_backend_that_hangs_delays_no_other(tmp_path: Path):
    site = Site(tmp_path)
    slow = MemoryIssuer()
    try:
        site.broker.close()
        site.home.replace("registry/resources.yaml", "issuer: memory", "issuer: slow")
        site.issuer, fast = slow, site.issuer
        site.home.append("registry/resources.yaml", _SECOND)
        site.home.append("policies/permits/data.cedar", _SECOND_PERMIT)
        site.home.replace("registry/agents.yaml", "orders-db: [", 'stock-db: ["stock:read"]\n      orders-db: [')
        issuers = {"slow": opened(slow), "memory": opened(fast)}
        site.broker = Broker(site.home, issuers=issuers)
        site.granted()
        site.granted(resource="stock-db", actions=["stock:read"])
        back = threading.Event()
        slow.before["revoke"] = until(back)

        async def ending() -> None:
            await killing(site, "agent", "data-bot")()
            while fast.backend.logins:
                await site.broker.process.reconciler.turn()
                await asyncio.sleep(0.005)
            assert slow.backend.logins
            back.set()
            await site.broker.process.reconciler.settle()
            assert not slow.backend.logins

        site.broker.run(ending())
    finally:
        site.broker.close()


_SECOND = """
  stock-db:
    system: Stock database
    audience: https://stock-db.example.com
    owner: data-team
    data_classes: [internal]
    fields: [item]
    leaves_boundary: false
    retention: 1 year
    issuer: memory
    actions:
      stock:read:
        access: read
        description: Read stock.
"""
_SECOND_PERMIT = """
@id("data-bot-reads-stock")
permit (principal == Agent::"data-bot", action == Action::"stock:read", resource);
"""
