"""A ledger moves from any store to any other, and is never served twice."""

import os
import signal
import sqlite3
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import orjson
import pytest
from pydantic import SecretStr

from broker.config import Config, LedgerSection
from broker.custody import copy_out, is_unaccepted_copy, move_in, move_out
from broker.errors import ConfigurationInvalid, Conflict
from broker.ledger import LedgerMoved, LedgerNotOpened
from broker.ledger.spool import Spool
from broker.ledger.transfer import ExportInvalid, LedgerUnsound
from broker.ledger.verify import verify_store
from broker.sealing import KeySealer
from broker.stores import ledger_exists, ledger_to_verify, open_ledger
from tests.kit import Broker, Home
from tests.ledger.kit import Note
from tests.postgres import Server


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "broker")


@pytest.fixture
def start(home: Home) -> Iterator[Callable[[], Broker]]:
    with ExitStack() as stack:
        yield lambda: stack.enter_context(closing(Broker(home)))


@pytest.fixture
def elsewhere(server: Server) -> Callable[[Config, str], Config]:
    """The same configuration with an empty store of the named kind."""

    def make(config: Config, kind: str) -> Config:
        folder = config.registry.path.parent / f"new-{server.new_database()}"
        folder.mkdir()
        section = LedgerSection(path=folder / "ledger.db")
        if kind == "postgres":
            section = LedgerSection(url=SecretStr(server.url(server.new_database())), state_path=folder)
        return config.model_copy(update={"ledger": section})

    return make


Elsewhere = Callable[[Config, str], Config]


def sound(config: Config) -> bool:
    return verify_store(ledger_to_verify(config)).sound


def test_there_and_back_again(home: Home, start: Callable[[], Broker], elsewhere: Elsewhere, tmp_path: Path) -> None:
    broker = start()
    token = broker.granted()["access_token"]
    task = broker.open_task()
    for _ in range(3):
        broker.granted(task=task)
    paused = broker.kill("agent", "mesh-bot").json()
    epoch = broker.process.ledger.head.epoch
    broker.close()
    for number, kind in enumerate(("postgres", "sqlite")):
        source, file = home.config, tmp_path / f"ledger-{number}.export"
        moved = move_out(source, file, actor="ops-anna", reason="growth", now=home.clock)
        assert (moved.kind, moved.epoch) == ("move", epoch)
        home.config = elsewhere(home.config, kind)
        move_in(home.config, file, now=home.clock)
        assert sound(source)
        assert sound(home.config)
        with pytest.raises(LedgerMoved):
            Broker(type("Old", (), {"config": source, "clock": home.clock, "issuer": home.issuer})())  # type: ignore[arg-type]
        broker = Broker(home)
        assert broker.process.ledger.head.epoch == epoch
        assert broker.active(token)
        assert broker.granted(task=task)
        assert broker.get(f"/v1/kills/{paused['kill']['id'] if 'kill' in paused else paused['id']}", by="operator")
        assert broker.get("/v1/ledger/proof/3", by="operator").status_code == 200
        broker.close()


def test_a_running_broker_stops_when_its_ledger_moves(home: Home, start: Callable[[], Broker], tmp_path: Path) -> None:
    broker = start()
    broker.granted()
    move_out(home.config, tmp_path / "file", actor="ops-anna", reason="growth", now=home.clock)
    assert broker.token().status_code == 503
    assert isinstance(broker.run(_result(broker)), LedgerMoved)


async def _result(broker: Broker) -> object:
    return await broker.process.unusable


