"""`taskpass validate`, which asks nobody, and what `taskpass doctor` says of issuers and their secrets."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Ran
from tests.cli.test_cli_postgres_setup import RESOURCE, SECTION
from tests.issuers.x509_harness import write_authority

Run = Callable[..., Ran]
NOBODY = SECTION.replace(":5432", ":1")


@pytest.fixture
def place(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    new = tmp_path / "new"
    run("init", new, "--issuer", "http://127.0.0.1:8700")
    monkeypatch.chdir(new)
    return new


def add(file: Path, text: str) -> None:
    file.write_text(file.read_text() + text)


def found(ran: Ran) -> list[tuple[str, str]]:
    return [(row["check"], row["state"]) for row in ran.json]


def test_sound_files_pass_without_anybody_there(place: Path, run: Run) -> None:
    add(place / "taskpass.toml", NOBODY)
    add(place / "registry/resources.yaml", RESOURCE)
    (place / "data/ledger.db").unlink()
    ran = run("validate", "-o", "json")
    assert found(ran) == [(name, "ok") for name in ("configuration", "registry", "policies", "policy cases", "issuers")]
    assert "1 issuer, 1 resource with secrets" in run("validate").out


@pytest.mark.parametrize(
    ("section", "resource", "says"),
    [
        (NOBODY.replace("dsn", "dns"), RESOURCE, "'dns' is no setting"),
        (NOBODY.replace("tp_admin@", "tp_admin:hush@"), RESOURCE, "must not hold a password"),
        (NOBODY, RESOURCE.replace("roles:", "rolls:"), "resource orders-db: settings: 'rolls'"),
        (
            NOBODY,
            RESOURCE.replace('"orders:write": "The Writer"', '"orders:wipe": "The Writer"'),
            "resource orders-db: settings: nothing is said for orders:write",
        ),
        (NOBODY, RESOURCE.replace("issuer: orders", "issuer: order"), "no issuer order is configured"),
        (
            '\n[issuers.orders]\nkind = "vault"\naddress = "https://v.example"\nlogin = "token"\nlogin_file = "t"\n',
            RESOURCE.replace(
                'settings: {roles: {"orders:read": reader, "orders:write": "The Writer"}}',
                "settings: {path: database/creds/x, admin: nobody}",
            ),
            "admin nobody is no connection of this issuer; there are none",
        ),
    ],
)
def test_what_is_wrong_with_an_issuer_or_its_resource_is_named(
    place: Path, run: Run, section: str, resource: str, says: str
) -> None:
    add(place / "taskpass.toml", section)
    add(place / "registry/resources.yaml", resource)
    told = run("validate", code=1)
    assert says in told.out
    assert "hush" not in told.out
    assert "-> Correct" in told.out


def test_there_must_be_something_to_check(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "no taskpass.toml" in run("validate", code=2).err


def issuer_rows(run: Run, name: str) -> list[dict[str, Any]]:
    return [row for row in run("doctor", "-o", "json", code=1).json if row["check"] == name]


def test_doctor_asks_the_backends(place: Path, run: Run) -> None:
    add(place / "taskpass.toml", NOBODY)
    add(place / "registry/resources.yaml", RESOURCE)
    [row] = issuer_rows(run, "orders")
    assert row["state"] == "wrong"
    assert "cannot be reached" in row["detail"]
    assert "dsn" in row["fix"]


def test_doctor_looks_at_an_authority_of_our_own(place: Path, run: Run, tmp_path: Path) -> None:
    lines = "\n".join(f'{name} = "{value}"' for name, value in write_authority(tmp_path / "ca").items())
    add(place / "taskpass.toml", f'\n[issuers.orders]\nkind = "x509"\n{lines}\n')
    [row] = issuer_rows(run, "orders")
    assert row["detail"].startswith("authority: ")


def test_doctor_tells_of_secrets_that_should_have_ended(place: Path, run: Run) -> None:
    assert not [row for row in run("doctor", "-o", "json", code=1).json if row["check"] == "secrets"]
    row = (
        "seq, task, agent, resource, audience, issuer, ending, state, expires, settles, over, next_try, handle, problem"
    )
    with closing(sqlite3.connect(place / "data/ledger.db")) as db, db:
        for seq, state in ((1, "stuck"), (2, "stuck"), (3, "revoking"), (4, "live")):
            handle, problem = f'{{"role":"tp_{seq}"}}', "It owns a table."
            values = (seq, "tsk_1", "a", "r", "u", "orders", "revocable", state, 9, 0, 1, 9, handle, problem)
            db.execute(f"INSERT INTO external_grants ({row}) VALUES ({', '.join('?' * 14)})", values)
    told = [row for row in run("doctor", "-o", "json", code=1).json if row["check"] == "secrets"]
    assert [(row["state"], row["detail"].partition(" of orders")[0]) for row in told] == [
        ("warning", "1"),
        ("wrong", "2"),
    ]
    assert told[1]["detail"].splitlines()[1:] == [
        "role=tp_1 under tsk_1: It owns a table.",
        "role=tp_2 under tsk_1: It owns a table.",
    ]
    assert "by hand" in told[1]["fix"]
