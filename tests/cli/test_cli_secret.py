"""`taskpass secret` and `taskpass credential`: what is printed, in whose format, and that nothing else is."""

import io
import os
import shlex
import shutil
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, Self

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from broker.sdk.testkit import FakeBroker
from tests.cli.conftest import Ran
from tests.issuers.api_server import ApiServer, Asked, Reply

Run = Callable[..., Ran]
AWS = {"access_key_id": "ASIAX", "secret_access_key": "sk/+=", "session_token": "st"}
GITHUB = {"token": "ghs_abc", "username": "x-access-token"}
PATH = "/v1/credentials"


@pytest.fixture(scope="module")
def served() -> Iterator[FakeBroker]:
    fake = FakeBroker()
    with fake.serve():
        yield fake


@pytest.fixture
def fake(served: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> FakeBroker:
    monkeypatch.setenv("TASKPASS_URL", served.issuer)
    monkeypatch.setenv("TASKPASS_TOKEN", "fake.identity.assertion")
    served.secret_values = {"bucket": AWS, "repos": GITHUB, "db": {"username": "u'1", "password": "p w$"}}
    served.requests.clear()
    served.accept(PATH)
    return served


def asked(fake: FakeBroker) -> dict[str, Any]:
    return next(seen.body for seen in reversed(fake.requests) if seen.path == PATH)


# --- taskpass secret --------------------------------------------------------------------------------------------------


def test_the_members_are_all_of_standard_output(fake: FakeBroker, run: Run) -> None:
    told = run("secret", "db", "orders:read", "orders:list", "--param", "shop=1", "--task", "tsk_1", "--ttl", 60)
    assert told.out.splitlines() == ["username  u'1", "password  p w$"]
    assert told.err == ""
    assert asked(fake) == {
        "resource": "db",
        "actions": ["orders:read", "orders:list"],
        "parameters": {"shop": 1},
        "task": "tsk_1",
        "ttl_seconds": 60,
    }


def test_json_has_all_about_it(fake: FakeBroker, run: Run) -> None:
    body = run("secret", "db", "orders:read", "-o", "json").json
    assert body["values"] == {"username": "u'1", "password": "p w$"}
    assert body["handle"]["name"].startswith("fake-")
    assert {"id", "task", "expires_at", "decision_id", "seq", "ending"} <= body.keys()
    assert yaml.safe_load(run("secret", "db", "orders:read", "-o", "yaml").out)["values"]["password"] == "p w$"
    assert run("secret", "db", "orders:read", "-o", "name").out.startswith("grt_")


def test_a_shell_reads_it_back_unchanged(fake: FakeBroker, run: Run) -> None:
    lines = run("secret", "db", "orders:read", "-o", "env", "--prefix", "DB_").out
    script = f'{lines}\nprintf "%s|%s" "$DB_USERNAME" "$DB_PASSWORD"'
    assert subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout == "u'1|p w$"
    assert "ACTIONS" in run("secret", "db", code=2).err
    assert "--prefix" in run("secret", "db", "orders:read", "-o", "env", "--prefix", "A B", code=2).err


def test_one_member_alone(fake: FakeBroker, run: Run) -> None:
    assert run("secret", "db", "orders:read", "--field", "password").out == "p w$\n"
    told = run("secret", "db", "orders:read", "--field", "pin", code=1)
    assert "no pin, but username, password" in told.err
    assert "p w$" not in told.err


def test_the_task_of_a_run_is_taken_over(fake: FakeBroker, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKPASS_TASK", "tsk_9")
    run("secret", "db", "orders:read")
    assert asked(fake)["task"] == "tsk_9"


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (403, {"code": "access_denied", "outcome": "never", "detail": "Never: no.", "policies": ["p"]}, 3),
        (403, {"code": "access_denied", "outcome": "approval", "detail": "Ask.", "approval": {"id": "apr_1"}}, 5),
        (403, {"code": "access_denied", "outcome": "held", "detail": "On hold."}, 1),
        (401, {"code": "invalid_client", "detail": "Who?"}, 4),
        (404, {"code": "not_found", "detail": "No such task."}, 6),
        (400, {"code": "invalid_scope", "detail": "No such action."}, 2),
        (503, {"code": "temporarily_unavailable", "detail": "The backend does not answer."}, 1),
    ],
)
def test_refusals_have_their_exit_codes(
    fake: FakeBroker, run: Run, status: int, body: dict[str, Any], code: int
) -> None:
    fake.refuse(PATH, status, decision_id="dec_1", **body)
    told = run("secret", "db", "orders:read", "-o", "json", code=code)
    assert told.out == ""
    assert told.error["decision_id"] == "dec_1"


