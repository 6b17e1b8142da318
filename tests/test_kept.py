"""A ledger that was rolled back does not serve until an operator accepts it; then nothing old is worth anything."""

import asyncio
import contextlib
import shutil
import socket
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
from pydantic import SecretStr

from broker.app import Process, running
from broker.config import KeptSection
from broker.custody import accept, copy_out, move_in
from broker.ledger import LedgerShrunk, LedgerStopped
from broker.ledger.checkpoint import VerifierKey
from broker.ledger.kept import LedgerRolledBack
from broker.ledger.verify import verify_store
from broker.sdk.errors import InvalidToken, SdkError
from broker.sdk.verifier import Verifier
from broker.stores import keyring_of, ledger_to_verify, open_ledger, wall_clock
from tests.kit import INVOICES, Broker, Home
from tests.ledger.test_witness import Host, listening
from tests.postgres import Server, server_or_skip
from tests.service.memory_backend import Site


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "broker")
    (tmp_path / "elsewhere").mkdir()
    return keeping(home, file=tmp_path / "elsewhere/checkpoint")


def keeping(home: Home, **keys: Any) -> Home:
    home.config = home.config.model_copy(update={"kept": KeptSection(**keys)})
    return home


@pytest.fixture
def start(home: Home) -> Iterator[Callable[[], Broker]]:
    with ExitStack() as stack:
        yield lambda: stack.enter_context(closing(Broker(home)))


def keep(broker: Broker) -> None:
    broker.run(broker.process.safekeeping.keep())


