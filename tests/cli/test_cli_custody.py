"""Moving, restoring and archiving, as an operator at the machine does it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Ran

Run = Callable[..., Ran]


@pytest.fixture
def place(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new broker's directory, and the current one."""
    run("init", tmp_path / "new", "--issuer", "http://127.0.0.1:8700")
    monkeypatch.chdir(tmp_path / "new")
    return tmp_path / "new"


def test_a_ledger_moves(place: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Give --reason" in run("ledger", "export", "x", code=2).err
    moved = run("ledger", "export", "x", "--reason", "growth", "--yes", "-o", "json").json
    assert (moved["kind"], moved["file"]) == ("move", "x")
    assert (place / "x").stat().st_mode & 0o077 == 0
    assert "exists already" in run("ledger", "import", "x", code=1).err
    assert "x: " in run("ledger", "export", "x", "--reason", "again", "--yes", code=1).err
    monkeypatch.setenv("TASKPASS_LEDGER__PATH", "data/second.db")
    imported = run("ledger", "import", "x", "-o", "json").json
    assert imported["root"] == moved["root"]
    report = run("ledger", "verify", "-o", "json").json
    assert report["sound"]
    assert report["size"] == moved["size"] + 1


def test_nothing_moves_without_being_asked_for(place: Path, run: Run) -> None:
    run("ledger", "export", "x", "--reason", "growth", code=None)  # nobody says yes
    assert not (place / "x").exists()
    assert run("ledger", "verify", "-o", "json").json["sound"]
    run("ledger", "export", "x", "--copy")


def test_a_copy_is_accepted_as_a_restored_backup(place: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run("ledger", "export", "x", "--copy")
    monkeypatch.setenv("TASKPASS_LEDGER__PATH", "data/second.db")
    assert "accept-restore" in run("ledger", "import", "x").out
    assert "--reason" in run("ledger", "accept-restore", "--yes", code=2).err
    done = run("ledger", "accept-restore", "--reason", "test", "--yes", "-o", "json").json
    assert done["hold"].startswith(f"hld_{done['epoch']}_")
    assert done["epoch"] != done["previous"]
    told = run("ledger", "accept-restore", "--reason", "test", "--yes", "--no-hold").out
    assert "begins" in told
    assert "hold      none" in told
    assert run("ledger", "verify", "-o", "json").json["epoch"] != done["epoch"]


def test_a_file_that_is_no_export(place: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKPASS_LEDGER__PATH", "data/second.db")
    (place / "x").write_text("hello\n")
    assert run("ledger", "import", "x", "-o", "json", code=None).error["code"] == "export_invalid"
    assert "No such file" in run("ledger", "import", "y", code=1).err


def test_archiving(place: Path, run: Run) -> None:
    assert "--to DIRECTORY" in run("ledger", "archive", "--before", "400d", code=2).err
    for wrong in ("soon", "d", "99999999999d"):
        assert "2026-01-31" in run("ledger", "archive", "--before", wrong, "--to", "a", code=2).err
    done = run("ledger", "archive", "--before", "2026-01-31", "--to", "a", "--dry-run", "-o", "json").json
    assert (done["events"], done["dry_run"]) == (0, True)
    assert run("ledger", "archive", "--before", "400d", "--to", "a").out.startswith("Moved 0 events")
    assert run("ledger", "show", "3", "--archive", "a", "-o", "json", code=6).error["code"] == "not_found"
