"""The one way to a backend: TLS that is checked, no proxy of the environment, no redirect followed."""

import ipaddress
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from issuers import IssuerError
from issuers.http import Backend
from tests.issuers.api_server import ApiServer, Asked, Reply


class Echo(ApiServer):
    def act(self, asked: Asked) -> Reply:
        return Reply(307, b"fine", {"Location": "http://127.0.0.1:1/", "X-Told": "yes"})


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A self-signed certificate for 127.0.0.1, with its key."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "backend")])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(hours=1), now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "backend.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(made.public_bytes(Encoding.PEM) + private)
    return path


@pytest.fixture
def echo(certificate: Path) -> Iterator[Echo]:
    server = Echo()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server._server.socket = context.wrap_socket(server._server.socket, server_side=True, do_handshake_on_connect=False)
    server.url = server.url.replace("http:", "https:")
    with server:
        yield server


def test_a_certificate_of_the_configured_authority_is_accepted(echo: Echo, certificate: Path) -> None:
    answer = Backend(name="It", url=echo.url, ca_file=certificate).send("POST", "/x", headers={"A": "b"}, content=b"c")
    assert (answer.status, answer.body, answer.headers["x-told"]) == (307, b"fine", "yes")
    (asked,) = echo.asked  # and the redirect was not followed
    assert (asked.method, asked.path, asked.headers["a"], asked.body) == ("POST", "/x", "b", b"c")


def test_any_other_certificate_is_refused_before_anything_is_said(
    echo: Echo, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    with pytest.raises(IssuerError, match="cannot be reached") as failed:
        Backend(name="It", url=echo.url).send("GET", "/", headers={"Authorization": "Bearer hush"})
    assert failed.value.happened is False
    assert "hush" not in str(failed.value)
    assert echo.asked == []


def test_the_name_on_the_certificate_counts(echo: Echo, certificate: Path) -> None:
    url = echo.url.replace("127.0.0.1", "localhost")
    with pytest.raises(IssuerError, match="cannot be reached"):
        Backend(name="It", url=url, ca_file=certificate).send("GET", "/", headers={})
    assert echo.asked == []