def test_an_answer_that_is_none_shows_no_secret(fake: FakeBroker, run: Run) -> None:
    fake.refuse(PATH, 201, id="grt_1", values={"password": "hush"}, expires_at="never")
    assert "hush" not in run("secret", "db", "orders:read", code=1).err


def test_debug_shows_no_secret(fake: FakeBroker, run: Run) -> None:
    told = run("secret", "db", "orders:read", "--field", "username", "-v")
    assert "POST" in told.err
    assert "p w$" not in told.err
    assert "fake.identity" not in told.err


def test_one_is_looked_at_renewed_and_given_back(fake: FakeBroker, run: Run) -> None:
    made = run("secret", "db", "orders:read", "-o", "name").out.strip()
    assert run("credential", "show", made, "-o", "json").json["state"] == "live"
    told = run("credential", "renew", made, "--ttl", 900, "-o", "json").json
    assert told["expires_at"] == fake.secrets[made]["expires_at"]
    assert fake.requests[-1].body == {"ttl_seconds": 900}
    assert "expires_at" in run("credential", "renew", made).out
    assert fake.requests[-1].body == {}
    assert "revoked" in run("credential", "revoke", made).out
    assert "conflict" in run("credential", "renew", made, code=1).err
    assert "password" not in run("credential", "show", made).out
    run("credential", "show", "grt_0_0", code=6)


# --- For other programs -----------------------------------------------------------------------------------------------


