"""Certificates for tests, and the authority that signs them."""

import ssl
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

Signed = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


def certificate(
    name: str, issuer: Signed | None = None, *, hosts: Sequence[str] = (), authority: bool = False
) -> Signed:
    """A certificate that is good for a day, and its key; self-signed without an issuer."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - timedelta(days=1))
        .not_valid_after(datetime.now(UTC) + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    signer = issuer[1] if issuer else key
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
    )
    if authority:
        usage = dict.fromkeys(
            (
                "digital_signature",
                "content_commitment",
                "key_encipherment",
                "data_encipherment",
                "key_agreement",
                "encipher_only",
                "decipher_only",
            ),
            False,
        )
        builder = builder.add_extension(x509.KeyUsage(key_cert_sign=True, crl_sign=True, **usage), critical=True)
    if hosts:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts]), critical=False
        )
    return builder.sign(signer, hashes.SHA256()), key


class Tls:
    """A certificate authority, and what servers need for host names."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.authority = certificate("test authority", authority=True)
        self.ca_file = str(directory / "ca.pem")
        (directory / "ca.pem").write_bytes(self.authority[0].public_bytes(Encoding.PEM))

    def files(self, host: str) -> tuple[Path, Path]:
        """Two files in PEM: a certificate for that host, and its key."""
        made, key = certificate(host, self.authority, hosts=(host,))
        paths = (
            self._directory / f"{host}-{made.serial_number}.crt",
            self._directory / f"{host}-{made.serial_number}.key",
        )
        paths[0].write_bytes(made.public_bytes(Encoding.PEM))
        paths[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return paths

    def context(self, host: str) -> ssl.SSLContext:
        """For a server at that host."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.files(host))
        return context
