"""`taskpass doctor` on ledgers that were copied, moved, restored, or lie where several machines reach them."""

import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from broker.config import KeptSection, LedgerSection
from broker.ledger import LedgerUnavailable, whereabouts
from broker.ledger.whereabouts import LedgerAtRest, file_system, is_shared
from tests.cli.conftest import Ran
from tests.kit import Broker, Home
from tests.postgres import server_or_skip


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "broker")


@pytest.fixture
def found(run: Callable[..., Ran], home: Home, monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, Any]]:
    """What the doctor finds on the home's machine: check -> finding. There is no broker that answers."""

    def look() -> dict[str, Any]:
        monkeypatch.setenv("TASKPASS_LEDGER__PATH", str(home.config.ledger.path))
        if home.config.kept.file is not None:
            monkeypatch.setenv("TASKPASS_KEPT__FILE", str(home.config.kept.file))
        rows = run("doctor", "--config", home.path / "taskpass.toml", "-o", "json", code=1).json
        return {row["check"]: row for row in rows}

    return look


def served(home: Home, *, tokens: int = 0, keep: bool = False) -> None:
    """A broker was here."""
    with closing(Broker(home)) as broker:
        for _ in range(tokens):
            assert broker.granted()
        if keep:
            broker.run(broker.process.safekeeping.keep())


def at(home: Home, path: Path) -> None:
    """The home's ledger is there from now on."""
    home.config = home.config.model_copy(update={"ledger": LedgerSection(path=path, origin=home.config.ledger.origin)})


def copied(home: Home) -> Path:
    """A copy of the ledger alone, in another directory."""
    place = home.path / "elsewhere"
    place.mkdir(mode=0o700)
    return Path(shutil.copyfile(home.config.ledger.path, place / "ledger.db"))


def test_the_same_file_under_another_name_is_no_copy(home: Home, found: Callable[[], dict[str, Any]]) -> None:
    served(home)
    assert found()["ledger copy"]["state"] == "ok"
    place = home.path / "renamed"
    place.mkdir(mode=0o700)
    at(home, home.config.ledger.path.rename(place / "other.db"))
    assert found()["ledger copy"]["state"] == "ok"


def test_a_copy_is_known_before_it_is_served_and_after(home: Home, found: Callable[[], dict[str, Any]]) -> None:
    served(home, tokens=2)
    original = home.config.ledger.path
    at(home, copied(home))
    finding = found()["ledger copy"]
    assert finding["state"] == "warning"
    assert "another file" in finding["detail"]
    assert "accept-restore" in finding["fix"]
    served(home)
    finding = found()["ledger copy"]
    assert (finding["state"], "since position" in finding["detail"]) == ("warning", True)
    assert "stop it there" in finding["fix"]
    home.clock.forward(31 * 86_400)
    served(home)
    assert found()["ledger copy"]["state"] == "ok", "it has been so for a month"
    at(home, original)
    assert found()["ledger copy"]["state"] == "ok", "the original cannot know: only a kept checkpoint could tell"


def test_what_is_kept_outside_tells_of_a_ledger_that_goes_on_elsewhere(
    home: Home, found: Callable[[], dict[str, Any]], tmp_path: Path
) -> None:
    served(home)
    assert found()["checkpoint"]["state"] == "warning"
    home.config = home.config.model_copy(update={"kept": KeptSection(file=tmp_path / "checkpoint")})
    served(home, keep=True)
    assert found()["checkpoint"]["state"] == "ok"
    original = home.config.ledger.path
    at(home, copied(home))
    assert found()["checkpoint"]["state"] == "ok", "so far both are the same"
    served(home, tokens=2, keep=True)
    at(home, original)
    finding = found()["checkpoint"]
    assert finding["state"] == "wrong"
    assert "once had" in finding["detail"]
    assert "stop it there" in finding["fix"]
    assert "accept-restore" in finding["fix"]


def test_a_restored_database_is_known_by_what_is_kept_outside(
    tmp_path: Path, run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(server_or_skip(fsync="off")) as server:
        monkeypatch.setenv("TASKPASS_TEST_POSTGRES", server.url())
        home = Home(tmp_path / "broker")
        home.config = home.config.model_copy(update={"kept": KeptSection(file=tmp_path / "checkpoint")})
        assert home.config.ledger.url is not None
        url = home.config.ledger.url.get_secret_value()
        database = url.rpartition("/")[2]
        server.run(f"CREATE DATABASE backup_{database} TEMPLATE {database}")
        served(home, tokens=1, keep=True)
        monkeypatch.setenv("TASKPASS_KEPT__FILE", str(tmp_path / "checkpoint"))
        home.replace("taskpass.toml", 'path = "data/ledger.db"', 'state_path = "data"')
        states = []
        for each in (url, url.replace(database, f"backup_{database}")):
            monkeypatch.setenv("TASKPASS_LEDGER__URL", each)
            rows = run("doctor", "--config", home.path / "taskpass.toml", "-o", "json", code=1).json
            states += [row["state"] for row in rows if row["check"] == "checkpoint"]
        assert states == ["ok", "wrong"]


def test_looking_changes_nothing(home: Home, found: Callable[[], dict[str, Any]]) -> None:
    served(home, tokens=1)
    place = home.config.ledger.path.parent

    def seen() -> dict[str, tuple[int, bytes]]:
        return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in place.iterdir() if path.is_file()}

    before = seen()
    found()
    assert seen() == before
    with LedgerAtRest.opened(home.config.ledger.path) as ledger, pytest.raises(LedgerUnavailable):
        ledger.commit([])


def test_a_ledger_beside_a_running_broker_can_be_looked_at(home: Home, found: Callable[[], dict[str, Any]]) -> None:
    with closing(Broker(home)) as broker:
        assert broker.granted()
        rows = found()
    assert rows["ledger"]["state"] == rows["ledger copy"]["state"] == "ok"


def test_a_file_that_is_no_ledger_is_named(home: Home, found: Callable[[], dict[str, Any]]) -> None:
    home.config.ledger.path.write_bytes(b"nothing of the kind" * 100)
    assert found()["ledger"]["state"] == "wrong"


def test_a_network_file_system_is_wrong(
    home: Home, found: Callable[[], dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert "ledger place" not in found()
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"24 1 0:25 / / rw - ext4 /dev/sda1 rw\n30 24 0:40 / {home.path} rw - nfs4 server:/x rw\n")
    monkeypatch.setattr(whereabouts, "_MOUNTS", mounts)
    finding = found()["ledger place"]
    assert (finding["state"], "nfs4" in finding["detail"]) == ("wrong", True)
    assert "PostgreSQL" in finding["fix"]


MOUNTS = """24 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
25 24 0:30 / /data rw - xfs /dev/sdb1 rw
26 25 0:31 / /data/with\\040space rw - cifs //server/share rw
27 24 0:32 / /hidden rw - nfs server:/y rw
28 24 0:33 / /hidden rw - btrfs /dev/sdc rw
29 24 0:34 / /data/far rw - fuse.sshfs host:/ rw
a line that is none
"""


@pytest.mark.parametrize(
    ("path", "kind", "shared"),
    [
        ("/var/lib", "ext4", False),
        ("/data", "xfs", False),
        ("/database", "ext4", False),
        ("/data/with space/x", "cifs", True),
        ("/hidden/x", "btrfs", False),
        ("/data/far", "fuse.sshfs", True),
    ],
)
def test_which_file_system_a_path_is_on(path: str, kind: str, shared: bool) -> None:
    assert file_system(Path(path), MOUNTS) == kind
    assert is_shared(kind) == shared