def test_a_copy_serves_nobody_until_it_is_accepted(home: Home, elsewhere: Elsewhere, tmp_path: Path) -> None:
    file = tmp_path / "copy"
    assert copy_out(home.config, file).kind == "copy"
    assert not is_unaccepted_copy(home.config)
    copied = elsewhere(home.config, "sqlite")
    move_in(copied, file, now=home.clock)
    assert is_unaccepted_copy(copied)
    with pytest.raises(Conflict):
        move_out(copied, tmp_path / "again", actor="a", reason="r", now=home.clock)
    with closing(open_ledger(home.config, now=home.clock)) as original:
        assert original.commit([Note()]) != []


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_target_with_a_ledger_is_left_alone(home: Home, elsewhere: Elsewhere, tmp_path: Path, kind: str) -> None:
    file = tmp_path / "file"
    move_out(home.config, file, actor="a", reason="r", now=home.clock)
    target = elsewhere(home.config, kind)
    move_in(target, file, now=home.clock)
    before = verify_store(ledger_to_verify(target)).root
    with pytest.raises(LedgerNotOpened):
        move_in(target, file, now=home.clock)
    assert verify_store(ledger_to_verify(target)).root == before


def _without_the_last_line(lines: list[bytes]) -> list[bytes]:
    return lines[:-1]


def _half_a_line(lines: list[bytes]) -> list[bytes]:
    return [*lines[:5], lines[5][:10]]


def _another_event(lines: list[bytes]) -> list[bytes]:
    return [line.replace(b"first key", b"worst key") for line in lines]


def _no_hold(lines: list[bytes]) -> list[bytes]:
    return [line for line in lines if not line.startswith(b'["holds"')]


def _another_order(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[2], lines[1], *lines[3:]]


def _a_row_more(lines: list[bytes]) -> list[bytes]:
    return [*lines[:-1], b'["proofs",{"b":"AAAA"},1]\n', lines[-1]]


def _something_after(lines: list[bytes]) -> list[bytes]:
    return [*lines, b"x"]


def _another_kind(lines: list[bytes]) -> list[bytes]:
    return [lines[0].replace(b'"kind":"copy"', b'"kind":"move"'), *lines[1:]]


def _a_newer_program(lines: list[bytes]) -> list[bytes]:
    header = orjson.loads(lines[0])
    header["columns"]["novelties"] = ["id"]
    return [orjson.dumps(header) + b"\n", *lines[1:]]


CHANGES = [
    _without_the_last_line,
    _half_a_line,
    _another_event,
    _no_hold,
    _another_order,
    _a_row_more,
    _something_after,
    _another_kind,
    _a_newer_program,
    lambda _: [],
    lambda _: [b"hello\n"],
    lambda lines: [lines[0], b"[1\n"],
    lambda lines: [lines[0], b'["head"]\n'],
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, Path]:
    home = Home(tmp_path_factory.mktemp("exported") / "broker")
    with closing(Broker(home)) as broker:
        broker.granted()
        broker.kill("agent", "mesh-bot")
    file = home.path / "copy"
    copy_out(home.config, file)
    return home, file


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_is_not_as_it_was_written_leaves_nothing(
    exported: tuple[Home, Path],
    elsewhere: Elsewhere,
    tmp_path: Path,
    kind: str,
    change: Callable[[list[bytes]], list[bytes]],
) -> None:
    home, file = exported
    lines = file.read_bytes().splitlines(keepends=True)
    assert change(lines) != lines
    changed = tmp_path / "changed"
    changed.write_bytes(b"".join(change(lines)))
    target = elsewhere(home.config, kind)
    with pytest.raises((ExportInvalid, LedgerUnsound)):
        move_in(target, changed, now=home.clock)
    assert not ledger_exists(target)
    move_in(target, file, now=home.clock)
    assert sound(target)


def test_another_encryption_key_opens_nothing(
    exported: tuple[Home, Path], elsewhere: Elsewhere, tmp_path: Path
) -> None:
    home, file = exported
    KeySealer.create_file(tmp_path / "other.key")
    target = elsewhere(home.config, "sqlite")
    keys = target.keys.model_copy(update={"encryption_key_file": tmp_path / "other.key"})
    with pytest.raises(ConfigurationInvalid, match="another encryption key"):
        move_in(target.model_copy(update={"keys": keys}), file, now=home.clock)
    assert not ledger_exists(target)


