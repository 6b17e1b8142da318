"""Secrets through the command line, a real broker, and servers that speak GitHub's API and AWS STS."""

import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from structlog.testing import capture_logs

from tests.cli.conftest import Ran, Site, _one_process, wall_ms
from tests.issuers.api_server import Fault, Reply
from tests.issuers.github_server import GitHubServer
from tests.issuers.sts_server import ROLE, StsServer
from tests.kit import ISSUER, Broker, Home

Run = Callable[..., Ran]

ISSUERS = """
[issuers.github]
kind = "github_app"
app = "{app}"
private_key_file = "{key}"
url = "{github}"

[issuers.aws]
kind = "aws_sts"
url = "{sts}"
"""

RESOURCES = f"""
  repos:
    system: Source code
    audience: https://github.com/acme
    owner: data-team
    data_classes: [source]
    leaves_boundary: true
    retention: for ever
    issuer: github
    settings:
      installation: 4242
      repositories: [invoices, credits]
      permissions:
        repo:read: {{contents: read}}
        repo:write: {{contents: write}}
      repository_parameter: repository
    actions:
      repo:read:
        access: read
        description: Clone a repository.
        parameters:
          repository: {{type: string}}
      repo:write:
        access: write
        description: Push.

  reports-bucket:
    system: Reports
    audience: https://reports.example.com
    owner: data-team
    data_classes: [personal]
    leaves_boundary: true
    retention: 1 year
    issuer: aws
    settings:
      role_arn: {ROLE}
      statements:
        reports:read:
          - {{Effect: Allow, Action: "s3:GetObject", Resource: "arn:aws:s3:::reports/*"}}
    actions:
      reports:read:
        access: read
        description: Read reports.
"""

PERMITS = """
@id("data-bot-reads-code-and-reports")
permit (principal == Agent::"data-bot", action in [Action::"repo:read", Action::"reports:read"], resource);
"""


class Cloud(Site):
    github: GitHubServer
    sts: StsServer

    def be_bot(self) -> None:
        self.be_agent(sub="data-bot")

    def settle(self) -> None:
        self.broker.run(self.broker.process.reconciler.settle())

    def ledger_text(self) -> str:
        return json.dumps(self.broker.events())


