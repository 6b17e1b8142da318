"""X.509 issuers, and a service that shakes hands with whoever brings a certificate."""

import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from issuers import Handle, Minted, Order
from issuers.x509 import X509Issuer, authority_of
from tests.issuers.harness import Fault, Harness, Use, new_order

PEM = serialization.Encoding.PEM


class Clock:
    """Milliseconds, running, and moved forward by the test."""

    ahead_s = 0.0

    def __call__(self) -> int:
        return int((time.time() + self.ahead_s) * 1_000)


def write_authority(place: Path, *, key: Any = None, ca: bool = True, days: int = 30) -> dict[str, Any]:
    """A new self-signed authority in files; the section of the configuration that names it."""
    key = key or ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "The agents' authority")])
    now = datetime.now(UTC)
    others = "content_commitment key_encipherment data_encipherment key_agreement crl_sign encipher_only decipher_only"
    usage = dict.fromkeys(others.split(), False)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=0 if ca else None), critical=True)
        .add_extension(x509.KeyUsage(key_cert_sign=True, digital_signature=True, **usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("service.example.org")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    place.mkdir(exist_ok=True)
    (place / "ca.pem").write_bytes(certificate.public_bytes(PEM))
    private = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (place / "ca-key.pem").write_bytes(private)
    files = {"certificate_file": str(place / "ca.pem"), "key_file": str(place / "ca-key.pem")}
    return {**files, "trust_domain": "example.org"}


class X509Harness(Harness):
    """Its service trusts the authority and identifies itself with the authority's own certificate."""

    fails = frozenset()

    def __init__(self, place: Path) -> None:
        self._place = place
        self._section = write_authority(place)
        self.clock = Clock()
        self.issuer = X509Issuer(authority=authority_of(self._section), now=self.clock)
        self.never_shown = (Path(self._section["key_file"]).read_text(),)
        self._service = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._service.load_cert_chain(self._section["certificate_file"], self._section["key_file"])
        self._service.verify_mode = ssl.CERT_REQUIRED
        self._service.verify_flags |= ssl.VERIFY_X509_STRICT
        self._service.load_verify_locations(self._section["certificate_file"])

    def order(self, **changes: Any) -> Order:
        self.clock.ahead_s = 0  # OpenSSL goes by the machine's clock
        return new_order(now_s=self.clock() // 1_000, ttl_s=300, **changes)

    def use(self, values: Mapping[str, str]) -> Use:
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.load_verify_locations(cadata=values["ca_chain"])
        with NamedTemporaryFile("w", dir=self._place) as mine:  # the ssl module takes it from a file alone
            mine.write(values["certificate"] + values["ca_chain"] + values["private_key"])
            mine.flush()
            client.load_cert_chain(mine.name)
        try:
            peer = handshake(client, self._service)
        except ssl.SSLError:
            return Use(accepted=False)
        if ssl.cert_time_to_seconds(peer["notAfter"]) <= self.clock() / 1_000:  # the service goes by the same clock
            return Use(accepted=False)
        ((kind, name),) = peer["subjectAltName"]
        assert kind == "URI"
        return Use(accepted=True, proof=name)

    def existing(self) -> set[str]:
        return set()

    def name(self, handle: Handle) -> str:
        return handle["serial"]

    def fail_next(self, fault: Fault) -> None:
        raise AssertionError("it calls nobody")

    def after(self, minted: Minted) -> None:
        self.clock.ahead_s = minted.exp - time.time() + 1


def handshake(client: ssl.SSLContext, service: ssl.SSLContext) -> dict[str, Any]:
    """Shake hands in memory; what the service knows of the client's certificate."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(down, up, server_hostname="service.example.org")
    theirs = service.wrap_bio(up, down, server_side=True)
    pending = [ours, theirs]
    while pending:
        for end in list(pending):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            pending.remove(end)
    return theirs.getpeercert() or {}


@contextmanager
def x509_authority(place: Path) -> Iterator[Harness]:
    """For the conformance suite."""
    yield X509Harness(place)