def test_a_damaged_ledger_is_neither_sealed_nor_written(home: Home, tmp_path: Path) -> None:
    with closing(sqlite3.connect(home.config.ledger.path, isolation_level=None)) as connection:
        connection.execute("UPDATE events SET bytes = CAST(replace(bytes, 'first', 'worst') AS BLOB) WHERE seq = 2")
    with pytest.raises(LedgerUnsound):
        move_out(home.config, tmp_path / "file", actor="a", reason="r", now=home.clock)
    with pytest.raises(LedgerUnsound):
        copy_out(home.config, tmp_path / "file")
    assert not (tmp_path / "file").exists()
    with closing(open_ledger(home.config, now=home.clock)) as ledger:
        assert ledger.head.sealed == ""


def test_kills_that_wait_keep_a_ledger_where_it_is(home: Home, tmp_path: Path) -> None:
    with closing(Spool.open(home.config.ledger.side_file(".spool"))) as spool:
        spool.put(b"{}")
    with pytest.raises(Conflict, match="1 kills wait"):
        move_out(home.config, tmp_path / "file", actor="a", reason="r", now=home.clock)


_CHILD = """
import os, signal, sys
from pathlib import Path
from broker import custody
from broker.config import load_config
from broker.ledger import transfer
at, config, file = sys.argv[1], load_config(Path(sys.argv[2])), Path(sys.argv[3])
def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
if at == "sealed": custody.export_ledger = die
if at == "written": os.link = die
if at == "filled": transfer.ensure_sound = die
if at == "linked": os.link = die
if at in ("sealed", "written"): custody.move_out(config, file, actor="a", reason="r")
else: custody.move_in(config, file)
"""


def _killed_at(place: str, config: Path, file: Path, **environment: str) -> None:
    command = [sys.executable, "-c", _CHILD, place, str(config), str(file)]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


@pytest.mark.parametrize("place", ["sealed", "written"])
def test_a_move_that_was_killed_is_run_again(home: Home, tmp_path: Path, place: str) -> None:
    file = tmp_path / "file"
    _killed_at(place, home.path / "taskpass.toml", file)
    assert not file.exists()
    with closing(open_ledger(home.config, now=home.clock)) as ledger, pytest.raises(LedgerMoved):
        ledger.commit([Note()])
    assert move_out(home.config, file, actor="a", reason="r", now=home.clock).kind == "move"


@pytest.mark.parametrize(("place", "kind"), [("filled", "sqlite"), ("linked", "sqlite"), ("filled", "postgres")])
def test_an_import_that_was_killed_leaves_nothing_and_is_run_again(
    exported: tuple[Home, Path], elsewhere: Elsewhere, place: str, kind: str
) -> None:
    home, file = exported
    target = elsewhere(home.config, kind)
    where = (
        {"TASKPASS_LEDGER__PATH": str(target.ledger.path)}
        if target.ledger.url is None
        else {
            "TASKPASS_LEDGER__URL": target.ledger.url.get_secret_value(),
            "TASKPASS_LEDGER__STATE_PATH": str(target.ledger.state_path),
        }
    )
    config = home.path / "taskpass.toml"
    if kind == "postgres":
        config = home.path / "postgres.toml"
        lines = (home.path / "taskpass.toml").read_text().splitlines()
        config.write_text("\n".join(line for line in lines if not line.startswith('path = "data/ledger.db"')))
    _killed_at(place, config, file, **where)
    assert not ledger_exists(target)
    move_in(target, file, now=home.clock)
    assert sound(target)


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_ledger_is_never_held_in_memory(home: Home, elsewhere: Elsewhere, tmp_path: Path, kind: str) -> None:
    file = tmp_path / "file"
    with closing(open_ledger(home.config, now=home.clock)) as ledger:
        for _ in range(10):
            ledger.commit([Note("x" * 1_000) for _ in range(1_000)])
    target = elsewhere(home.config, kind)
    tracemalloc.start()
    try:
        move_out(home.config, file, actor="a", reason="r", now=home.clock)
        move_in(target, file, now=home.clock)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert file.stat().st_size > 10 << 20
    assert peak < 6 << 20, peak
