"""What an issuer says of a backend before the first request: real servers, set up well and set up wrong."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from issuers import Examiner, SecretIssuer, Seen, clock_seen
from issuers.postgres import PostgresIssuer, server_of
from issuers.vault import Login
from issuers.x509 import X509Issuer, authority_of
from tests.issuers import vault as kit
from tests.issuers.postgres_harness import ADMIN_PASSWORD, a_server
from tests.issuers.x509_harness import write_authority
from tests.postgres import Server

HOUR_MS = 3_600_000


def examined(issuer: SecretIssuer, resources: Mapping[str, Mapping[str, Any]], *, ahead_ms: int = 0) -> list[Seen]:
    assert isinstance(issuer, Examiner)
    return list(issuer.examine(resources, kit.wall() + ahead_ms))


def wrong(found: list[Seen]) -> list[str]:
    """What is not as it should be. Whoever is told that is told what to do as well."""
    assert all(seen.advice for seen in found if seen.state != "ok")
    return [f"{seen.what}: {seen.sentence}" for seen in found if seen.state != "ok"]


# --- PostgreSQL -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = a_server(fsync="off")
    made.run("CREATE ROLE boss SUPERUSER; CREATE ROLE heir; CREATE ROLE clerk LOGIN PASSWORD 'x'")
    yield made
    made.close()


def postgres(server: Server, place: Path, *, user: str = "tp_admin", **more: Any) -> PostgresIssuer:
    file = place / "password"
    file.write_text(ADMIN_PASSWORD)
    dsn = f"postgresql://{user}@127.0.0.1:{server.port}/app"
    return PostgresIssuer(server=server_of({"dsn": dsn, "password_file": str(file), **more}), ledger="examined")


def test_a_sound_server_gives_nothing_to_do(server: Server, tmp_path: Path) -> None:
    issuer = postgres(server, tmp_path)
    resources = {"a": {"roles": "app_read", "dbname": "app"}, "b": {"roles": {"x": "app_write", "y": "app_read"}}}
    found = examined(issuer, resources)
    issuer.shut_down()
    assert wrong(found) == []
    assert [seen.what for seen in found] == ["server", "rights", "clock", "role", "role"]


def test_each_thing_wrong_at_postgresql_is_named(server: Server, tmp_path: Path) -> None:
    issuer = postgres(server, tmp_path, owned="reassign", reassign_to="heir")
    resources = {"a": {"roles": {"x": "nobody", "y": "boss"}, "dbname": "elsewhere"}, "wrong": {"role": "typo"}}
    told = wrong(examined(issuer, resources, ahead_ms=HOUR_MS))
    issuer.shut_down()
    assert told == [
        "clock: 3600 s behind ours",
        "role: boss is a superuser, and so would every login be",
        "role: there is no nobody",
        "database: there is no elsewhere",
        "role: the broker is no member of heir, so it cannot reassign objects to it",
    ]


def test_an_admin_role_with_other_rights_is_told(server: Server, tmp_path: Path) -> None:
    more = {"password_env": None, "password_file": str(tmp_path / "clerks")}
    (tmp_path / "clerks").write_text("x")
    clerk = postgres(server, tmp_path, user="clerk", **more)
    assert "rights: clerk may not make roles" in wrong(examined(clerk, {}))
    clerk.shut_down()
    root = postgres(server, tmp_path, user="taskpass", owned="reassign", reassign_to="gone")
    told = wrong(examined(root, {}))
    root.shut_down()
    assert told[0] == "rights: taskpass is a superuser: the broker needs CREATEROLE only"
    assert told[1].startswith("role: there is no gone")


def test_a_server_that_does_not_let_us_in_shows_no_password(server: Server, tmp_path: Path) -> None:
    issuer = postgres(server, tmp_path)
    (tmp_path / "password").write_text("hush-hush")
    [told] = wrong(examined(issuer, {"a": {"roles": "app_read"}}))
    assert "does not let the broker in" in told
    assert "hush" not in told
    away = PostgresIssuer(server=server_of({"dsn": "postgresql://x@127.0.0.1:1/x"}), ledger="examined")
    assert "cannot be reached" in wrong(examined(away, {}))[0]


# --- Vault ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kit.Site]:
    if shutil.which("bao") is None:
        pytest.skip("bao is not on the PATH")
    made = kit.Site(tmp_path_factory.mktemp("vault"))
    yield made
    made.close()


@pytest.mark.bao
def test_a_sound_vault_gives_nothing_to_do_and_keeps_nothing(site: kit.Site) -> None:
    site.new_broker_token()
    before = set(site.bao.accessors())
    found = examined(site.issuer(), {str(n): settings for n, settings in enumerate((kit.SEVERED, *kit.ALL))})
    assert wrong(found) == []
    assert {seen.what for seen in found} == {"login", "rights", "mount", "clock", "admin"}
    assert {seen.sentence for seen in found if "database/creds/writer" in seen.sentence} == {
        "3: database/creds/writer, an engine of type database"
    }
    assert set(site.bao.accessors()) == before
    assert site.bao.leases("database/creds/readonly") == []


@pytest.mark.bao
def test_each_thing_wrong_at_vault_is_named(site: kit.Site, tmp_path: Path) -> None:
    site.new_broker_token()
    told = wrong(
        examined(
            site.issuer(),
            {
                "unknown": {"path": "database/creds/unknown"},
                "unmounted": {"path": "nowhere/creds/x", "policy": "taskpass-database-creds-readonly"},
                "misspelled": "path",  # type: ignore[dict-item]
            },
            ahead_ms=-HOUR_MS,
        )
    )
    assert told[0].startswith("rights: the broker's policy lacks sys/leases/revoke/database/creds/unknown/*")
    assert told[1].startswith("session: none for unknown: ")
    assert any(each.startswith("mount: unmounted: nothing is mounted at nowhere/creds/x") for each in told)
    # Vault states whole seconds: one may have passed between its answer and our look.
    assert {"clock: 3599 s ahead of ours", "clock: 3600 s ahead of ours"} & set(told)
    assert site.bao.leases("database/creds/readonly") == []


@pytest.mark.bao
def test_a_broker_with_too_few_rights_too_many_or_none_is_told(site: kit.Site, tmp_path: Path) -> None:
    site.new_broker_token(policies=["taskpass-secret-data-mail"])
    told = wrong(examined(site.issuer(), {"a": kit.READONLY}))
    assert told
    assert all(site.token_file.read_text() not in each for each in told)
    site.new_broker_token(policies=["root"])
    assert wrong(examined(site.issuer(), {}))[0].startswith("login: it answers, and the broker has the root policy")
    file = tmp_path / "token"
    file.write_text("s.nothing")
    assert "cannot log in" in wrong(examined(site.issuer(login=Login("token", file)), {}))[0]
    site.new_broker_token()
    site.admin_file.write_text("postgresql://x@127.0.0.1:1/x")
    try:
        assert "admin: orders: The admin connection to the database failed." in wrong(
            examined(site.issuer(), {"a": kit.SEVERED})
        )
    finally:
        site.admin_file.write_text(site.postgres.url())


# --- Here -------------------------------------------------------------------------------------------------------------


def test_an_authority_that_ends_is_told_in_time(tmp_path: Path) -> None:
    issuer = X509Issuer(authority=authority_of(write_authority(tmp_path)), now=kit.wall)
    ends = int(issuer._chain[0].not_valid_after_utc.timestamp() * 1000)
    states = [
        [seen.state for seen in issuer.examine({}, ends - left_s * 1000)] for left_s in (40 * 86_400, 86_400, 60, -1)
    ]
    assert states == [["ok"], ["warning"], ["wrong"], ["wrong"]]


def test_clocks_may_differ_a_little() -> None:
    assert [clock_seen(s, 1_000_000).state for s in (969, 970, 1000, 1030, 1031)] == [
        "wrong",
        "ok",
        "ok",
        "ok",
        "wrong",
    ]
