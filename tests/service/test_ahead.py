"""What a backend begins with while its intent is being committed: confirmed after it, or undone. Invariants 1, 4."""

import asyncio
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.service.ahead import Ahead
from broker.service.calls import Calls
from issuers import IssuerError, Wish
from tests.issuers.harness import new_order
from tests.service.memory_backend import AheadIssuer, ForeseeingIssuer, Site, failed

WISH = Wish(("orders:read",), (), {})
WITHIN_S = 10


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path, AheadIssuer())
    yield made
    made.broker.close()


def steps(site: Site) -> list[str]:
    return [step for step, _ in site.backend.log]


def undone(site: Site) -> threading.Event:
    """Set once something was undone."""
    event = threading.Event()
    site.issuer.before["undo"] = event.set
    return event


def test_it_is_confirmed_only_when_its_intent_is_durable_with_what_finds_it(site: Site):
    seen: list[Any] = []

    def look() -> None:
        with sqlite3.connect(f"file:{site.broker.process.ledger.path}?mode=ro", uri=True) as db:
            seen.extend(db.execute("SELECT state, handle FROM external_grants").fetchall())

    site.issuer.before["issue"] = look
    body = site.granted()
    assert steps(site) == ["begin", "issue"]
    assert seen == [("issuing", f'{{"login":"{body["handle"]["login"]}"}}')]


def test_what_is_not_automatic_is_not_even_begun(site: Site):
    assert site.ask(actions=["orders:drop"]).status_code == 403
    assert site.ask(actions=["orders:fix"], parameters={"order": "all"}).status_code == 403
    assert steps(site) == []


def test_a_proof_that_was_spent_undoes_it(site: Site):
    event, proof = undone(site), site.home.proof("data-bot")
    body = {"resource": "orders-db", "actions": ["orders:read"]}
    answers = [site.broker.request("POST", "/v1/credentials", json=body, bearer=proof) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 401]
    assert event.wait(WITHIN_S)
    assert steps(site) == ["begin", "issue", "begin", "undo"]
    assert len(site.backend.logins) == 1


def test_a_task_that_is_over_undoes_it(site: Site):
    event, task = undone(site), site.broker.open_task("data-bot")
    ended = site.broker.request("POST", f"/v1/tasks/{task}/end", bearer=site.home.proof("data-bot"))
    assert ended.status_code < 300
    assert site.ask(task=task).status_code == 403
    assert event.wait(WITHIN_S)
    assert steps(site) == ["begin", "undo"]


def test_what_could_not_begin_certainly_did_nothing(site: Site):
    site.issuer.fail["begin"] = [failed]
    assert site.ask().status_code == 503
    assert site.last()[0] == "failed"
    assert site.granted()["handle"]


def calls(*, workers: int = 1, waiting: int = 0) -> Calls:
    return Calls(name="test", workers=workers, waiting=waiting, limit_s=WITHIN_S)


def test_a_backend_that_is_busy_is_asked_in_its_turn():
    async def asked() -> None:
        issuer, threads, go = AheadIssuer(), calls(), threading.Event()
        order = new_order(now_s=0, ttl_s=60)
        with Ahead(patience_s=WITHIN_S) as ahead:
            other = threads.begin(go.wait, WITHIN_S)
            ahead.begin(threads, issuer, WISH)
            go.set()
            await threads.result(other)
            assert (await ahead.make(threads, issuer, order, issuer.foreseen(order))).values
        assert [step for step, _ in issuer.backend.log] == ["issue"]
        threads.close()

    asyncio.run(asked())


def test_so_is_one_that_cannot_begin_before_its_intent():
    async def asked() -> None:
        issuer, threads = ForeseeingIssuer(), calls()
        order = new_order(now_s=0, ttl_s=60)
        with Ahead(patience_s=WITHIN_S) as ahead:
            ahead.begin(threads, issuer, WISH)
            assert (await ahead.make(threads, issuer, order, issuer.foreseen(order))).values
        assert [step for step, _ in issuer.backend.log] == ["issue"]
        threads.close()

    asyncio.run(asked())


def test_it_waits_for_its_intent_no_longer_than_it_may():
    async def asked() -> None:
        issuer, threads = AheadIssuer(), calls()
        order = new_order(now_s=0, ttl_s=60)
        with Ahead(patience_s=0.01) as ahead:
            ahead.begin(threads, issuer, WISH)
            running = ahead._running
            assert running is not None
            await asyncio.wait({running.future}, timeout=WITHIN_S)
            with pytest.raises(IssuerError, match="took too long") as caught:
                await ahead.make(threads, issuer, order, issuer.foreseen(order))
            assert caught.value.happened is False
        assert issuer.backend.logins == {}
        threads.close()

    asyncio.run(asked())


def test_what_has_not_had_its_turn_yet_never_gets_one():
    async def asked() -> None:
        issuer, threads, go = AheadIssuer(), calls(waiting=1), threading.Event()
        other = threads.begin(go.wait, WITHIN_S)
        with Ahead(patience_s=WITHIN_S) as ahead:
            ahead.begin(threads, issuer, WISH)
        go.set()
        await threads.result(other)
        assert issuer.backend.log == []
        assert await threads.run(lambda: True)
        threads.close()

    asyncio.run(asked())
