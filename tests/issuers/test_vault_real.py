"""Vault's issuer against a real OpenBao, whose database engine makes logins at a real PostgreSQL.

What counts is looked at from the backends' side: with OpenBao's root token, and in PostgreSQL's own tables.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from issuers import Ending, Handle, IssuerError, Minted, Order, Standing
from issuers.vault import Login, Setup, VaultIssuer, connect, settings_of
from issuers.vault.link import Link
from tests.issuers import vault as kit
from tests.issuers.harness import new_order
from tests.issuers.vault import Site, wall
from tests.issuers.vault_flows import FLOWS, scene_at

pytestmark = pytest.mark.bao


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("vault"))
    yield made
    made.close()


@pytest.fixture
def issuer(site: Site) -> VaultIssuer:
    return site.issuer()


def order(settings: object, *, ttl_s: int = 120, **changes: object) -> Order:
    return new_order(now_s=wall() // 1000, ttl_s=ttl_s, settings=settings, **changes)


def issue(issuer: VaultIssuer, wanted: Order) -> Minted:
    return issuer.issue(wanted, issuer.prepare(wanted))


def gone(issuer: VaultIssuer, handle: Handle) -> bool:
    return issuer.status(handle).standing is Standing.GONE


# --- A lease's life --------------------------------------------------------------------------------------------------


def test_a_database_login_works_until_it_is_revoked_and_is_then_proven_gone(site: Site, issuer: VaultIssuer) -> None:
    minted = issue(issuer, order(kit.READONLY))
    with site.connect(minted.values) as session:
        assert session.execute("SELECT current_user").fetchone() == (minted.values["username"],)
    assert minted.handle["lease_id"] in site.bao.leases("database/creds/readonly")
    assert not gone(issuer, minted.handle)

    issuer.revoke(minted.handle)

    assert gone(issuer, minted.handle)
    assert minted.handle["lease_id"] not in site.bao.leases("database/creds/readonly")
    assert minted.values["username"] not in site.roles()
    with pytest.raises(psycopg.OperationalError):
        site.connect(minted.values)
    issuer.revoke(minted.handle)  # once more does no harm


def test_a_lease_lives_no_longer_than_its_order_though_the_role_would_give_more(
    site: Site, issuer: VaultIssuer
) -> None:
    wanted = order(kit.READONLY, ttl_s=40)
    minted = issue(issuer, wanted)
    lease = site.bao.ask("POST", "sys/leases/lookup", {"lease_id": minted.handle["lease_id"]})["data"]
    assert 0 < lease["ttl"] <= 40
    assert wanted.iat < minted.exp <= wanted.exp
    ((until,),) = site.postgres.run(
        f"SELECT extract(epoch FROM rolvaliduntil) FROM pg_roles WHERE rolname = '{minted.values['username']}'"
    )
    assert float(str(until)) <= wanted.exp + 10  # the engine's own grace is 5 s


def test_the_session_is_an_orphan_with_one_policy_and_ends_with_the_task(site: Site, issuer: VaultIssuer) -> None:
    wanted = order(kit.READONLY, ttl_s=60)
    wanted = wanted._replace(deadline=wanted.iat + 900)
    prepared = issuer.prepare(wanted)
    token = site.bao.ask("POST", "auth/token/lookup-accessor", {"accessor": prepared["accessor"]})["data"]
    assert token["orphan"] is True
    assert token["policies"] == ["taskpass-database-creds-readonly"]
    assert token["ttl"] <= 300
    assert token["explicit_max_ttl"] == 900
    assert token["meta"]["task"] == wanted.task
    assert "s." not in kit.dumped(dict(prepared))


def test_a_session_that_was_only_prepared_has_a_short_life_of_its_own(site: Site, issuer: VaultIssuer) -> None:
    prepared = issuer.prepare(order(kit.READONLY, ttl_s=3000))
    token = site.bao.ask("POST", "auth/token/lookup-accessor", {"accessor": prepared["accessor"]})["data"]
    assert token["ttl"] <= 300
    issuer.close(prepared)


def test_grants_of_one_task_and_resource_share_a_session_and_end_one_by_one(site: Site, issuer: VaultIssuer) -> None:
    first = order(kit.READONLY)
    one = issue(issuer, first)
    two = issue(issuer, order(kit.READONLY, task=first.task))
    other = issue(issuer, order(kit.READONLY))
    assert one.handle["accessor"] == two.handle["accessor"] != other.handle["accessor"]

    issuer.revoke(one.handle)

    assert gone(issuer, one.handle)
    assert not gone(issuer, two.handle)
    assert two.values["username"] in site.roles()


def test_concurrent_first_requests_of_a_task_open_one_session(site: Site, issuer: VaultIssuer) -> None:
    first = order(kit.READONLY)
    wanted = [first._replace(jti=f"{first.jti}{n}") for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        minted = list(pool.map(lambda each: issue(issuer, each), wanted))
    assert len({each.handle["accessor"] for each in minted}) == 1
    assert len({each.handle["lease_id"] for each in minted}) == 8
    assert {each.values["username"] for each in minted} <= site.roles()


def test_closing_a_task_ends_its_session_and_revoking_its_leases_ends_them_for_certain(
    site: Site, issuer: VaultIssuer
) -> None:
    minted = issue(issuer, order(kit.READONLY))
    issuer.close(minted.handle)
    assert minted.handle["accessor"] not in site.bao.accessors()
    issuer.revoke(minted.handle)
    assert gone(issuer, minted.handle)
    assert minted.values["username"] not in site.roles()
    issuer.close(minted.handle)


def test_nothing_is_issued_under_a_closed_session(issuer: VaultIssuer) -> None:
    wanted = order(kit.READONLY)
    prepared = issuer.prepare(wanted)
    issuer.close(prepared)
    with pytest.raises(IssuerError) as refused:
        issuer.issue(wanted, prepared)
    assert refused.value.happened is False


def test_a_session_revoked_at_vault_is_replaced_by_another(site: Site, issuer: VaultIssuer) -> None:
    wanted = order(kit.READONLY)
    prepared = issuer.prepare(wanted)
    site.bao.ask("POST", "auth/token/revoke-accessor", {"accessor": prepared["accessor"]})
    with pytest.raises(IssuerError) as refused:
        issuer.issue(wanted, prepared)
    assert refused.value.happened is False
    assert issuer.prepare(wanted)["accessor"] != prepared["accessor"]


def test_a_lease_is_renewed_up_to_the_deadline_and_no_further(site: Site, issuer: VaultIssuer) -> None:
    wanted = order(kit.READONLY, ttl_s=30)
    wanted = wanted._replace(deadline=wanted.iat + 300)
    minted = issue(issuer, wanted)
    assert abs(issuer.renew(minted.handle, wanted.iat + 200) - (wanted.iat + 200)) <= 2
    assert issuer.renew(minted.handle, wanted.iat + 3000) <= wanted.iat + 302
    lease = site.bao.ask("POST", "sys/leases/lookup", {"lease_id": minted.handle["lease_id"]})["data"]
    assert lease["ttl"] > 100
    issuer.revoke(minted.handle)
    with pytest.raises(IssuerError):
        issuer.renew(minted.handle, wanted.iat + 250)


def test_after_a_restart_what_was_issued_before_is_found_renewed_and_ended(site: Site) -> None:
    wanted = order(kit.READONLY, deadline=wall() // 1000 + 600)
    minted = issue(site.issuer(), wanted)
    restarted = site.issuer()
    assert not gone(restarted, minted.handle)
    assert restarted.renew(minted.handle, wanted.iat + 240) >= wanted.iat + 230
    with pytest.raises(IssuerError) as refused:  # the token was in memory only
        restarted.issue(wanted, {"accessor": minted.handle["accessor"], "path": minted.handle["path"]})
    assert refused.value.happened is False
    restarted.close(minted.handle)
    restarted.revoke(minted.handle)
    assert gone(restarted, minted.handle)
    assert minted.values["username"] not in site.roles()


# --- What only a whole session finds ---------------------------------------------------------------------------------


def test_a_lease_that_nobody_recorded_is_ended_with_its_session(site: Site, issuer: VaultIssuer) -> None:
    wanted = order(kit.READONLY)
    prepared = issuer.prepare(wanted)
    lost = issuer.issue(wanted, prepared)  # as if the broker had died here
    after = site.issuer()
    assert not gone(after, prepared)
    after.revoke(prepared)
    assert gone(after, prepared)
    assert lost.handle["lease_id"] not in site.bao.leases("database/creds/readonly")
    assert lost.values["username"] not in site.roles()


def test_only_prepared_and_then_revoked_is_gone(issuer: VaultIssuer) -> None:
    prepared = issuer.prepare(order(kit.READONLY))
    issuer.revoke(prepared)
    assert gone(issuer, prepared)


def test_a_lease_whose_session_is_over_does_not_count_as_gone_while_the_database_is_away(
    site: Site, issuer: VaultIssuer
) -> None:
    wanted = order(kit.READONLY)
    prepared = issuer.prepare(wanted)
    lost = issuer.issue(wanted, prepared)
    site.postgres.stop()
    try:
        with pytest.raises(IssuerError):
            issuer.revoke(prepared)
        assert prepared["accessor"] not in site.bao.accessors()
        assert not gone(issuer, prepared)
    finally:
        site.postgres.start()
    issuer.revoke(prepared)
    assert gone(issuer, prepared)
    assert lost.values["username"] not in site.roles()


def _while_it_is_made(site: Site) -> None:
    """Wait until the database is at it."""
    waited = threading.Event()
    for _ in range(200):
        if site.postgres.run("SELECT 1 FROM pg_stat_activity WHERE query LIKE '%pg_sleep(1)%' AND state = 'active'"
                             " AND pid <> pg_backend_pid()"):  # fmt: skip
            return
        waited.wait(0.02)
    raise AssertionError("nothing is being made")


def test_a_lease_that_vault_makes_under_a_session_revoked_meanwhile_is_not_called_gone(
    site: Site, issuer: VaultIssuer
) -> None:
    """OpenBao looks at the token when the request comes in, and not when it records the lease."""
    slow = order(kit.SLOW)
    prepared = issuer.prepare(slow)
    with ThreadPoolExecutor(1) as pool:
        making = pool.submit(issuer.issue, slow, prepared)
        _while_it_is_made(site)
        issuer.revoke(prepared)
        assert prepared["accessor"] not in site.bao.accessors()
        assert not gone(issuer, prepared)
        minted = making.result()
    assert not gone(issuer, minted.handle)
    issuer.revoke(minted.handle)
    assert gone(issuer, minted.handle)
    assert minted.values["username"] not in site.roles()


def test_whoever_stops_waiting_leaves_nothing_behind(site: Site, issuer: VaultIssuer) -> None:
    before, slow = site.roles(), order(kit.SLOW)
    prepared = issuer.prepare(slow)
    issuer._leased._link._timeout_s = 0.4
    with pytest.raises(IssuerError) as late:
        issuer.issue(slow, prepared)
    assert late.value.happened is None
    issuer._leased._link._timeout_s = 10
    issuer.revoke(prepared)
    assert gone(issuer, prepared)
    assert site.bao.leases("database/creds/slow") == []
    assert site.roles() == before


# --- Namespaces (case 64) --------------------------------------------------------------------------------------------


def test_in_a_namespace_and_when_it_is_deleted_nothing_is_called_gone(site: Site) -> None:
    bao = site.bao
    bao.ask("POST", "sys/namespaces/team", {})
    bao.ask("POST", "team/sys/mounts/database", {"type": "database"})
    site.connect_database("team/")
    bao.ask("POST", "team/database/roles/readonly", bao.ask("GET", "database/roles/readonly")["data"])
    link = Link(address=bao.address, namespace="team")
    Setup(resources=[settings_of(kit.READONLY)], token_role="taskpass", max_ttl_s=7200).apply(link, bao.root)
    token = {"policies": ["taskpass-broker"], "no_default_policy": True, "no_parent": True}
    file = site.place / "team-token"
    file.write_text(bao.ask("POST", "team/auth/token/create", token)["auth"]["client_token"])
    vault = connect(address=bao.address, namespace="team", login=Login("token", file), now=wall)
    issuer = VaultIssuer(vault=vault)

    one, two = issue(issuer, order(kit.READONLY)), issue(issuer, order(kit.READONLY))
    issuer.revoke(one.handle)
    assert gone(issuer, one.handle)
    assert one.values["username"] not in site.roles()

    bao.ask("DELETE", "sys/namespaces/team")
    for attempt in (issuer.status, issuer.revoke, issuer.close):
        with pytest.raises(IssuerError):
            attempt(two.handle)


# --- Wrapping --------------------------------------------------------------------------------------------------------


def test_a_wrapped_secret_is_seen_by_whoever_unwraps_it_and_by_nobody_else(site: Site, issuer: VaultIssuer) -> None:
    wanted = order(kit.WRAPPED)
    minted = issue(issuer, wanted)
    assert set(minted.values) == {"wrap_token", "wrap_address"}
    assert minted.exp <= wanted.exp
    secret = site.bao.ask("POST", "sys/wrapping/unwrap", {}, token=minted.values["wrap_token"])["data"]
    site.connect(secret).close()
    assert not gone(issuer, minted.handle)

    issuer.revoke(minted.handle)

    assert gone(issuer, minted.handle)
    assert secret["username"] not in site.roles()


def test_a_wrapped_secret_cannot_be_unwrapped_after_it_was_revoked(site: Site, issuer: VaultIssuer) -> None:
    minted = issue(issuer, order(kit.WRAPPED))
    before = site.roles()
    issuer.revoke(minted.handle)
    assert gone(issuer, minted.handle)
    assert len(site.roles()) == len(before) - 1
    with pytest.raises(AssertionError, match="wrapping token is not valid"):
        site.bao.ask("POST", "sys/wrapping/unwrap", {}, token=minted.values["wrap_token"])


def test_wrapped_grants_of_one_task_end_one_by_one(site: Site, issuer: VaultIssuer) -> None:
    first = order(kit.WRAPPED)
    one, two = issue(issuer, first), issue(issuer, order(kit.WRAPPED, task=first.task))
    issuer.revoke(one.handle)
    assert gone(issuer, one.handle)
    assert not gone(issuer, two.handle)


# --- Open sessions of the database -----------------------------------------------------------------------------------


def test_where_an_admin_connection_is_named_revoking_ends_open_sessions(site: Site, issuer: VaultIssuer) -> None:
    minted = issue(issuer, order(kit.SEVERED))
    session = site.connect(minted.values)
    bystander = site.connect(issue(issuer, order(kit.SEVERED)).values)
    issuer.revoke(minted.handle)
    with pytest.raises(psycopg.OperationalError):
        session.execute("SELECT 1")
    found = issuer.status(minted.handle)
    assert (found.standing, found.note) == (Standing.GONE, "No session that was opened with it is left.")
    assert bystander.execute("SELECT 1").fetchone() == (1,)
    bystander.close()


def test_sessions_left_by_a_login_that_vault_dropped_itself_are_found_and_ended(
    site: Site, issuer: VaultIssuer
) -> None:
    minted = issue(issuer, order(kit.SEVERED))
    session = site.connect(minted.values)
    site.bao.ask("POST", "sys/leases/revoke", {"lease_id": minted.handle["lease_id"], "sync": True})
    assert session.execute("SELECT 1").fetchone() == (1,)  # dropping a role closes nothing
    found = issuer.status(minted.handle)
    assert found.standing is Standing.LIVE
    assert found.note is not None
    assert "1 sessions" in found.note
    issuer.revoke(minted.handle)
    assert gone(issuer, minted.handle)
    with pytest.raises(psycopg.OperationalError):
        session.execute("SELECT 1")


def test_where_none_is_named_the_note_says_that_sessions_may_continue(site: Site, issuer: VaultIssuer) -> None:
    minted = issue(issuer, order(kit.READONLY))
    with site.connect(minted.values) as session:
        issuer.revoke(minted.handle)
        assert session.execute("SELECT 1").fetchone() == (1,)
        found = issuer.status(minted.handle)
    assert found.standing is Standing.GONE
    assert found.note == "Sessions that were opened with it before may continue until they are closed."


# --- Failing revocations (case 60) -----------------------------------------------------------------------------------


def test_a_login_that_owns_objects_is_live_until_it_could_be_dropped(site: Site, issuer: VaultIssuer) -> None:
    minted = issue(issuer, order(kit.READONLY))
    name = minted.values["username"]
    site.postgres.run("CREATE TABLE owned (id int)")
    site.postgres.run(f'ALTER TABLE owned OWNER TO "{name}"')
    with pytest.raises(IssuerError) as failed:
        issuer.revoke(minted.handle)
    assert failed.value.happened is None
    assert name not in str(failed.value)
    assert not gone(issuer, minted.handle)
    site.postgres.run("DROP TABLE owned")
    issuer.revoke(minted.handle)
    assert gone(issuer, minted.handle)
    assert name not in site.roles()


def test_a_revocation_that_failed_more_often_than_vault_tries_succeeds_once_it_can(
    site: Site, issuer: VaultIssuer
) -> None:
    minted = issue(issuer, order(kit.READONLY))
    name = minted.values["username"]
    site.postgres.run("CREATE TABLE kept (id int)")
    site.postgres.run(f'ALTER TABLE kept OWNER TO "{name}"')
    for _ in range(7):
        with pytest.raises(IssuerError, match="goes on trying"):
            issuer.revoke(minted.handle)
        assert not gone(issuer, minted.handle)
        assert name in site.roles()
    site.postgres.run("DROP TABLE kept")
    issuer.revoke(minted.handle)
    assert gone(issuer, minted.handle)
    assert name not in site.roles()


def test_a_schema_whose_name_is_sql_neither_keeps_a_login_nor_is_run(site: Site, issuer: VaultIssuer) -> None:
    """To revoke what was granted in a schema, the engine has to name it (CVE-2026-39946)."""
    odd = '"odd""; DROP ROLE bystander; --"'
    site.postgres.run(f"CREATE ROLE bystander; CREATE SCHEMA {odd}; CREATE TABLE {odd}.held (id int)")
    minted = issue(issuer, order(kit.READONLY))
    name = minted.values["username"]
    site.postgres.run(f'GRANT USAGE ON SCHEMA {odd} TO "{name}"; GRANT SELECT ON {odd}.held TO "{name}"')
    issuer.revoke(minted.handle)
    assert gone(issuer, minted.handle)
    assert name not in site.roles()
    assert site.postgres.run("SELECT count(*) FROM pg_roles WHERE rolname = 'bystander'") == [(1,)]


def test_a_login_that_somebody_dropped_already_is_revoked(site: Site, issuer: VaultIssuer) -> None:
    minted = issue(issuer, order(kit.READONLY))
    site.postgres.run(f'DROP ROLE "{minted.values["username"]}"')
    issuer.revoke(minted.handle)
    assert gone(issuer, minted.handle)


# --- Other engines ---------------------------------------------------------------------------------------------------


def test_a_leased_certificate_is_revoked_at_its_authority(site: Site, issuer: VaultIssuer) -> None:
    minted = issue(issuer, order(kit.CERTIFICATE, ttl_s=120))
    assert minted.values["certificate"].startswith("-----BEGIN CERTIFICATE-----")
    serial = minted.values["serial_number"]
    issuer.revoke(minted.handle)
    assert gone(issuer, minted.handle)
    assert site.bao.ask("GET", f"pki/cert/{serial}")["data"]["revocation_time"] > 0


def test_what_has_no_lease_is_not_handed_out_as_revocable(issuer: VaultIssuer) -> None:
    settings = {**kit.UNLEASED, "static": False}
    with pytest.raises(IssuerError, match="without a lease") as refused:
        issue(issuer, order(settings))
    assert refused.value.happened is None


def test_an_unleased_certificate_only_expires_and_says_when(issuer: VaultIssuer) -> None:
    wanted = order(kit.UNLEASED, ttl_s=90)
    minted = issue(issuer, wanted)
    assert issuer.ending_of(kit.UNLEASED) is Ending.EXPIRES_ONLY
    assert int(minted.handle["expires"]) <= wanted.exp + 30
    issuer.revoke(minted.handle)
    assert not gone(issuer, minted.handle)


def test_a_certificate_that_would_outlive_its_grant_is_not_handed_out(issuer: VaultIssuer) -> None:
    settings = {**kit.UNLEASED, "parameters": {"common_name": "a.agents.internal", "ttl": "1h"}}
    with pytest.raises(IssuerError, match="outlive"):
        issue(issuer, order(settings))


def test_an_ssh_key_is_signed_for_the_grants_time(issuer: VaultIssuer) -> None:
    public = Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    settings = {**kit.SSH, "parameters": {"public_key": public.decode(), "ttl": "{ttl}"}}
    minted = issue(issuer, order(settings))
    assert minted.values["signed_key"].startswith("ssh-ed25519-cert-v01@openssh.com ")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (kit.PASSWORD_V2, {"user": "agent", "password": "s3cret-kv-two", "port": "465"}),
        (kit.PASSWORD_V1, {"password": "s3cret-kv-one"}),
    ],
)
def test_a_static_value_is_read_and_reported_as_unending(
    issuer: VaultIssuer, settings: dict[str, object], expected: dict[str, str]
) -> None:
    minted = issue(issuer, order(settings))
    assert dict(minted.values) == expected
    found = issuer.status(minted.handle)
    assert found.standing is Standing.LIVE
    assert found.note is not None
    assert "does not expire" in found.note
    issuer.close(minted.handle)


# --- The broker's own rights -----------------------------------------------------------------------------------------


def test_the_brokers_policy_is_the_least(site: Site) -> None:
    token = site.new_broker_token()
    bao = site.bao
    other = bao.ask("GET", "database/creds/writer")["lease_id"]
    assert bao.refuses("GET", "database/creds/readonly", token=token)  # it reads no secret itself
    assert bao.refuses("GET", "secret/data/mail", token=token)
    assert bao.refuses("POST", "auth/token/create", {"policies": ["root"]}, token=token)
    assert bao.refuses("POST", "auth/token/create-orphan", {}, token=token)
    assert bao.refuses("POST", "sys/policies/acl/taskpass-broker", {"policy": ""}, token=token)
    assert bao.refuses("POST", "sys/leases/revoke", {"lease_id": other}, token=token)
    assert bao.refuses("POST", "sys/leases/revoke-prefix/database", {}, token=token)
    assert bao.refuses("LIST", "sys/leases/lookup/", token=token)
    own = bao.ask("POST", "auth/token/create/taskpass", {"policies": ["taskpass-secret-data-mail"]}, token=token)
    session = own["auth"]["client_token"]
    assert bao.ask("GET", "secret/data/mail", token=session)
    for path in ("old/mail", "database/creds/readonly", "auth/token/lookup-self"):
        assert bao.refuses("GET", path, token=session)
    assert bao.refuses("POST", "auth/token/create", {}, token=session)
    assert bao.refuses("POST", "auth/token/renew-self", {}, token=session)


def test_leases_of_other_paths_are_out_of_the_brokers_reach(site: Site) -> None:
    site.bao.ask("POST", "database/roles/private", site.bao.ask("GET", "database/roles/readonly")["data"])
    other = site.bao.ask("GET", "database/creds/private")["lease_id"]
    token = site.new_broker_token()
    for path, body in (
        ("sys/leases/lookup", {"lease_id": other}),
        (f"sys/leases/revoke/{other}", {"sync": True}),
        (f"sys/leases/renew/{other}", {}),
    ):
        assert site.bao.refuses("POST", path, body, token=token)


def test_a_session_for_wrapped_answers_cannot_read_them_in_the_clear(site: Site) -> None:
    made = site.bao.ask("POST", "auth/token/create/taskpass", {"policies": ["taskpass-readonly-wrapped"]})
    assert site.bao.refuses("GET", "database/creds/readonly", token=made["auth"]["client_token"])


def test_a_policy_with_a_wrong_name_is_said_so(issuer: VaultIssuer) -> None:
    with pytest.raises(IssuerError) as refused:
        issuer.prepare(order({**kit.READONLY, "policy": "taskpass-unknown"}))
    assert refused.value.happened is False


# --- Logging in ------------------------------------------------------------------------------------------------------


def test_a_revoked_broker_token_is_replaced_by_a_new_login(site: Site) -> None:
    bao = site.bao
    if "approle/" not in bao.ask("GET", "sys/auth")["data"]:
        bao.ask("POST", "sys/auth/approle", {"type": "approle"})
    bao.ask("POST", "auth/approle/role/broker", {"token_policies": ["taskpass-broker"], "token_ttl": "10m"})
    role = bao.ask("GET", "auth/approle/role/broker/role-id")["data"]["role_id"]
    file = site.place / "secret-id"
    file.write_text(bao.ask("POST", "auth/approle/role/broker/secret-id", {})["data"]["secret_id"])
    issuer = site.issuer(login=Login("approle", file, role))
    minted = issue(issuer, order(kit.READONLY))
    for accessor in bao.accessors():
        facts = bao.ask("POST", "auth/token/lookup-accessor", {"accessor": accessor})["data"]
        if facts["path"] == "auth/approle/login":
            bao.ask("POST", "auth/token/revoke-accessor", {"accessor": accessor})
    issuer.revoke(minted.handle)  # orphans do not fall with the broker's token
    assert gone(issuer, minted.handle)


def test_a_login_by_jwt_with_the_brokers_own_issuer(site: Site) -> None:
    import jwt

    key = Ed25519PrivateKey.generate()
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    bao = site.bao
    if "jwt/" not in bao.ask("GET", "sys/auth")["data"]:
        bao.ask("POST", "sys/auth/jwt", {"type": "jwt"})
    bao.ask("POST", "auth/jwt/config", {"jwt_validation_pubkeys": [pem], "jwt_supported_algs": ["EdDSA"]})
    bao.ask("POST", "auth/jwt/role/broker", {"role_type": "jwt", "user_claim": "sub", "bound_audiences": ["vault"],
                                             "token_policies": ["taskpass-broker"], "token_ttl": "10m"})  # fmt: skip
    now = wall() // 1000
    file = site.place / "jwt"
    file.write_text(jwt.encode({"sub": "taskpass", "aud": "vault", "iat": now, "exp": now + 60}, key, "EdDSA"))
    issuer = site.issuer(login=Login("jwt", file, "broker"))
    assert issue(issuer, order(kit.PASSWORD_V1)).values["password"] == "s3cret-kv-one"


def test_the_brokers_token_is_renewed_before_it_ends(site: Site) -> None:
    token = site.new_broker_token(ttl="100s", explicit_max_ttl="1h")
    ahead = [0]
    issuer = site.issuer(now=lambda: wall() + ahead[0])
    list(issuer.orphans())
    assert "last_renewal" not in site.bao.ask("POST", "auth/token/lookup", {"token": token})["data"]
    ahead[0] = 70_000
    list(issuer.orphans())
    assert "last_renewal" in site.bao.ask("POST", "auth/token/lookup", {"token": token})["data"]


def test_a_broker_that_cannot_log_in_says_so_and_did_nothing(site: Site) -> None:
    wrong = site.place / "wrong"
    wrong.write_text("not-a-token")
    issuer = site.issuer(login=Login("token", wrong))
    with pytest.raises(IssuerError, match="cannot log in") as refused:
        issuer.prepare(order(kit.READONLY))
    assert refused.value.happened is False
    assert "not-a-token" not in str(refused.value)


# --- Orphans ---------------------------------------------------------------------------------------------------------


def test_orphans_are_our_sessions_and_the_leases_of_swept_paths(site: Site) -> None:
    issuer = site.issuer(sweep=["database/creds/readonly"], name="orphanage")
    minted = issue(issuer, order(kit.READONLY))
    ours = issue(issuer, order(kit.WRITER))
    foreign = site.issuer(name="another broker")
    theirs = issue(foreign, order(kit.WRITER))
    found = list(issuer.orphans())
    accessors = {each["accessor"] for each in found if "accessor" in each}
    leases = {each["lease_id"] for each in found if "lease_id" in each}
    assert accessors == {minted.handle["accessor"], ours.handle["accessor"]}
    assert minted.handle["lease_id"] in leases
    assert ours.handle["lease_id"] not in leases
    for each in found:
        if each.get("lease_id", minted.handle["lease_id"]) != minted.handle["lease_id"]:
            continue  # another test's
        issuer.close(each)
        issuer.revoke(each)
        assert gone(issuer, each)
    assert minted.values["username"] not in site.roles()
    assert ours.values["username"] not in site.roles()
    assert theirs.values["username"] in site.roles()


# --- What was recorded is what this server does too ------------------------------------------------------------------


@pytest.mark.parametrize("name", FLOWS)
def test_a_recorded_flow_goes_the_same_way_here(site: Site, name: str, tmp_path: Path) -> None:
    FLOWS[name](scene_at(site.bao.address, tmp_path, wall(), token=site.new_broker_token(), name=f"flow {name}"))


# --- Sealed ----------------------------------------------------------------------------------------------------------


def test_a_sealed_vault_promises_nothing_and_all_is_ended_once_it_is_open_again(
    site: Site, issuer: VaultIssuer
) -> None:
    if site.bao._process is None:
        pytest.skip("this server is not ours to seal")
    minted = issue(issuer, order(kit.READONLY))
    wanted = order(kit.READONLY)
    prepared = issuer.prepare(wanted)
    site.bao.ask("PUT", "sys/seal")
    try:
        for attempt in (
            lambda: issuer.prepare(order(kit.READONLY)),
            lambda: issuer.issue(wanted, prepared),
            lambda: issuer.revoke(minted.handle),
            lambda: issuer.status(minted.handle),
            lambda: issuer.close(minted.handle),
            lambda: list(issuer.orphans()),
        ):
            with pytest.raises(IssuerError, match=r"sealed|log in"):
                attempt()
    finally:
        site.bao.ask("PUT", "sys/unseal", {"key": site.bao.unseal_key()})
        _until_active(site)
    issuer.revoke(minted.handle)
    issuer.revoke(prepared)
    assert gone(issuer, minted.handle)
    assert gone(issuer, prepared)
    assert minted.values["username"] not in site.roles()


def _until_active(site: Site) -> None:
    import requests

    waited = threading.Event()
    for _ in range(200):
        if requests.get(f"{site.bao.address}/v1/sys/health", timeout=5).status_code == 200:
            return
        waited.wait(0.05)
    raise AssertionError("OpenBao did not become active")
