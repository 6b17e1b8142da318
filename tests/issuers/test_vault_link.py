"""What one exchange with Vault looks like on the wire, and whom it trusts. What its failures mean is in
`test_vault_recorded`.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from issuers import IssuerError
from issuers.vault.link import Link
from tests.issuers.api_server import ApiServer, Asked, Reply
from tests.tls import Tls


class Answering(ApiServer):
    def act(self, asked: Asked) -> Reply:
        return Reply(200, json.dumps({"data": {"path": asked.path}}).encode(), {"Content-Type": "application/json"})


@pytest.fixture
def server() -> Iterator[Answering]:
    with Answering() as made:
        yield made


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    return Tls(tmp_path)


@pytest.fixture
def encrypted(tls: Tls) -> Iterator[Answering]:
    """At `localhost`, by a certificate of the test's own authority."""
    made = Answering()
    made._server.socket = tls.context("localhost").wrap_socket(
        made._server.socket, server_side=True, do_handshake_on_connect=False
    )
    made.url = made.url.replace("http://127.0.0.1", "https://localhost")
    with made:
        yield made


def test_a_request_says_what_vault_needs_and_nothing_of_us(server: Answering) -> None:
    link = Link(address=f"{server.url}/behind/", namespace="team")
    answer = link.call("post", "pki/issue/web", token="secret-1", body={"ttl": "60s"}, wrap_ttl_s=30)
    (asked,) = server.asked
    assert (asked.method, asked.path) == ("POST", "/behind/v1/pki/issue/web")
    assert answer.data == {"path": asked.path}
    assert json.loads(asked.body) == {"ttl": "60s"}
    said = {name: value for name, value in asked.headers.items() if name not in {"host", "content-length", "accept"}}
    assert said == {
        "accept-encoding": "identity",
        "user-agent": "taskpass",
        "content-type": "application/json",
        "x-vault-request": "true",
        "x-vault-token": "secret-1",
        "x-vault-namespace": "team",
        "x-vault-wrap-ttl": "30s",
    }


def test_a_list_is_asked_for_by_the_query_and_without_a_token_none_is_sent(
    server: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VAULT_TOKEN", "of somebody else")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    Link(address=server.url).call("list", "sys/leases/lookup/x/", token=None)
    (asked,) = server.asked
    assert (asked.method, asked.path, asked.body) == ("GET", "/v1/sys/leases/lookup/x?list=true", b"")
    assert "x-vault-token" not in asked.headers


def test_a_certificate_of_the_configured_authority_is_accepted(encrypted: Answering, tls: Tls) -> None:
    link = Link(address=encrypted.url, ca_file=Path(tls.ca_file))
    assert link.call("get", "x", token="t").data == {"path": "/v1/x"}


def test_any_other_certificate_is_refused_before_anything_is_said(
    encrypted: Answering, tls: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", tls.ca_file)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", tls.ca_file)
    with pytest.raises(IssuerError, match="cannot be reached") as failed:
        Link(address=encrypted.url).call("get", "x", token="hush")
    assert failed.value.happened is False
    assert encrypted.asked == []


def test_the_name_on_the_certificate_counts(encrypted: Answering, tls: Tls) -> None:
    link = Link(address=encrypted.url.replace("localhost", "127.0.0.1"), ca_file=Path(tls.ca_file))
    with pytest.raises(IssuerError, match="cannot be reached") as failed:
        link.call("get", "x", token="hush")
    assert failed.value.happened is False
    assert encrypted.asked == []
