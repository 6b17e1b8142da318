"""X.509 client certificates for one task, from a certificate authority whose key the broker holds.

An SVID by the SPIFFE rules: exactly one URI in the subject alternative name, and good for a client alone. There is no
revocation list, on purpose: a certificate lives for minutes, ends by expiring, and is reported so.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from issuers import Ending, Found, Handle, IssuerError, Minted, Order, Seen, Standing

Now = Callable[[], int]
"""Milliseconds since the epoch."""

SKEW_S: Final = 60  # how far behind our clock a service may be
_GRANT: Final = re.compile(r"[a-z]{3}_([0-9a-f]{8})_(0|[1-9][0-9]{0,17})")
_TRUST_DOMAIN: Final = re.compile(r"[a-z0-9._-]{1,255}")
_SEGMENT: Final = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,255}")
_PATH: Final = "/agent/{agent}/task/{task}"
_BLANKS: Final = {"{agent}", "{task}", "{grant}"}
_LONGEST_URI: Final = 2_048
_LONGEST_NAME: Final = 64
_WEAKEST_RSA: Final = 2_048
_SOON_S: Final = 30 * 86_400
_RENEW: Final = "Have the root sign another one, and put it in `certificate_file`."


@dataclass(frozen=True, slots=True, kw_only=True)
class X509Settings:
    """What certificates of one resource say, as the resource's `settings` do. `settings_of` checks it."""

    path: str = _PATH  # of the SPIFFE ID; a whole segment may be {agent}, {task} or {grant}

    def uri(self, trust_domain: str, order: Order) -> str:
        """The SPIFFE ID for this order. Raises IssuerError for a name that cannot be a segment of one."""
        facts = {"{agent}": order.agent, "{task}": order.task, "{grant}": order.jti}
        segments = [facts.get(segment, segment) for segment in self.path.split("/")[1:]]
        uri = f"spiffe://{trust_domain}/{'/'.join(segments)}"
        if len(uri) > _LONGEST_URI or not all(map(_SEGMENT.fullmatch, segments)):
            raise IssuerError("The name of the agent or of its task cannot be part of a SPIFFE ID.", happened=False)
        return uri


def settings_of(mapping: Mapping[str, Any]) -> X509Settings:
    """The settings of a resource, as written in the registry. Raises ValueError with a sentence."""
    if unknown := sorted(set(mapping) - {"path"}):
        raise ValueError(f"{unknown[0]!r} is no setting of an X.509 resource; there is path")
    path = mapping.get("path", _PATH)
    if not isinstance(path, str) or not path.startswith("/"):
        raise ValueError("'path' must be text that begins with a slash")
    if not all(segment in _BLANKS or _SEGMENT.fullmatch(segment) for segment in path.split("/")[1:]):
        raise ValueError("A segment of 'path' is letters, digits, '.', '_' and '-', or one of {agent}, {task}, {grant}")
    return X509Settings(path=path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """A certificate authority, as `[issuers.<name>]` describes it. `authority_of` checks the section, the constructor
    of the issuer what is in the files.
    """

    certificate_file: str  # PEM: the certificate that signs, then those between it and the root, if any
    key_file: str  # PEM, not encrypted: P-256, P-384, or RSA
    trust_domain: str
    min_ttl_s: int = 60
    max_ttl_s: int = 900


def authority_of(section: Mapping[str, Any]) -> Authority:
    """Read a section of the configuration. Raises ValueError with a sentence."""
    known = {field.name for field in fields(Authority)}
    if unknown := sorted(set(section) - known):
        raise ValueError(f"{unknown[0]!r} is no setting of an X.509 issuer; there are {', '.join(sorted(known))}")
    for name in ("certificate_file", "key_file", "trust_domain"):
        if name not in section or not isinstance(section[name], str):
            raise ValueError(f"{name!r} is missing, or no text")
    for name in ("min_ttl_s", "max_ttl_s"):
        value = section.get(name, 1)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name!r} must be a number, at least 1")
    authority = Authority(**section)
    if _TRUST_DOMAIN.fullmatch(authority.trust_domain) is None:
        raise ValueError("'trust_domain' must be lower-case letters, digits, '.', '_' and '-'")
    if authority.min_ttl_s > authority.max_ttl_s:
        raise ValueError("'min_ttl_s' is above 'max_ttl_s'")
    return authority


