"""Client certificates: what they say, and what an authority must be."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from issuers import IssuerError, Order
from issuers.x509 import SKEW_S, X509Issuer, authority_of, settings_of
from tests.issuers.harness import EPOCH
from tests.issuers.x509_harness import X509Harness, write_authority


@pytest.fixture
def at(tmp_path: Path) -> X509Harness:
    return X509Harness(tmp_path / "ca")


def certificate(at: X509Harness, order: Order) -> x509.Certificate:
    minted = at.issuer.issue(order, at.issuer.prepare(order))
    return x509.load_pem_x509_certificate(minted.values["certificate"].encode())


def test_it_says_who_it_is_for_and_that_it_is_a_clients(at: X509Harness) -> None:
    order = at.order()
    made = certificate(at, order)
    extensions = made.extensions
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName)
    uri = f"spiffe://example.org/agent/{order.agent}/task/{order.task}"
    assert list(names.value) == [x509.UniformResourceIdentifier(uri)]
    assert [attribute.value for attribute in made.subject] == [order.agent]
    usage = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    constraints = extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert not constraints.value.ca
    assert made.not_valid_after_utc.timestamp() == order.exp
    assert made.not_valid_before_utc.timestamp() == order.iat - SKEW_S
    assert at.use(at.issuer.issue(order, at.issuer.prepare(order)).values).proof == uri


def test_its_serial_number_is_the_grants_and_its_key_its_own(at: X509Harness) -> None:
    order = at.order()
    first, again = certificate(at, order), certificate(at, order)
    assert f"{first.serial_number:x}" == f"1{EPOCH}{order.seq:016x}"
    assert first.serial_number == again.serial_number
    assert first.public_key() != again.public_key()


def test_the_path_is_the_resources(at: X509Harness) -> None:
    order = at.order(settings={"path": "/ns/prod/{agent}/{grant}"})
    names = certificate(at, order).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    uri = f"spiffe://example.org/ns/prod/{order.agent}/{order.jti}"
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [uri]


@pytest.mark.parametrize("agent", ["..", "a/b", "a b", "ä", "", "a%2Fb", "a" * 300])
def test_no_name_leaves_its_segment(at: X509Harness, agent: str) -> None:
    with pytest.raises(IssuerError, match="SPIFFE ID") as caught:
        certificate(at, at.order(agent=agent))
    assert caught.value.happened is False


def test_a_long_name_is_in_the_uri_alone_which_is_critical_then(at: X509Harness) -> None:
    made = certificate(at, at.order(agent="a" * 100))
    assert list(made.subject) == []
    assert made.extensions.get_extension_for_class(x509.SubjectAlternativeName).critical


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda at: {"exp": at.order().iat + 5}, "60 seconds"),
        (lambda at: {"limited": ("pay",)}, "parameters"),
        (lambda at: {"settings": {"paht": "/x"}}, "settings"),
        (lambda at: {"iat": at.order().iat + 40 * 86_400, "exp": at.order().iat + 40 * 86_400 + 100}, "expires before"),
    ],
)
def test_what_cannot_be_kept_is_not_signed(
    at: X509Harness, change: Callable[[X509Harness], dict[str, Any]], says: str
) -> None:
    with pytest.raises(IssuerError, match=says) as caught:
        certificate(at, at.order(**change(at)))
    assert caught.value.happened is False


# --- The authority ----------------------------------------------------------------------------------------------------


def test_an_rsa_authority_will_do(tmp_path: Path) -> None:
    section = write_authority(tmp_path, key=rsa.generate_private_key(public_exponent=65_537, key_size=2_048))
    issuer = X509Issuer(authority=authority_of(section), now=lambda: 0)
    order = X509Harness(tmp_path / "other").order()
    issuer.issue(order, issuer.prepare(order))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda place: write_authority(place, ca=False), "may not sign"),
        (lambda place: write_authority(place, key=ec.generate_private_key(ec.SECP521R1())), "P-256, P-384, or RSA"),
        (
            lambda place: write_authority(place, key=rsa.generate_private_key(public_exponent=65_537, key_size=1_024)),
            "RSA",
        ),
        (lambda place: (place / "ca-key.pem").unlink(), "cannot be read"),
        (lambda place: (place / "ca.pem").write_text("hello"), "not PEM"),
        (lambda place: (place / "ca-key.pem").write_bytes(pem(ec.generate_private_key(ec.SECP384R1()))), "not the key"),
        (lambda place: (place / "ca-key.pem").write_bytes(pem(ed25519.Ed25519PrivateKey.generate())), "not the key"),
        (
            lambda place: (place / "ca-key.pem").write_bytes(pem(ec.generate_private_key(ec.SECP384R1()), b"x")),
            "encrypted",
        ),
    ],
)
def test_an_authority_that_cannot_sign_is_refused(tmp_path: Path, spoil: Callable[[Path], Any], says: str) -> None:
    section = write_authority(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=says):
        X509Issuer(authority=authority_of(section), now=lambda: 0)


def pem(key: Any, password: bytes | None = None) -> bytes:
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"key_file": 5}, "'key_file'"),
        ({"trust_domain": "Example.org"}, "'trust_domain'"),
        ({"trust_domain": "a/b"}, "'trust_domain'"),
        ({"min_ttl_s": 0}, "'min_ttl_s'"),
        ({"max_ttl_s": True}, "'max_ttl_s'"),
        ({"min_ttl_s": 9, "max_ttl_s": 8}, "above"),
        ({"keyfile": "x"}, "no setting"),
    ],
)
def test_a_wrong_section_is_refused_with_a_sentence(change: dict[str, Any], says: str) -> None:
    section = {"certificate_file": "a", "key_file": "b", "trust_domain": "example.org"}
    with pytest.raises(ValueError, match=says):
        authority_of(section | change)


@pytest.mark.parametrize("path", ["", "agent", "/", "/a//b", "/a/../b", "/a/{agent}x", "/{owner}", 5, "/a b", "/a/"])
def test_a_path_that_is_none_of_a_spiffe_id_is_refused(path: object) -> None:
    with pytest.raises(ValueError, match="'path'"):
        settings_of({"path": path})