def a_home(
    path: Path, github: GitHubServer, sts: StsServer, key: rsa.RSAPrivateKey, *, clock: Callable[[], int] = wall_ms
) -> Home:
    (path / "app.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    home = Home(path / "broker", clock=clock)
    home.append("registry/resources.yaml", RESOURCES)
    boundary = 'archive: ["archive:read", "archive:list", "archive:export"]'
    more = '\n      repos: ["repo:read", "repo:write"]\n      reports-bucket: ["reports:read"]'
    home.replace("registry/agents.yaml", boundary, boundary + more)
    home.replace("registry/agents.yaml", "token_ttl_s: 120, task_ttl_s: 600", "token_ttl_s: 120, task_ttl_s: 3600")
    home.append("policies/permits/data.cedar", PERMITS)
    section = ISSUERS.format(app=github.app, key=path / "app.pem", github=github.url, sts=sts.url)
    home.append("taskpass.toml", section)
    from broker.config import load_config

    issuers = load_config(home.path / "taskpass.toml").issuers
    home.config = home.config.model_copy(update={"issuers": issuers})
    return _one_process(home)


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    published: dict[str, bytes] = {}  # what AWS finds at the broker's addresses
    with (
        GitHubServer(key=key.public_key(), now=wall_ms) as github,
        StsServer(issuer=ISSUER, now=wall_ms, fetch=published.__getitem__) as sts,
        capture_logs() as logs,
    ):
        sts.trusts = {"agent:data-bot"}
        broker = Broker(a_home(tmp_path, github, sts, key))
        try:
            for path in ("/.well-known/openid-configuration", "/oauth2/jwks"):
                published[ISSUER + path] = broker.get(path).content
            made = Cloud(broker, tmp_path, monkeypatch)
            made.github, made.sts = github, sts
            yield made
        finally:
            broker.close()
        held = [*github.ever, *(session["SecretAccessKey"] for session in sts.sessions)]
        assert not any(secret in repr(logs) for secret in held)


def test_a_token_of_github_is_made_looked_at_and_given_back(cloud: Cloud, run: Run) -> None:
    cloud.be_bot()
    made = run("secret", "repos", "repo:read", "--param", "repository=credits", "-o", "json").json
    token = made["values"]["token"]
    assert cloud.github.tokens[token]["repositories"] == ["credits"]
    assert cloud.github.tokens[token]["permissions"] == {"contents": "read"}
    assert made["ending"] == "revocable"
    assert token not in cloud.ledger_text()
    cloud.be_bot()
    assert run("credential", "show", made["id"], "-o", "json").json["state"] == "live"
    cloud.be_bot()
    run("credential", "revoke", made["id"])
    cloud.settle()
    assert cloud.github.alive() == []
    cloud.be_bot()
    assert run("credential", "show", made["id"], "-o", "json").json["state"] == "revoked"


def test_what_a_run_was_given_dies_with_its_task(cloud: Cloud, run: Run, tmp_path: Path) -> None:
    cloud.be_bot()
    code = f"import os, pathlib; pathlib.Path({str(tmp_path / 'seen')!r}).write_text(os.environ['GH_TOKEN'])"
    run("run", "--secret", "GH_=repos repo:read", "--", sys.executable, "-c", code)
    assert (tmp_path / "seen").read_text() in cloud.github.ever
    cloud.settle()
    assert cloud.github.alive() == []


def test_a_session_of_aws_ends_by_itself_and_the_kill_says_when(cloud: Cloud, run: Run) -> None:
    cloud.be_bot()
    body = run("credential", "aws", "https://reports.example.com", "reports:read").json
    (session,) = cloud.sts.sessions
    assert body["SessionToken"] == session["SessionToken"]
    assert body["Expiration"] == session["Expiration"]
    assert session["claims"]["sub"] == "agent:data-bot"
    assert session["SecretAccessKey"] not in cloud.ledger_text()
    cloud.be_operator()
    run("kill", "agent", "data-bot", "--reason", "test", "--yes")
    cloud.settle()
    (grant,) = cloud.broker.events("delivered")
    shown = run("credential", "show", grant["jti"], "-o", "json").json
    assert shown["state"] != "revoked"
    assert f"denies everything where aws:userid is like '*:{grant['jti']}'" in json.dumps(shown)


def test_git_is_helped(cloud: Cloud, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud.be_bot()
    monkeypatch.setattr("sys.stdin", io.StringIO("protocol=https\nhost=github.com\npath=acme/invoices.git\n"))
    asking = ["--resource", "repos", "--action", "repo:read", "--repository-param", "repository", "get"]
    told = dict(line.split("=", 1) for line in run("credential", "git", *asking).out.splitlines())
    assert cloud.github.tokens[told["password"]]["repositories"] == ["invoices"]


def test_refusals_of_policy_and_of_the_backend_do_not_look_alike(cloud: Cloud, run: Run) -> None:
    cloud.be_bot()
    told = run("secret", "repos", "repo:write", "-o", "json", code=3)
    assert told.error["outcome"] == "never"
    assert cloud.github.asked == []
    cloud.github.faults = [Fault("status", reply=Reply(503))]
    cloud.be_bot()
    assert "GitHub answered 503" in run("secret", "repos", "repo:read", "-o", "json", code=1).error["message"]
    cloud.be_bot()
    assert run("secret", "nowhere", "a", "-o", "json", code=2).error["code"] == "invalid_target"
    assert run("secret", "repos", "repo:read", code=4).out == ""  # the proof was spent


def test_wrong_settings_are_found_when_the_registry_is_loaded(cloud: Cloud, run: Run) -> None:
    cloud.home.replace("registry/resources.yaml", "installation: 4242", "installation: acme")
    cloud.be_operator()
    told: Any = run("reload", code=None)
    assert told.code != 0
    assert "installation must be the number" in told.err
