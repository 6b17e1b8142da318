"""What a resource and a configuration may say of Vault, and the least policy that follows from it."""

import json
from pathlib import Path
from typing import Any

import pytest

from issuers import Ending, IssuerError
from issuers.vault import Setup, VaultIssuer, issuer_of, policy_for, settings_of
from issuers.vault.setup import broker_policy, commands
from issuers.vault.sever import Severer
from tests.issuers.api_server import ApiServer, Asked, Reply
from tests.issuers.harness import new_order

DATABASE: dict[str, Any] = {"path": "database/creds/readonly"}
OPTIONS: dict[str, Any] = {"address": "https://vault.example.com:8200", "login": "token", "login_file": "/run/vault"}


def test_a_path_is_all_that_a_resource_must_say() -> None:
    settings = settings_of(DATABASE)
    assert (settings.method, settings.policy, settings.static) == ("read", "taskpass-database-creds-readonly", False)
    assert VaultIssuer.ending_of(DATABASE) is Ending.REVOCABLE
    assert VaultIssuer.ending_of({"path": "secret/data/mail", "kv": 2}) is Ending.EXPIRES_ONLY


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "path must be"),
        ({"path": 3}, "path must be"),
        ({"path": "database"}, "path must be"),
        ({"path": "/database/creds/x"}, "path must be"),
        ({"path": "database/../sys/policies/acl/x"}, "path must be"),
        ({"path": "database/./creds"}, "path must be"),
        ({"path": "database//creds"}, "path must be"),
        ({"path": "database/creds/x?list=true"}, "path must be"),
        ({"path": "database/creds/%2e%2e"}, "path must be"),
        ({"path": "database/creds/x\n"}, "path must be"),
        ({"path": "database/creds/*"}, "path must be"),
        ({"path": "database/creds/+"}, "path must be"),
        ({"path": "auth/token/create"}, "power over Vault"),
        ({"path": "sys/leases/lookup"}, "power over Vault"),
        ({"path": "identity/oidc/token/x"}, "power over Vault"),
        ({"pth": "database/creds/x"}, "unknown setting 'pth'"),
        ({**DATABASE, "method": "delete"}, "method must be"),
        ({**DATABASE, "kv": 3}, "kv must be"),
        ({**DATABASE, "kv": True}, "kv must be"),
        ({"path": "secret/mail", "kv": 2}, "must contain data/"),
        ({"path": "secret/data/x", "kv": 2, "static": False}, "static must be"),
        ({**DATABASE, "policy": "root"}, "policy must be"),
        ({**DATABASE, "policy": "a\nb"}, "policy must be"),
        ({**DATABASE, "admin": 'x"'}, "admin must be"),
        ({**DATABASE, "wrap_ttl_s": -1}, "wrap_ttl_s must be"),
        ({**DATABASE, "wrap_ttl_s": True}, "wrap_ttl_s must be"),
        ({**DATABASE, "wrap_ttl_s": 60, "admin": "orders"}, "exclude each other"),
        ({**DATABASE, "static": True, "admin": "orders"}, "for leased secrets"),
        ({**DATABASE, "parameters": "x"}, "table of strings"),
        ({**DATABASE, "parameters": {"x": 1}}, "table of strings"),
        ({**DATABASE, "parameters": {"x": "{agnet}"}}, "is not known"),
        ({**DATABASE, "parameters": {"x": "{parameters}"}}, "is not known"),
        ({**DATABASE, "parameters": {"x": "{agent.id}"}}, "is not known"),
    ],
)
def test_what_is_wrong_is_said(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        settings_of(settings)


def test_blanks_are_filled_from_the_order() -> None:
    names = {"common_name": "{agent}.internal", "ttl": "{ttl}", "who": "{parameters.user}", "id": "{task}/{grant}"}
    order = new_order(now_s=1_000, ttl_s=90, parameters={"user": "deploy"})
    body = settings_of({**DATABASE, "parameters": names}).body(order)
    assert body == {
        "common_name": "invoice-agent.internal",
        "ttl": "90s",
        "who": "deploy",
        "id": f"{order.task}/{order.jti}",
    }


@pytest.mark.parametrize("value", ["a,b", "a b", "", "a\n", "{agent}", "a;b", "x" * 201, "*"])
def test_a_value_that_could_say_two_things_is_refused(value: str) -> None:
    settings = settings_of({**DATABASE, "parameters": {"alt_names": "{parameters.name}"}})
    with pytest.raises(IssuerError) as refused:
        settings.body(new_order(now_s=1_000, ttl_s=90, parameters={"name": value}))
    assert refused.value.happened is False


def test_a_sessions_policy_permits_its_path_alone() -> None:
    assert policy_for(settings_of(DATABASE)) == 'path "database/creds/readonly" {\n  capabilities = ["read"]\n}\n'
    assert '["update"]' in policy_for(settings_of({**DATABASE, "method": "write"}))
    assert 'min_wrapping_ttl = "60s"' in policy_for(settings_of({**DATABASE, "wrap_ttl_s": 60}))


def test_the_brokers_policy_names_every_leased_path_and_no_other() -> None:
    resources = [settings_of(each) for each in (DATABASE, {"path": "secret/data/mail", "kv": 2})]
    policy = broker_policy(resources, token_role="taskpass")
    assert 'path "sys/leases/revoke/database/creds/readonly/*"' in policy
    assert '"lease_id" = ["database/creds/readonly/*"]' in policy
    assert "secret" not in policy
    assert "sys/leases/revoke-prefix" not in policy


def test_setup_refuses_two_policies_of_one_name() -> None:
    wrapped = settings_of({**DATABASE, "wrap_ttl_s": 60})
    with pytest.raises(ValueError, match="permit two things"):
        Setup(resources=[settings_of(DATABASE), wrapped], token_role="taskpass", max_ttl_s=60)
    with pytest.raises(ValueError, match="broker's own"):
        Setup(resources=[settings_of({**DATABASE, "policy": "taskpass-broker"})], token_role="t", max_ttl_s=60)


def test_the_printed_script_names_every_step() -> None:
    steps = Setup(resources=[settings_of(DATABASE)], token_role="taskpass", max_ttl_s=7200).steps()
    assert [step.path for step in steps] == [
        "sys/policies/acl/taskpass-broker",
        "sys/policies/acl/taskpass-database-creds-readonly",
        "auth/token/roles/taskpass",
    ]
    script = commands(steps)
    assert "vault policy write taskpass-database-creds-readonly -" in script
    assert '"token_explicit_max_ttl": "7200s"' in script


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"adress": "x"}, "unknown option 'adress'"),
        ({"address": "http://vault.example.com"}, "plain https"),
        ({"address": "https://user@vault.example.com"}, "plain https"),
        ({"address": 1}, "address must be a text"),
        ({"login": "password"}, "login must be"),
        ({"login": "approle"}, "needs a role"),
        ({"login_file": None}, "login_file must be a file"),
        ({"timeout_s": 0}, "timeout_s must be"),
        ({"timeout_s": True}, "timeout_s must be a number"),
        ({"min_ttl_s": 100, "max_ttl_s": 10}, "min_ttl_s must be"),
        ({"admins": {"orders": "postgresql://u:p@h/d"}}, "env:NAME or file:PATH"),
        ({"admins": {"orders": 1}}, "admins must be a table"),
        ({"sweep": "database/creds/x"}, "sweep must be a list"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_sent(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as refused:
        issuer_of(OPTIONS | changes, name="tests", now=lambda: 0)
    assert "u:p" not in str(refused.value)


def test_options_make_an_issuer(tmp_path: Path) -> None:
    kubernetes = {"address": "http://127.0.0.1:8200", "login": "kubernetes", "login_role": "broker"}
    issuer = issuer_of(kubernetes | {"max_ttl_s": 600, "sweep": ["a/b"]}, name="tests", now=lambda: 0)
    assert (issuer.kind, issuer.min_ttl_s, issuer.max_ttl_s) == ("vault", 10, 600)


@pytest.mark.parametrize("content", ["", "two words", "x" * 70_000, "\xff"])
def test_a_proof_that_is_not_one_token_is_not_sent(tmp_path: Path, content: str) -> None:
    file = tmp_path / "token"
    file.write_text(content, encoding="latin-1")
    address = {"address": "http://127.0.0.1:1", "login_file": str(file)}
    issuer = issuer_of(OPTIONS | address, name="tests", now=lambda: 0)
    with pytest.raises(IssuerError, match="proof for Vault") as refused:
        issuer.prepare(new_order(now_s=0, ttl_s=60, settings=DATABASE))
    assert refused.value.happened is False


class Logins(ApiServer):
    """Answers every login, and refuses all else."""

    def act(self, asked: Asked) -> Reply:
        if asked.path.endswith("/login"):
            return Reply(200, b'{"auth": {"client_token": "t", "lease_duration": 600, "renewable": true}}')
        return Reply(403, b'{"errors": ["permission denied"]}')


@pytest.mark.parametrize(
    ("options", "path", "body"),
    [
        ({"login": "jwt"}, "auth/jwt/login", {"role": "broker", "jwt": "proof"}),
        ({"login": "kubernetes"}, "auth/kubernetes/login", {"role": "broker", "jwt": "proof"}),
        (
            {"login": "kubernetes", "login_mount": "cluster-2"},
            "auth/cluster-2/login",
            {"role": "broker", "jwt": "proof"},
        ),
        ({"login": "approle"}, "auth/approle/login", {"role_id": "broker", "secret_id": "proof"}),
    ],
)
def test_each_method_logs_in_its_own_way_and_again_when_refused(
    options: dict[str, Any], path: str, body: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "proof").write_text("proof\n")
    with Logins() as server:
        more = {
            "address": server.url,
            "login_file": str(tmp_path / "proof"),
            "login_role": "broker",
            "namespace": "team",
        }
        issuer = issuer_of(more | options, name="tests", now=lambda: 0)
        with pytest.raises(IssuerError, match="permit"):
            issuer.prepare(new_order(now_s=0, ttl_s=60, settings=DATABASE))
        logins = [asked for asked in server.asked if asked.path.endswith("/login")]
        assert [(asked.path, json.loads(asked.body)) for asked in logins] == [(f"/v1/{path}", body)] * 2
        assert {asked.headers["x-vault-namespace"] for asked in server.asked} == {"team"}
        assert len(server.asked) == 4  # once each, and once more: never in a loop


def test_an_admin_connection_that_fails_shows_nothing_of_its_address(tmp_path: Path) -> None:
    file = tmp_path / "admin"
    severer = Severer(f"file:{file}")
    with pytest.raises(IssuerError, match="cannot be read"):
        severer.count("1")
    file.write_text("postgresql://admin:hunter2@127.0.0.1:1/db")
    with pytest.raises(IssuerError) as refused:
        severer.count("1")
    assert "hunter2" not in repr(refused.value)
    assert refused.value.__suppress_context__
