"""SIGKILL at every step between an intent at a backend and its end: after the restart, and from the backend's own view,
nothing is there that the ledger does not know, nothing was handed out unrecorded, and what must end does.
"""

import asyncio
import signal
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from broker.ledger.verify import verify_ledger
from tests.invariants.child import CLOCK_OFFSET_MS
from tests.invariants.failpoints import FILE, Failpoint
from tests.invariants.file_backend import PLACE
from tests.invariants.kit import Child, Site, bearer, child

pytestmark = pytest.mark.e2e

MAKING = (
    "applied:intent",
    "begun",
    "before:prepared",
    "after:prepared",
    "applied:prepared",
    "before:issued",
    "after:issued",
    "applied:deliver",
    "before:first_byte",
    "after:first_byte",
)
MAKING_FORESEEN = (
    "applied:intent",
    "begun",
    "before:issued",
    "after:issued",
    "applied:deliver",
    "before:first_byte",
)
ENDING = ("applied:claim", "before:closed", "after:closed", "before:revoked", "after:revoked", "after:statusd")
ENDING = (*ENDING, "applied:settle")
RENEWING = ("applied:renewing", "before:renewd", "after:renewd", "applied:renewed", "before:first_byte")
LATER_S = 90  # by the clock of the next life: whatever the last one had begun has settled

RESOURCE = {
    "system": "Orders database",
    "audience": "https://orders-db.example.com",
    "owner": "finance-platform",
    "data_classes": ["personal"],
    "leaves_boundary": False,
    "retention": "1 year",
    "issuer": "file",
    "actions": {"orders:read": {"access": "read", "description": "Read orders."}},
}
PERMIT = '@id("bot-reads-orders") permit (principal == Agent::"bot-0", action == Action::"orders:read", resource);\n'