def backup(home: Home) -> Path:
    copy = home.path / "backup.db"
    with closing(sqlite3.connect(home.config.ledger.path)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    return copy


def restore(home: Home, copy: Path) -> None:
    for suffix in ("-wal", "-shm"):
        home.config.ledger.path.with_name(home.config.ledger.path.name + suffix).unlink(missing_ok=True)
    shutil.copyfile(copy, home.config.ledger.path)


def test_a_restored_backup_serves_nobody_until_it_is_accepted(home: Home, start: Callable[[], Broker]) -> None:
    broker = start()
    before = broker.granted()["access_token"]
    old_decision = broker.granted()["decision_id"]
    copy = backup(home)
    broker.post("/v1/keys/rotate", {"reason": "test"}, by="operator")
    after = broker.granted()["access_token"]
    keep(broker)
    old_epoch = broker.process.ledger.head.epoch
    kids = {key["kid"] for key in broker.get("/oauth2/jwks").json()["keys"]}
    broker.close()
    restore(home, copy)
    with pytest.raises(LedgerRolledBack, match="once had"):
        start()
    done = accept(home.config, actor="ops-anna", reason="the disk died", hold=False, now=home.clock)
    assert len(done.given_up) == 1
    assert done.not_kept == []
    broker = start()
    assert broker.process.ledger.head.epoch != old_epoch
    assert not broker.active(before)
    assert not broker.active(after)
    assert not kids & {key["kid"] for key in broker.get("/oauth2/jwks").json()["keys"]}
    assert broker.active(broker.granted()["access_token"])
    explained = broker.get(f"/v1/decisions/{old_decision}", by="operator")
    assert explained.status_code == 200, explained.text
    assert explained.json()["after"]["state"] == "revoked"
    assert explained.json()["decision_id"] == old_decision
    keep(broker)
    broker.close()
    start().close()
    report = verify_store(ledger_to_verify(home.config))
    assert report.sound, report.findings


def test_with_a_hold_nothing_is_issued_until_it_is_lifted(home: Home, start: Callable[[], Broker]) -> None:
    done = accept(home.config, actor="ops-anna", reason="the disk died", hold=True, now=home.clock)
    broker = start()
    assert broker.token().json()["outcome"] == "held"
    lifted = broker.post(f"/v1/holds/{done.accepted.hold}/lift", {"reason": "looked"}, by="operator")
    assert lifted.status_code == 200
    assert broker.granted()


def test_a_process_under_which_a_backup_is_accepted_ends(home: Home, start: Callable[[], Broker]) -> None:
    broker = start()
    accept(home.config, actor="ops-anna", reason="test", hold=False, now=home.clock)
    assert broker.token().status_code == 503
    assert isinstance(broker.run(_unusable(broker)), LedgerShrunk)


async def _unusable(broker: Broker) -> LedgerStopped:
    return await broker.process.unusable


def test_a_ledger_that_went_another_way_does_not_serve(home: Home, start: Callable[[], Broker]) -> None:
    broker = start()
    copy = backup(home)
    broker.granted()
    keep(broker)
    broker.close()
    restore(home, copy)
    kept = home.config
    keeping(home)
    with closing(Broker(home)) as other:
        for _ in range(5):
            other.granted()
    home.config = kept
    with pytest.raises(LedgerRolledBack, match="once were others"):
        start()


def test_a_fork_that_is_found_later_ends_the_process(home: Home, start: Callable[[], Broker]) -> None:
    broker = start()
    copy = home.path / "other.db"
    shutil.copyfile(backup(home), copy)
    broker.granted()
    keep(broker)
    broker.close()
    kept = home.config.kept.file
    assert kept is not None
    note = kept.read_bytes()
    kept.unlink()
    restore(home, copy)
    broker = start()
    kept.write_bytes(note)
    keep(broker)
    assert isinstance(broker.run(_unusable(broker)), LedgerRolledBack)


def test_what_is_no_checkpoint_of_this_ledger_stops_it(home: Home, start: Callable[[], Broker], tmp_path: Path) -> None:
    other = Home(tmp_path / "other")
    assert home.config.kept.file is not None
    keeping(other, file=home.config.kept.file)
    with closing(Broker(other)) as broker:
        keep(broker)
    with pytest.raises(LedgerStopped, match="not a checkpoint of this ledger"):
        start()
    with pytest.raises(LedgerStopped, match="not a checkpoint of this ledger"):
        accept(home.config, actor="a", reason="r", hold=False, now=home.clock)


def test_a_place_that_fails_is_told_and_stops_nothing(home: Home, start: Callable[[], Broker]) -> None:
    keeping(home, file=home.path / "missing/checkpoint")
    broker = start()
    keep(broker)
    assert broker.granted()
    assert broker.process.safekeeping.failing_ms() > 0
    home.clock.forward(61)
    keep(broker)
    keep(broker)
    (home.path / "missing").mkdir()
    keep(broker)
    assert broker.process.safekeeping.failing_ms() == 0
    alarms = [event["alarm"] for event in broker.events("alarm")]
    assert alarms == ["checkpoint_not_kept", "checkpoint_kept_again"]


def test_an_imported_copy_is_a_restored_backup(home: Home, start: Callable[[], Broker], tmp_path: Path) -> None:
    broker = start()
    token = broker.granted()["access_token"]
    broker.close()
    copy_out(home.config, tmp_path / "copy")
    ledger = home.config.ledger.model_copy(update={"path": home.path / "data/new.db"})
    home.config = home.config.model_copy(update={"ledger": ledger})
    move_in(home.config, tmp_path / "copy", now=home.clock)
    with pytest.raises(LedgerRolledBack, match="imported from a copy"):
        start()
    accept(home.config, actor="a", reason="r", hold=False, now=home.clock)
    broker = start()
    assert not broker.active(token)
    assert broker.granted()


def test_secrets_that_a_restored_ledger_knows_are_ended_and_those_that_it_lost_are_found(tmp_path: Path) -> None:
    site = Site(tmp_path / "broker")
    known = site.granted()
    copy = backup(site.home)
    lost = site.granted()
    site.broker.close()
    restore(site.home, copy)
    accept(site.home.config, actor="ops-anna", reason="the disk died", hold=False, now=site.clock)
    site.start()
    with closing(site.broker):
        site.settle()
        assert set(site.backend.logins) == {lost["handle"]["login"]}
        assert site.state(known["id"]) == "revoked"
        assert site.types(known["id"])[-1] == "gone"
        for _ in range(2):
            site.broker.run(site.broker.process.reconciler.sweep())
            site.clock.forward(121)
        assert site.backend.logins == {}
        again = site.granted()
        assert site.backend.works(again["handle"]["login"])
    report = verify_store(ledger_to_verify(site.home.config))
    assert report.sound, report.findings


class _Objects(BaseHTTPRequestHandler):
    """An object store for one object."""

    kept: bytes | None = None
    down = False

    def do_GET(self) -> None:
        self._answer(500 if self.down else 404 if self.kept is None else 200, self.kept or b"")

    def do_PUT(self) -> None:
        type(self).kept = self.rfile.read(int(self.headers["content-length"]))
        self._answer(500 if self.down or self.headers["authorization"] != "Bearer s3cret" else 204)

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def objects() -> Iterator[tuple[str, type[_Objects]]]:
    handler = type("Objects", (_Objects,), {})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/ledger/checkpoint", handler
        server.shutdown()


def test_an_object_store_keeps_it_too(
    home: Home, start: Callable[[], Broker], objects: tuple[str, type[_Objects]]
) -> None:
    url, store = objects
    keeping(home, url=url, authorization="Bearer s3cret")
    broker = start()
    copy = backup(home)
    broker.granted()
    keep(broker)
    assert store.kept is not None
    broker.close()
    restore(home, copy)
    store.down = True
    broker = start()  # the kill switch must come up; it is compared as soon as the place answers
    store.down = False
    keep(broker)
    assert isinstance(broker.run(_unusable(broker)), LedgerRolledBack)
    broker.close()
    accept(home.config, actor="a", reason="r", hold=False, now=home.clock)
    assert start().granted()


@pytest.mark.parametrize("form", ["file", "object store", "witness"])
def test_a_start_on_an_old_copy_is_refused_whatever_keeps_the_checkpoint(
    home: Home, start: Callable[[], Broker], objects: tuple[str, type[_Objects]], form: str
) -> None:
    with ExitStack() as stack:
        if form == "object store":
            keeping(home, url=objects[0], authorization="Bearer s3cret")
        elif form == "witness":
            host = Host(_checkpoint_key(home))
            keeping(home, witness_url=stack.enter_context(listening(host)), witness_key=host.vkey)
        broker = start()
        copy = backup(home)
        token = broker.granted()["access_token"]
        keep(broker)
        broker.close()
        start().close()  # nothing is wrong with the ledger as it is
        restore(home, copy)
        with pytest.raises(LedgerRolledBack, match="accept-restore"):
            start()
        accept(home.config, actor="ops-anna", reason="test", hold=False, now=home.clock)
        broker = start()
        assert not broker.active(token)
        assert broker.granted()
        assert (broker.process.safekeeping.failing_ms() > 0) == (form == "witness"), "that one never lets go"


def _checkpoint_key(home: Home) -> VerifierKey:
    with closing(open_ledger(home.config, now=home.clock)) as ledger:
        return VerifierKey.of(ledger.origin, keyring_of(home.config, ledger, now=home.clock).checkpoint_key())


# --- On PostgreSQL, and as verifiers see it ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = server_or_skip(fsync="off")
    yield server
    server.close()


def test_a_restored_database_serves_nobody_until_it_is_accepted(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TASKPASS_TEST_POSTGRES", server.url())
    home = keeping(Home(tmp_path / "broker"), file=tmp_path / "checkpoint")
    with closing(Broker(home)) as broker:
        before = broker.granted()["access_token"]
    assert home.config.ledger.url is not None
    url = home.config.ledger.url.get_secret_value()
    database = url.rpartition("/")[2]
    server.run(f"CREATE DATABASE backup_{database} TEMPLATE {database}")
    with closing(Broker(home)) as broker:
        after = broker.granted()["access_token"]
        keep(broker)
    section = home.config.ledger.model_copy(update={"url": SecretStr(url.replace(database, f"backup_{database}"))})
    home.config = home.config.model_copy(update={"ledger": section})
    with pytest.raises(LedgerRolledBack):
        Broker(home)
    accept(home.config, actor="ops-anna", reason="test", hold=False, now=home.clock)
    with closing(Broker(home)) as broker:
        assert not broker.active(before)
        assert not broker.active(after)
        assert broker.granted()
    assert verify_store(ledger_to_verify(home.config)).sound


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_verifier_refuses_all_that_is_old_and_takes_what_is_new(tmp_path: Path) -> None:
    """One verifier lives through the restore; before and after it the broker stands at the same address."""
    listening = socket.create_server(("127.0.0.1", 0))
    issuer = f"http://127.0.0.1:{listening.getsockname()[1]}"
    home = Home(tmp_path / "broker", clock=wall_clock, issuer=issuer)
    section = home.config.serve.model_copy(update={"control_url": None})
    home.config = home.config.model_copy(update={"serve": section})
    keeping(home, file=tmp_path / "checkpoint")

    async def story() -> None:
        async with Verifier(issuer=issuer, audience=INVOICES, identity=Said(home, "billing")) as verifier:
            async with serving(home, listening) as process:
                await fresh(verifier)
                before = await token(home)
                assert verifier.verify(before).agent == "dispute-bot"
                copy = backup(home)
                after = await token(home)
                assert verifier.verify(after)
                await process.safekeeping.keep()
            restore(home, copy)
            with pytest.raises(LedgerRolledBack):
                async with serving(home, listening):
                    pass
            accept(home.config, actor="ops-anna", reason="test", hold=False)
            async with serving(home, listening):
                new = await token(home)
                await fresh(verifier)
                assert verifier.verify(new).agent == "dispute-bot"
                for old in (before, after):
                    with pytest.raises(InvalidToken):
                        verifier.verify(old)

    async def fresh(verifier: Verifier) -> None:
        """Wait until the verifier has heard of the broker that stands there now."""
        async with asyncio.timeout(20):
            while True:
                try:
                    verifier.verify(await token(home))
                except (SdkError, httpx2.HTTPError):
                    await asyncio.sleep(0.05)
                else:
                    return

    asyncio.run(story())
    listening.close()


@contextlib.asynccontextmanager
async def serving(home: Home, listening: socket.socket) -> AsyncIterator[Process]:
    async with running(home.config, now=wall_clock) as process:
        options = uvicorn.Config(process.app, log_config=None, lifespan="off", ws="none", timeout_graceful_shutdown=2)
        server = uvicorn.Server(options)
        task = asyncio.create_task(server.serve([listening.dup()]))
        try:
            yield process
        finally:
            assert process.feed is not None
            await process.feed.stop()
            server.should_exit = True
            await task


async def token(home: Home) -> str:
    form = {"grant_type": "client_credentials", "client_assertion": home.proof("dispute-bot"), "resource": INVOICES}
    form["client_assertion_type"] = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
    async with httpx2.AsyncClient(base_url=home.issuer, timeout=10) as http:
        answer = await http.post("/oauth2/token", data=form)
    return str(answer.json()["access_token"])


class Said:
    """An identity of the SDK: signs for one verifier."""

    def __init__(self, home: Home, subject: str) -> None:
        self.home, self.subject = home, subject

    def assertion(self, audience: str) -> str:
        return self.home.assertion(self.subject, aud=audience)