class X509Issuer:
    """Signs certificates here and at once, each for a new P-256 key. Construction raises ValueError for an authority
    that cannot sign.
    """

    kind = "x509"
    ending = Ending.EXPIRES_ONLY

    def __init__(self, *, authority: Authority, now: Now) -> None:
        self._authority, self._now = authority, now
        self._chain, self._key = _load(authority)
        self.min_ttl_s, self.max_ttl_s = authority.min_ttl_s, authority.max_ttl_s

    def foreseen(self, order: Order) -> Handle | None:
        """The serial number, which says which grant it is, and the latest possible end."""
        if (match := _GRANT.fullmatch(order.jti)) is None:
            return None
        serial = (1 << 96) | (int(match[1], 16) << 64) | int(match[2])
        return {"serial": f"{serial:x}", "expires": str(min(order.exp, order.iat + self.max_ttl_s))}

    def prepare(self, order: Order) -> Handle:
        """The same. Raises IssuerError."""
        if (handle := self.foreseen(order)) is None:
            raise IssuerError("The grant's id cannot be a serial number.", happened=False)
        return handle

    def issue(self, order: Order, prepared: Handle) -> Minted:
        """A new key and its certificate, checked before they are returned."""
        exp = int(prepared["expires"])
        if exp < order.iat + self.min_ttl_s:
            raise IssuerError(f"A certificate lasts {self.min_ttl_s} seconds at least.", happened=False)
        if datetime.fromtimestamp(exp, UTC) > self._chain[0].not_valid_after_utc:
            raise IssuerError("The certificate authority expires before the certificate would.", happened=False)
        if order.limited:
            raise IssuerError("A certificate cannot be held to the parameters of an action.", happened=False)
        try:
            uri = settings_of(order.settings).uri(self._authority.trust_domain, order)
        except ValueError as error:
            raise IssuerError(f"The settings of the resource are wrong: {error}.", happened=False) from None
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(order, key.public_key(), uri, int(prepared["serial"], 16), exp)
        certificate.verify_directly_issued_by(self._chain[0])
        pem = serialization.Encoding.PEM
        private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        values = {
            "certificate": certificate.public_bytes(pem).decode(),
            "private_key": private.decode(),
            "ca_chain": "".join(each.public_bytes(pem).decode() for each in self._chain),
        }
        return Minted(values=values, handle=prepared, exp=exp)

    def revoke(self, handle: Handle) -> None:
        """Nothing can be done: it ends by expiring."""

    def status(self, handle: Handle) -> Found:
        """Live until it expires. Nobody but the clock can be asked."""
        expires = int(handle["expires"])
        if self._now() >= expires * 1_000:
            return Found(Standing.GONE)
        when = datetime.fromtimestamp(expires, UTC).isoformat()
        return Found(Standing.LIVE, f"a certificate cannot be taken back; this one expires at {when}")

    def examine(self, resources: Mapping[str, Mapping[str, Any]], now: int) -> Iterator[Seen]:  # noqa: ARG002
        """See `issuers.Examiner`. There is no backend: what counts is how long the authority still lasts."""
        ends = self._chain[0].not_valid_after_utc
        left_s = ends.timestamp() - now / 1000
        if left_s <= self.max_ttl_s:
            yield Seen("authority", "wrong", f"its certificate ends at {ends:%Y-%m-%dT%H:%M:%SZ}", _RENEW)
        elif left_s < _SOON_S:
            yield Seen("authority", "warning", f"its certificate ends at {ends:%Y-%m-%dT%H:%M:%SZ}", _RENEW)
        else:
            yield Seen("authority", "ok", f"its certificate lasts until {ends:%Y-%m-%d}")

    def close(self, handle: Handle) -> None:
        """Nothing: nothing belongs to a task."""

    def orphans(self) -> Iterator[Handle]:
        """None that anybody could list."""
        return iter(())

    def _sign(
        self, order: Order, public: ec.EllipticCurvePublicKey, uri: str, serial: int, exp: int
    ) -> x509.Certificate:
        named = len(order.agent) <= _LONGEST_NAME
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, order.agent)] if named else [])
        authority = self._chain[0]
        usage = x509.KeyUsage(
            digital_signature=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=False,
            crl_sign=False,
            encipher_only=False,
            decipher_only=False,
        )
        begins = datetime.fromtimestamp(order.iat, UTC) - timedelta(seconds=SKEW_S)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(authority.subject)
            .public_key(public)
            .serial_number(serial)
            .not_valid_before(max(begins, authority.not_valid_before_utc))
            .not_valid_after(datetime.fromtimestamp(exp, UTC))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=not named)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(_authority_key(authority), critical=False)
            .sign(self._key, hashes.SHA256())
        )


def _authority_key(authority: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    try:
        own = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(_public(authority))
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def _public(authority: x509.Certificate) -> ec.EllipticCurvePublicKey | rsa.RSAPublicKey:
    key = authority.public_key()
    strong = (isinstance(key, rsa.RSAPublicKey) and key.key_size >= _WEAKEST_RSA) or (
        isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1)
    )
    if not strong or not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        raise ValueError("The key of the certificate authority must be P-256, P-384, or RSA with 2048 bits or more")
    return key


def _load(authority: Authority) -> tuple[list[x509.Certificate], ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey]:
    """The chain and the key of its first certificate. Raises ValueError unless that is an authority with this key."""
    try:
        chain = x509.load_pem_x509_certificates(Path(authority.certificate_file).read_bytes())
        key = serialization.load_pem_private_key(Path(authority.key_file).read_bytes(), password=None)
    except OSError as error:
        raise ValueError(f"{error.filename} cannot be read") from None
    except (ValueError, TypeError):  # their text may repeat what the files hold
        raise ValueError("The certificate authority's files are not PEM, or its key is encrypted") from None
    public = _public(chain[0])
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) or key.public_key() != public:
        raise ValueError(
            f"{authority.key_file} is not the key of the first certificate in {authority.certificate_file}"
        )
    try:
        is_authority = chain[0].extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        signs = chain[0].extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    except x509.ExtensionNotFound:
        is_authority = signs = False
    if not (is_authority and signs):
        raise ValueError(f"The first certificate in {authority.certificate_file} may not sign certificates")
    return chain, key