class Life:
    """One ledger and one backend through crashes. Each life's clock is later than the last one's."""

    def __init__(self, directory: Path, **settings: str) -> None:
        self.site = Site(directory)
        _register(self.site.registry, directory / "broker", RESOURCE | {"settings": settings})
        self.failpoint = Failpoint(directory / "failpoint")
        self.backend = directory / "backend"
        self.offset_s = 0
        self.answered: list[dict[str, Any]] = []
        self._stack = ExitStack()
        self.process: Child
        self.start()

    def start(self) -> None:
        env = {FILE: str(self.failpoint._file), PLACE: str(self.backend), CLOCK_OFFSET_MS: str(self.offset_s * 1000)}
        self.process = self._stack.enter_context(child(self.site, "all", env=env))

    def restart(self) -> None:
        assert self.process.wait() == -signal.SIGKILL, "the step was never reached"
        self.look()
        self.offset_s += LATER_S
        self.start()

    def logins(self) -> set[str]:
        return {file.name for file in (self.backend / "logins").iterdir()}

    def rows(self) -> dict[str, str]:
        """login -> state, of every intent."""
        with sqlite3.connect(f"file:{self.site.ledger}?mode=ro", uri=True) as db:
            (epoch,) = db.execute("SELECT epoch FROM head").fetchone()
            rows = db.execute("SELECT seq, state FROM external_grants").fetchall()
        return {f"tp_{epoch}_{seq}": state for seq, state in rows}

    def until(self) -> dict[str, int]:
        """login -> until when the ledger says that it may live, in seconds."""
        with sqlite3.connect(f"file:{self.site.ledger}?mode=ro", uri=True) as db:
            (epoch,) = db.execute("SELECT epoch FROM head").fetchone()
            rows = db.execute("SELECT seq, expires FROM external_grants").fetchall()
        return {f"tp_{epoch}_{seq}": expires // 1000 for seq, expires in rows}

    def look(self) -> None:
        """Invariants 3, 4 and 5 as they hold at any moment."""
        logins, rows = self.logins(), self.rows()
        assert logins <= {login for login, state in rows.items() if state in ("issuing", "live", "revoking", "stuck")}
        report = verify_ledger(self.site.ledger)
        assert not [finding for finding in report.findings if not finding.warning], report.findings
        for body in self.answered:
            assert rows[body["handle"]["login"]] != "failed"

    def settled(self) -> None:
        """Wait until nothing is on its way: what is there is live, and what is live is there."""
        deadline = time.monotonic() + 20
        while {"issuing", "revoking"} & set(self.rows().values()):
            assert time.monotonic() < deadline, self.rows()
            time.sleep(0.02)
        self.look()
        assert self.logins() == {login for login, state in self.rows().items() if state == "live"}

    def call(self, path: str, body: dict[str, Any], token: str) -> httpx2.Response | None:
        async def calling() -> httpx2.Response | None:
            async with httpx2.AsyncClient(base_url=self.site.issuer, timeout=20) as client:
                try:
                    return await client.post(path, json=body, headers=bearer(token))
                except httpx2.TransportError:
                    return None

        return asyncio.run(calling())

    def as_bot(self, path: str, body: dict[str, Any]) -> httpx2.Response | None:
        return self.call(path, body, self.site.assertion("bot-0", offset_s=self.offset_s))

    def ask(self, **more: Any) -> httpx2.Response | None:
        answer = self.as_bot("/v1/credentials", {"resource": "orders-db", "actions": ["orders:read"], **more})
        if answer is not None and answer.status_code == 201:
            self.answered.append(answer.json())
        return answer

    def kill(self) -> httpx2.Response | None:
        body = {"target": "agent", "value": "bot-0", "reason": "test", "hold": False}
        return self.call("/v1/kills", body, self.site.operator_assertion(offset_s=self.offset_s))

    def close(self) -> None:
        self._stack.close()


def _register(registry: Path, broker: Path, resource: dict[str, Any]) -> None:
    for name, change in (
        ("resources", lambda rows: rows.update({"orders-db": resource})),
        ("agents", lambda rows: rows["bot-0"]["boundary"].update({"orders-db": ["orders:read"]})),
    ):
        file = registry / f"{name}.yaml"
        content = yaml.safe_load(file.read_text())
        change(content[name])
        file.write_text(yaml.safe_dump(content))
    (broker / "policies" / "permits" / "orders.cedar").write_text(PERMIT)


@pytest.fixture
def life(tmp_path: Path) -> Iterator[Life]:
    life = Life(tmp_path)
    yield life
    life.close()


def crash(life: Life, step: str, act: Callable[[], Awaitable[Any] | Any]) -> Any:
    life.failpoint.arm(step)
    answer = act()
    life.restart()
    return answer


def test_57_sigkill_at_every_step_of_an_issuance(life: Life) -> None:
    unrecorded = []
    for step in MAKING:
        answer = crash(life, step, life.ask)
        assert answer is None or step == "after:first_byte"
        life.settled()
        delivered = step in ("before:first_byte", "after:first_byte")
        newest = list(life.rows().values())[-1:]
        if step in ("after:prepared", "applied:prepared"):
            unrecorded.append(list(life.rows())[-1])
        if step != "begun":  # the intent is being committed just then: it is either there, or not
            assert newest == ([] if step == "applied:intent" else ["live"] if delivered else ["revoked"]), step
    answer = life.ask()
    assert answer is not None
    assert answer.status_code == 201, answer.text
    assert life.kill() is not None
    life.settled()
    assert life.logins() == set()
    # A session that was opened and never recorded is what only its own short limit ends: two steps leave one.
    assert [file.name for file in sorted((life.backend / "sessions").iterdir())] == unrecorded


def test_57_sigkill_at_every_step_of_an_issuance_whose_handle_is_foreseen(tmp_path: Path) -> None:
    life = Life(tmp_path, foreseen="yes")
    try:
        for step in MAKING_FORESEEN:
            assert crash(life, step, life.ask) is None
            life.settled()
            newest = list(life.rows().values())[-1:]
            if step != "begun":
                assert newest == ([] if step == "applied:intent" else ["live" if "byte" in step else "revoked"]), step
        answer = life.ask()
        assert answer is not None
        assert answer.status_code == 201, answer.text
        assert life.kill() is not None
        life.settled()
        assert life.logins() == set()
        assert list((life.backend / "sessions").iterdir()) == []
    finally:
        life.close()


def test_57_sigkill_at_every_step_of_a_renewal(life: Life) -> None:
    """After the restart the old time is over and the new one is not: what may live longer does, and nothing else."""
    for step in RENEWING:
        opened = life.as_bot("/v1/tasks", {"purpose": "crash", "deadline_seconds": 3_000})
        assert opened is not None
        answer = life.ask(task=opened.json()["id"], ttl_seconds=60)
        assert answer is not None
        body = answer.json()
        path, login = f"/v1/credentials/{body['id']}/renew", body["handle"]["login"]
        first = life.until()[login]
        assert crash(life, step, partial(life.as_bot, path, {"ttl_seconds": 2_000})) is None
        may = life.until()[login]
        assert (may > first) == (step != "applied:renewing"), step
        if step == "applied:renewing":  # nothing of it was durable, so the backend was not asked
            deadline = time.monotonic() + 20
            while life.rows()[login] != "expired":
                assert time.monotonic() < deadline, life.rows()
                time.sleep(0.02)
        life.settled()
        assert (login in life.logins()) == (may > first), step
        if may > first:
            assert first <= int((life.backend / "logins" / login).read_text()) <= may
    assert life.kill() is not None
    life.settled()
    assert life.logins() == set()


def test_57_sigkill_at_every_step_of_an_ending(life: Life) -> None:
    for step in ENDING:
        answer = life.ask()
        assert answer is not None
        assert answer.status_code == 201, answer.text
        crash(life, step, life.kill)
        life.settled()
        assert life.logins() == set(), step
        assert set(life.rows().values()) == {"revoked"}
