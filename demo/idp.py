"""The demo's identity provider, in its own process: signs what a workload is, and publishes its keys over https.

A real platform knows which workload is asking. This one believes whoever can reach it on loopback.

    python -m demo.idp DIRECTORY      writes ca.pem and url there when it is ready, and serves until it is stopped
"""

import datetime
import ipaddress
import json
import secrets
import ssl
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LIFE_S = 60
HOST = "127.0.0.1"


def main(directory: Path) -> None:
    """Serve `/jwks.json`, and `/token` for form posts of `sub` and `aud`."""
    server = ThreadingHTTPServer((HOST, 0), _Handler)
    server.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(_certificate(directory))
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    _Handler.issuer = f"https://{HOST}:{server.server_port}"
    (directory / "url").write_text(_Handler.issuer)
    server.serve_forever()


class _Handler(BaseHTTPRequestHandler):
    issuer = ""
    key = ec.generate_private_key(ec.SECP256R1())
    kid = secrets.token_hex(8)
    timeout = 5

    def do_GET(self) -> None:
        """The key set."""
        if self.path != "/jwks.json":
            self._answer(404, {})
            return
        jwk = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(self.key.public_key()))
        self._answer(200, {"keys": [{**jwk, "kid": self.kid, "alg": "ES256", "use": "sig"}]})

    def do_POST(self) -> None:
        """One identity token: for one audience, good for one use."""
        form = parse_qs(self.rfile.read(min(int(self.headers.get("content-length", 0)), 4096)).decode())
        now = int(time.time())
        claims = {
            "iss": self.issuer,
            "sub": form["sub"][0],
            "aud": form["aud"][0],
            "jti": secrets.token_urlsafe(16),
            "iat": now,
            "exp": now + LIFE_S,
        }
        self._answer(200, {"token": jwt.encode(claims, self.key, algorithm="ES256", headers={"kid": self.kid})})

    def _answer(self, status: int, body: dict[str, object]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _certificate(directory: Path) -> Path:
    """A throwaway authority, in ca.pem, and a certificate by it for loopback."""
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Demo authority")])
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Demo identity provider")])
    ca = (
        _builder(ca_name, ca_name, ca_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    leaf = (
        _builder(name, ca_name, key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(ca=False), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    (directory / "ca.pem").write_bytes(ca.public_bytes(Encoding.PEM))
    chain = directory / "idp.pem"
    chain.touch(mode=0o600)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    chain.write_bytes(private + leaf.public_bytes(Encoding.PEM))
    return chain


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(hours=1))
    )


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
