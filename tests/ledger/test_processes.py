"""Several processes on one ledger file, and processes that die while they write."""

import contextlib
import fcntl
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from broker.ledger.sqlite import SqliteLedger
from broker.ledger.turns import Turns, TurnTimeout
from broker.ledger.verify import verify_ledger
from tests.ledger.kit import Made, Note

ROOT = Path(__file__).parents[2]


@pytest.fixture
def real_time(made: Made) -> Made:
    """The children read the host's clock, so this process has to be no further."""
    made.clock.now = time.time_ns() // 1_000_000
    return made


@contextlib.contextmanager
def child(*arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "tests.ledger.child", *map(str, arguments)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def positions(output: bytes) -> list[int]:
    return [int(line) for line in output.split() if line.isdigit()]


def stored(ledger: SqliteLedger) -> list[int]:
    with ledger.read() as reader:
        return [seq for (seq,) in reader.execute("SELECT seq FROM events ORDER BY seq")]


def test_two_processes_and_this_one_share_the_positions(real_time: Made) -> None:
    ledger = real_time.open()
    with child("write", real_time.path, 120, 3) as one, child("write", real_time.path, 120, 3) as two:
        mine = [seq for _ in range(60) for seq in ledger.commit([Note()] * 2)]
        outputs = [process.communicate(timeout=30)[0] for process in (one, two)]
    theirs = [positions(output) for output in outputs]
    assert sorted([0, *mine, *theirs[0], *theirs[1]]) == stored(ledger) == list(range(1 + 120 + 720))
    report = verify_ledger(real_time.path)
    assert report.sound, report.findings


def test_a_busy_process_lets_another_have_its_turn(real_time: Made) -> None:
    """While both write without a pause, the turns alternate."""
    ledger = real_time.open()
    with child("write", real_time.path, 100_000, 8) as busy:
        assert busy.stdout is not None
        busy.stdout.readline()
        mine = [ledger.commit([Note()])[0] for _ in range(100)]
    between = sorted(later - earlier - 1 for earlier, later in pairwise(mine))
    # Fair means one batch of 8 between two of mine, starved means hundreds. A stalled machine may add some.
    assert between[len(between) // 2] <= 10 * 8, between


def test_ordinary_writers_wait_while_a_kill_is_pending(tmp_path: Path) -> None:
    path, order = tmp_path / "x.db", []
    turns = [Turns(path, timeout_s=10) for _ in range(3)]
    waiting = threading.Barrier(3)

    def take(place: Turns, name: str, *, priority: bool) -> None:
        waiting.wait(10)
        with place.taken(priority=priority):
            order.append(name)

    with turns[0].taken(priority=False):
        threads = [
            threading.Thread(target=take, args=(turns[1], "ordinary"), kwargs={"priority": False}),
            threading.Thread(target=take, args=(turns[2], "kill"), kwargs={"priority": True}),
        ]
        for thread in threads:
            thread.start()
        waiting.wait(10)
        # The kill says that it is coming before it waits for the turn: from then on nobody else may take it.
        probe = os.open(path.with_name("x.db.kill"), os.O_RDWR)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and not is_shared(probe):
            time.sleep(0.0005)
        os.close(probe)
    for thread in threads:
        thread.join(10)
    assert order == ["kill", "ordinary"]
    for place in turns:
        place.close()


def is_shared(descriptor: int) -> bool:
    """Whether somebody holds the lock shared: then an exclusive one is refused and a shared one is not."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        return True
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False


def test_an_ordinary_writer_gives_up_while_a_kill_keeps_pending(tmp_path: Path) -> None:
    kill, ordinary = (Turns(tmp_path / "x.db", timeout_s=seconds) for seconds in (10, 0.05))
    with kill.taken(priority=True), pytest.raises(TurnTimeout), ordinary.taken(priority=False):
        pytest.fail("took the turn")
    with ordinary.taken(priority=False):
        pass
    for place in (kill, ordinary):
        place.close()


def test_a_process_that_dies_gives_its_turn_back(real_time: Made) -> None:
    ledger = real_time.open(turn_timeout_s=0.1)
    with child("hold", real_time.path) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(Exception, match="busy"):
            ledger.commit([Note()])
        holder.kill()
        holder.wait(10)
    assert ledger.commit([Note()]) == [1]


@pytest.mark.parametrize("after", ["before", "after"])
def test_killed_at_any_statement(real_time: Made, after: str) -> None:
    """SIGKILL at the n-th statement of a commit that also fills tiles, n = 1, 2, ... until one runs clean."""
    number, clean = 0, False
    while not clean:
        number += 1
        with child("die", real_time.path, number, after) as process:
            output, _ = process.communicate(timeout=30)
        clean = output.endswith(b"clean\n")
        ledger = real_time.open()
        report = verify_ledger(real_time.path)
        assert report.sound, report.findings
        assert set(positions(output)) <= set(stored(ledger)), "what was acknowledged is there"
        assert report.size % 300 == 1, "a batch is there whole or not at all"
        real_time.clock.now = report.time
        real_time.close()
    assert number > 6


def test_killed_at_any_moment(real_time: Made) -> None:
    chance = random.Random(7)
    acknowledged: set[int] = set()
    for _ in range(4):
        with child("write", real_time.path, 100_000, 5) as one, child("write", real_time.path, 100_000, 5) as two:
            for process in (one, two):
                assert process.stdout is not None
                acknowledged.update(int(process.stdout.readline()) for _ in range(chance.randrange(1, 200)))
            one.kill()
            two.kill()
            for process in (one, two):
                acknowledged.update(positions(process.communicate(timeout=30)[0]))
        report = verify_ledger(real_time.path)
        assert report.sound, report.findings
        real_time.clock.now = report.time
        ledger = real_time.open()
        assert acknowledged <= set(stored(ledger))
        assert ledger.commit([Note()]) == [report.size]
        acknowledged.add(report.size)
        real_time.close()
