"""Keys: case 7 and 12 of the attack catalogue, the rows of Wycheproof that libraries let through, RFC 7638 and 8037."""

import copy
import itertools

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from broker.jose import (
    BadSignature,
    HeaderRefused,
    KeyNotUsable,
    KeyRefused,
    UnknownKey,
    load_jwk,
    load_jwks,
    thumbprint,
)
from broker.jose.keys import MAX_JWKS_BYTES, MAX_KEYS
from broker.jose.weak import is_roca

from .forge import EC, EC384, EC521, ED, KEY_OF, OTHER_EC, RSA, b64, dump, jwk, sign, token, unb64


def uint(value: int) -> str:
    return b64(value.to_bytes((value.bit_length() + 7) // 8, "big"))


def roca_modulus() -> int:
    """A number like those of CVE-2017-15361: a power of 65537 modulo the product of the small primes."""
    product = 1
    for prime in (n for n in range(2, 168) if all(n % d for d in range(2, n))):
        product *= prime
    residue = pow(65537, 123_457, product)
    return next(n for n in itertools.count(residue + (product << 1840), product) if n.bit_length() == 2048 or n >> 2048)


def rsa_jwk(**changes):
    return jwk(RSA, alg="RS256", **changes)


N = RSA.public_key().public_numbers().n
X, Y = jwk()["x"], jwk()["y"]
OFF_CURVE = b64((int.from_bytes(EC.public_key().public_numbers().y.to_bytes(32, "big"), "big") ^ 1).to_bytes(32, "big"))

DANGEROUS = [
    pytest.param({"kty": "oct", "k": b64(b"k" * 32), "kid": "k1"}, "symmetric_key", id="A2-oct"),
    pytest.param({"kty": "oct", "k": "", "kid": "k1"}, "symmetric_key", id="A3-oct-empty"),
    pytest.param({"kty": "oct", "kid": "k1"}, "symmetric_key", id="A3-oct-without-k"),
    pytest.param(jwk(k=b64(b"k" * 32)), "symmetric_key", id="A2-ec-with-k"),
    pytest.param(jwk(d=b64(b"d" * 32)), "private_key", id="A12-private-ec"),
    pytest.param(rsa_jwk(p="AQAB"), "private_key", id="A12-private-rsa-factor"),
    pytest.param(rsa_jwk(oth=[]), "private_key", id="A12-private-rsa-oth"),
    pytest.param(jwk(ED, d=b64(b"d" * 32)), "private_key", id="A12-private-okp"),
    pytest.param(rsa_jwk(n=uint(N >> 1024 | 1)), "rsa_size", id="A12-rsa-1024"),
    pytest.param(rsa_jwk(n=uint((1 << 8192) + 1)), "rsa_size", id="A12-rsa-8193"),
    pytest.param(rsa_jwk(n=uint(N - 1)), "rsa_size", id="A12-rsa-even"),
    pytest.param(rsa_jwk(n=b64(b"\x01" * 10_000)), "key_form", id="I83-rsa-huge"),
    pytest.param(rsa_jwk(n="AA" + jwk(RSA)["n"]), "key_form", id="A12-rsa-leading-zero"),
    pytest.param(rsa_jwk(n=""), "key_form", id="A12-rsa-empty-n"),
    pytest.param(rsa_jwk(n=7), "key_form", id="A12-rsa-number-n"),
    pytest.param(rsa_jwk(n=jwk(RSA)["n"] + "="), "key_form", id="A12-rsa-padded"),
    *(
        pytest.param(rsa_jwk(e=uint(e)), "rsa_exponent", id=f"A12-rsa-e-{e}")
        for e in (1, 3, 17, 65_535, 65_536, 2**40 + 1)
    ),
    pytest.param(rsa_jwk(n=uint(roca_modulus())), "roca", id="A12-roca"),
    pytest.param(jwk(y=OFF_CURVE), "key_point", id="A12-point-off-curve"),
    pytest.param(jwk(x=b64(bytes(32)), y=b64(bytes(32))), "key_point", id="A12-point-zero"),
    pytest.param(jwk(x=b64(b"\xff" * 32)), "key_point", id="A12-point-over-p"),
    pytest.param(jwk(x=X[:-3]), "key_form", id="A12-short-x"),
    pytest.param(jwk(x=b64(b"\0" + bytes(32))), "key_form", id="A12-long-x"),
    pytest.param(jwk(x=None), "key_form", id="A12-missing-x"),
    pytest.param(jwk(crv="P-384", alg=None), "key_form", id="A12-other-curve"),
    pytest.param(jwk(alg="ES384"), "key_alg", id="A12-alg-of-other-curve"),
    pytest.param(jwk(alg="RS256"), "key_alg", id="A12-alg-of-other-type"),
    pytest.param(jwk(alg=1), "key_alg", id="A12-alg-number"),
    pytest.param(jwk(key_ops="verify"), "key_form", id="A12-key-ops-text"),
    pytest.param(jwk(kid=7), "key_kid", id="A6-kid-number"),
    pytest.param(jwk(kid="k\n"), "key_kid", id="A6-kid-control"),
    pytest.param(jwk(ED, x=b64(bytes(31))), "key_form", id="A12-ed-short"),
    *(
        pytest.param(jwk(ED, x=b64(bytes.fromhex(point))), "key_point", id=f"A12-ed-{name}")
        for name, point in (
            ("order-1", "01" + 31 * "00"),
            ("order-2", "ec" + 30 * "ff" + "7f"),
            ("order-4", 32 * "00"),
            ("order-4-negative", 31 * "00" + "80"),
            ("order-8", "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
            ("order-8-other", "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
            ("not-reduced", 32 * "ff"),
            ("off-curve", "02" + 31 * "00"),
        )
    ),
]

OTHER_PURPOSE = [
    pytest.param(jwk(use="enc"), id="A12-use-enc"),  # Wycheproof signature 354
    pytest.param(rsa_jwk(use="enc"), id="A12-use-enc-rsa"),  # 353
    pytest.param(jwk(use=None, key_ops=["encrypt"]), id="A12-key-ops"),  # 356
    pytest.param(rsa_jwk(use=None, key_ops=["encrypt"]), id="A12-key-ops-rsa"),  # 355
    pytest.param(jwk(key_ops=[]), id="A12-key-ops-empty"),
    pytest.param(jwk(key_ops=["sign"]), id="A12-key-ops-sign"),
    pytest.param(jwk(alg="ES521"), id="A12-alg-misspelt"),
    pytest.param(jwk(alg="ES224"), id="A12-alg-unknown"),
    pytest.param(jwk(alg="HS256"), id="A2-alg-hs256"),
    pytest.param(jwk(alg="none"), id="A1-alg-none"),
    pytest.param(rsa_jwk() | {"alg": "RSA-OAEP"}, id="A12-alg-encryption"),
    pytest.param(jwk(kty="ec"), id="A12-kty-case"),
    pytest.param(jwk(kty=None), id="A12-kty-missing"),
    pytest.param(jwk(crv="secp256k1", alg=None), id="A12-curve"),
    pytest.param(jwk(crv=["P-256"]), id="A12-curve-list"),
    pytest.param(jwk(ED, crv="X25519"), id="A12-okp-curve"),
]


@pytest.mark.parametrize(("entry", "reason"), DANGEROUS)
def test_a_dangerous_key_spoils_its_set(entry, reason: str) -> None:
    with pytest.raises(KeyRefused) as refusal:
        load_jwks({"keys": [jwk(OTHER_EC, kid="good"), entry]})
    assert refusal.value.reason == reason
    assert not isinstance(refusal.value, KeyNotUsable)


@pytest.mark.parametrize("entry", OTHER_PURPOSE)
def test_a_key_for_something_else_is_skipped(entry) -> None:
    with pytest.raises(KeyNotUsable):
        load_jwk(entry)
    assert list(load_jwks({"keys": [jwk(OTHER_EC, kid="good"), entry]}).keys) == ["good"]


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        pytest.param({"keys": [jwk(), jwk(OTHER_EC)]}, "duplicate_kid", id="A7-duplicate-kid"),
        pytest.param({"keys": [jwk(), jwk(OTHER_EC, use="enc")]}, "duplicate_kid", id="A7-duplicate-kid-skipped"),
        pytest.param({"keys": [jwk(kid=None), jwk(kid=None)]}, "duplicate_kid", id="A7-same-key-twice"),
        pytest.param(
            {"keys": [jwk(kid=None), jwk(OTHER_EC, kid=thumbprint(jwk()))]},
            "duplicate_kid",
            id="A7-kid-is-a-thumbprint",
        ),
        pytest.param({}, "jwks_form", id="I83-no-keys"),
        pytest.param({"keys": {}}, "jwks_form", id="I83-keys-object"),
        pytest.param({"keys": "k"}, "jwks_form", id="I83-keys-text"),
        pytest.param({"keys": ["k"]}, "jwks_form", id="I83-key-text"),
        pytest.param({"keys": [jwk(kid=str(n)) for n in range(MAX_KEYS + 1)]}, "jwks_form", id="I83-many-keys"),
        pytest.param(b"<html>", "jwks_form", id="I83-not-json"),
        pytest.param(b"[]", "jwks_form", id="I83-array"),
        pytest.param(b'{"keys":[],"keys":[]}', "jwks_form", id="A16-duplicate-member"),
        pytest.param(b'{"keys":[' + b" " * MAX_JWKS_BYTES + b"]}", "jwks_size", id="I83-large"),
    ],
)
def test_a_set_that_is_refused(document, reason: str) -> None:
    with pytest.raises(KeyRefused) as refusal:
        load_jwks(document)
    assert refusal.value.reason == reason


@pytest.mark.parametrize("alg", sorted(KEY_OF))
def test_each_algorithm_verifies_with_its_key_and_no_other(alg: str) -> None:
    key = load_jwk(jwk(KEY_OF[alg], alg=alg))
    signature = sign(alg, KEY_OF[alg], b"text")
    key.verify(alg, b"text", signature)
    with pytest.raises(BadSignature):
        key.verify(alg, b"texts", signature)
    for other in set(KEY_OF) - {alg} - ({"EdDSA", "Ed25519"} if alg[:2] == "Ed" else set()):
        with pytest.raises(HeaderRefused):
            key.verify(other, b"text", signature)


@pytest.mark.parametrize(("private", "alg"), [(EC, "ES256"), (EC384, "ES384"), (EC521, "ES512")])
def test_a_curve_fixes_the_algorithm(private, alg: str) -> None:
    assert load_jwk(jwk(private, alg=None)).algs == {alg}


def test_an_rsa_key_without_alg_is_bound_to_its_rows_list() -> None:
    assert load_jwk(jwk(RSA, alg=None), algs=["RS256", "ES256"]).algs == {"RS256"}
    with pytest.raises(KeyNotUsable):
        load_jwk(jwk(RSA, alg=None), algs=["ES256"])
    with pytest.raises(KeyNotUsable):
        load_jwk(jwk(RSA, alg="PS256"), algs=["RS256"])


def test_svid_keys_are_those_with_that_use() -> None:
    entries = [jwk(use="jwt-svid", alg=None), jwk(OTHER_EC, kid="x", use="x509-svid"), jwk(EC384, kid="y", use=None)]
    assert list(load_jwks({"keys": entries}, use="jwt-svid").keys) == ["k1"]
    assert list(load_jwks({"keys": entries}).keys) == ["y"]


def test_lookup_without_kid_needs_a_single_candidate() -> None:
    one = load_jwks({"keys": [jwk(), rsa_jwk(kid="r")]})
    assert one.find(None, "ES256").kid == "k1"
    with pytest.raises(UnknownKey):
        load_jwks({"keys": [jwk(), jwk(OTHER_EC, kid="k2")]}).find(None, "ES256")
    with pytest.raises(UnknownKey):
        one.find(None, "ES384")
    with pytest.raises(UnknownKey):
        one.find("k9", "ES256")


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        pytest.param(
            {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
            "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k",
            id="RFC8037-A.3",
        ),
        pytest.param(
            {
                "kty": "RSA",
                "n": "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPeb"
                "WKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJ"
                "ZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBn"
                "iIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw",
                "e": "AQAB",
                "alg": "RS256",
                "kid": "2011-04-29",
            },
            "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs",
            id="RFC7638-3.1",
        ),
    ],
)
def test_published_thumbprints(key, expected: str) -> None:
    assert thumbprint(key) == expected
    assert load_jwk({**key, "kid": None} if "kid" not in key else key).kid in (expected, "2011-04-29")


def test_thumbprint_covers_the_canonical_members_only() -> None:
    bare = {name: value for name, value in jwk().items() if name in ("kty", "crv", "x", "y")}
    assert thumbprint(jwk()) == thumbprint(bare)
    with pytest.raises(KeyRefused):
        thumbprint({"kty": "EC", "crv": "P-256", "x": X})


@pytest.mark.parametrize("private", [EC, EC384, EC521, RSA, ED])
def test_a_published_key_loads_again(private) -> None:
    made = jwk(private, kid=None)
    key = load_jwk(made)
    assert key.kid == thumbprint(made)
    assert made["alg"] in key.algs


def test_sound_keys_do_not_look_weak() -> None:
    assert not any(is_roca(rsa.generate_private_key(65537, 1024).public_key().public_numbers().n) for _ in range(5))
    for _ in range(50):
        load_jwk(jwk(ed25519.Ed25519PrivateKey.generate()))
        load_jwk(jwk(ec.generate_private_key(ec.SECP256R1())))


def test_loading_changes_nothing_and_reads_bytes_as_well() -> None:
    document = {"keys": [jwk(), rsa_jwk(kid="r")], "extra": 1}
    before = copy.deepcopy(document)
    assert load_jwks(document).keys.keys() == load_jwks(dump(document)).keys.keys() == {"k1", "r"}
    assert document == before


def test_a_key_of_another_issuer_has_the_same_kid_and_still_does_not_verify() -> None:
    ours, theirs = load_jwks({"keys": [jwk()]}), token(key=OTHER_EC)
    head, body, signature = theirs.split(".")
    with pytest.raises(BadSignature):
        ours.find("k1", "ES256").verify("ES256", f"{head}.{body}".encode(), unb64(signature))