@pytest.fixture
def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`taskpass` for other programs to find."""
    script = tmp_path / "bin" / "taskpass"
    script.parent.mkdir()
    command = shlex.join([sys.executable, "-c", "from broker.cli import main; main()"])
    script.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))
    return script


def test_aws_gets_what_a_credential_process_says(fake: FakeBroker, run: Run) -> None:
    body = run("credential", "aws", "bucket", "reports:read").json
    assert body.pop("Expiration").endswith("Z")
    assert body == {
        "Version": 1,
        "AccessKeyId": "ASIAX",
        "SecretAccessKey": "sk/+=",
        "SessionToken": "st",
    }
    fake.secret_values["bucket"] = {"access_key": "AKIAX", "secret_key": "s"}  # as Vault calls them
    assert "SessionToken" not in run("credential", "aws", "bucket", "x:read").json
    told = run("credential", "aws", "db", "x:read", code=1)
    assert "no access_key_id or access_key" in told.err
    assert told.out == ""


@pytest.mark.skipif(shutil.which("aws") is None, reason="needs the AWS command line")
def test_the_real_aws_takes_it(fake: FakeBroker, on_path: Path, tmp_path: Path) -> None:
    config = tmp_path / "aws.cfg"
    config.write_text("[profile reports]\ncredential_process = taskpass credential aws bucket reports:read\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    with _AwsService() as service:
        where = ["--profile", "reports", "--region", "eu-central-1", "--endpoint-url", service.url]
        ran = subprocess.run(
            ["aws", "sts", "get-caller-identity", *where],
            env={**environment, "AWS_CONFIG_FILE": str(config)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert ran.returncode == 0, ran.stderr
    (seen,) = service.asked
    assert "Credential=ASIAX/" in seen.headers["authorization"]
    assert seen.headers["x-amz-security-token"] == "st"


class _AwsService(ApiServer):
    """Says who somebody is, whoever that is."""

    def act(self, asked: Asked) -> Reply:
        body = (
            "<GetCallerIdentityResponse xmlns='https://sts.amazonaws.com/doc/2011-06-15/'><GetCallerIdentityResult>"
            "<Account>1</Account><UserId>u</UserId><Arn>a</Arn>"
            "</GetCallerIdentityResult></GetCallerIdentityResponse>"
        )
        return Reply(200, body.encode(), {"Content-Type": "text/xml"})


def test_git_is_answered_in_its_lines(fake: FakeBroker, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("protocol=https\nhost=github.com\nwwwauth[]=Basic\n\n"))
    told = run("credential", "git", "--resource", "repos", "--action", "repo:read", "get")
    lines = dict(line.split("=", 1) for line in told.out.splitlines())
    assert lines["username"] == "x-access-token"
    assert lines["password"] == "ghs_abc"
    assert 290 < int(lines["password_expiry_utc"]) - time.time() <= 300
    assert asked(fake) == {"resource": "repos", "actions": ["repo:read"]}


@pytest.mark.parametrize(
    ("operation", "said"),
    [
        ("get", "protocol=https\nhost=evil.example\n"),
        ("get", "protocol=http\nhost=github.com\n"),
        ("get", "protocol=https\nhost=github.com:8443\n"),
        ("get", ""),
        ("store", "protocol=https\nhost=github.com\nusername=u\npassword=p\n"),
        ("erase", "protocol=https\nhost=github.com\nusername=u\npassword=p\n"),
        ("invented", "protocol=https\nhost=github.com\n"),
    ],
)
def test_git_gets_nothing_for_anybody_else(
    fake: FakeBroker, run: Run, monkeypatch: pytest.MonkeyPatch, operation: str, said: str
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(said))
    told = run("credential", "git", "--resource", "repos", "--action", "repo:read", operation)
    assert (told.out, told.err) == ("", "")
    assert fake.requests == []


def test_git_may_name_the_repository(fake: FakeBroker, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asking = ("credential", "git", "--resource", "repos", "--action", "x", "--repository-param", "repository", "get")
    monkeypatch.setattr("sys.stdin", io.StringIO("protocol=https\nhost=github.com\npath=acme/007.git\n"))
    run(*asking)
    assert asked(fake)["parameters"] == {"repository": "007"}
    monkeypatch.setattr("sys.stdin", io.StringIO("protocol=https\nhost=github.com\n"))
    assert "useHttpPath" in run(*asking, code=2).err


def test_a_secret_with_a_line_break_does_not_reach_git(
    fake: FakeBroker, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.secret_values["repos"] = {"token": "a\nurl=https://evil.example"}
    monkeypatch.setattr("sys.stdin", io.StringIO("protocol=https\nhost=github.com\n"))
    assert run("credential", "git", "--resource", "repos", "--action", "repo:read", "get", code=1).out == "quit=1\n"


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_real_git_takes_it_and_stops_at_a_refusal(fake: FakeBroker, on_path: Path, tmp_path: Path) -> None:
    config = tmp_path / "gitconfig"
    helper = "!taskpass credential git --resource repos --action repo:read"
    config.write_text(f'[credential "https://github.com"]\n\thelper = "{helper}"\n')
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": str(config), "GIT_CONFIG_NOSYSTEM": "1", "GIT_ASKPASS": "false"}

    def git(operation: str, said: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["git", "credential", operation],
            input=said,
            env=environment | {"GIT_TERMINAL_PROMPT": "0"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    filled = git("fill", "protocol=https\nhost=github.com\n\n")
    assert filled.returncode == 0, filled.stderr
    assert {"username=x-access-token", "password=ghs_abc"} <= set(filled.stdout.splitlines())
    for operation in ("approve", "reject"):
        assert git(operation, filled.stdout).returncode == 0
    assert len([seen for seen in fake.requests if seen.path == PATH]) == 1
    fake.refuse(PATH, 403, code="access_denied", outcome="never", detail="Never: no.")
    refused = git("fill", "protocol=https\nhost=github.com\n\n")
    assert refused.returncode != 0
    assert "never: no." in refused.stderr
    assert "quit" in refused.stderr  # git says that it was told to, and asks nobody for a password


def test_kubectl_gets_a_token_or_a_certificate(fake: FakeBroker, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.secret_values["cluster"] = {"service_account_token": "eyJ"}
    body = run("credential", "kube", "cluster", "pods:read").json
    assert (body["apiVersion"], body["kind"]) == ("client.authentication.k8s.io/v1", "ExecCredential")
    assert body["status"]["token"] == "eyJ"
    assert body["status"]["expirationTimestamp"].endswith("Z")
    fake.secret_values["cluster"] = {"certificate": "CERT\n", "private_key": "KEY\n", "ca_chain": "CA\n"}
    monkeypatch.setenv("KUBERNETES_EXEC_INFO", '{"apiVersion": "client.authentication.k8s.io/v1beta1", "spec": {}}')
    body = run("credential", "kube", "cluster", "x:read").json
    assert body["apiVersion"] == "client.authentication.k8s.io/v1beta1"
    assert body["status"].items() >= {"clientCertificateData": "CERT\nCA", "clientKeyData": "KEY\n"}.items()
    for wrong in ("{", "[]", '{"apiVersion": "client.authentication.k8s.io/v1alpha1"}'):
        monkeypatch.setenv("KUBERNETES_EXEC_INFO", wrong)
        assert run("credential", "kube", "cluster", "x:read", code=2).out == ""


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")
def test_the_real_kubectl_takes_it(fake: FakeBroker, on_path: Path, tmp_path: Path) -> None:
    fake.secret_values["cluster"] = {"token": "kube-token"}
    with _Cluster(tmp_path) as cluster:
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.write_text(yaml.safe_dump(cluster.kubeconfig(["credential", "kube", "cluster", "pods:read"])))
        ran = subprocess.run(
            ["kubectl", "--kubeconfig", str(kubeconfig), "get", "--raw", "/version"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert ran.returncode == 0, ran.stderr
    assert set(cluster.bearers) == {"Bearer kube-token"}


class _Cluster:
    """An API server that notes who asks, over TLS: kubectl sends no token otherwise."""

    def __init__(self, place: Path) -> None:
        self.bearers: list[str | None] = []
        key, self._certificate = ec.generate_private_key(ec.SECP256R1()), place / "cluster.pem"
        self._certificate.write_bytes(
            _self_signed(key) + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )
        cluster = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                cluster.bearers.append(self.headers["Authorization"])
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_: object) -> None: ...

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._certificate)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def kubeconfig(self, arguments: list[str]) -> dict[str, Any]:
        server = f"https://127.0.0.1:{self._server.server_address[1]}"
        plugin = {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": "taskpass",
            "args": arguments,
            "interactiveMode": "Never",
        }
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "agent"}}],
            "clusters": [{"name": "c", "cluster": {"server": server, "certificate-authority": str(self._certificate)}}],
            "users": [{"name": "agent", "user": {"exec": plugin}}],
        }

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _self_signed(key: ec.EllipticCurvePrivateKey) -> bytes:
    import ipaddress

    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(hours=1), now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )


def test_getting_a_secret_needs_no_http_stack_and_no_models(fake: FakeBroker) -> None:
    code = (
        "import sys; sys.argv = ['taskpass', 'credential', 'aws', 'bucket', 'x:read']\n"
        "from broker.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "sys.stderr.write(' '.join(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"httpx2", "fastapi", "pydantic", "cryptography", "jwt", "orjson", "asyncio", "rich"}
    assert not heavy & set(ran.stderr.split())
