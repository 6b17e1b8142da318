"""`taskpass db upgrade` on PostgreSQL, as it is typed."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from broker.ledger import postgres_schema
from tests.cli.conftest import Ran
from tests.postgres import Server, server_or_skip

Run = Callable[..., Ran]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = server_or_skip(fsync="off")
    yield server
    server.close()


@pytest.fixture
def place(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new broker's directory, and the current one; its ledger is wherever the environment says."""
    place = tmp_path / "new"
    run("init", place, "--issuer", "http://127.0.0.1:8700")
    text = (place / "taskpass.toml").read_text()
    (place / "taskpass.toml").write_text(text.replace('path = "data/ledger.db"', 'state_path = "data"'))
    monkeypatch.chdir(place)
    return place


@pytest.mark.usefixtures("place")
def test_a_ledger_is_created_once_and_upgraded_when_it_must_be(
    server: Server, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TASKPASS_LEDGER__URL", server.url(server.new_database()))
    version = postgres_schema.newest()

    created = run("db", "upgrade", "-o", "json").json
    assert (created["created"], created["to"]) == (True, version)
    assert "taskpass@" not in created["ledger"]
    assert f"has version {version} already" in run("db", "upgrade").out

    known = postgres_schema.migrations()
    later = (version + 1, "CREATE TABLE later (x TEXT) STRICT;\n")
    monkeypatch.setattr(postgres_schema, "migrations", lambda: [*known, later])
    assert f"from version {version} to {version + 1}" in run("db", "upgrade").out


@pytest.mark.usefixtures("place")
def test_a_database_that_is_not_there_is_an_error_without_a_password(
    server: Server, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.url("nowhere").replace("taskpass@", "taskpass:secret@")
    monkeypatch.setenv("TASKPASS_LEDGER__URL", url)
    failed = run("db", "upgrade", code=1)
    assert "cannot be opened" in failed.err
    assert "secret" not in failed.err + failed.out
