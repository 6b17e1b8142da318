"""Section A of the attack catalogue, the part about signatures, claims and time; and 66, clocks that jump."""

import hashlib
import hmac

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from broker.jose import ClaimRefused, JoseError, UnknownKey, load_jwks, verify

from .forge import (
    AUDIENCE,
    EC,
    HEADER,
    ISSUER,
    KEY_OF,
    NOW,
    OTHER_EC,
    PAYLOAD,
    RSA,
    b64,
    claims,
    dump,
    jwk,
    keyset,
    profile,
    sign_parts,
    spliced,
    token,
    unb64,
)

GOOD = token()
HEAD, BODY, SIGNATURE = GOOD.split(".")
R, S = unb64(SIGNATURE)[:32], unb64(SIGNATURE)[32:]
ORDER = ec.SECP256R1().group_order
ALGS = frozenset(KEY_OF)


def refusal(token: str, **changes) -> JoseError:
    with pytest.raises(JoseError) as refused:
        verify(token, keyset().find, profile(**changes), NOW)
    return refused.value


# --- Signatures -------------------------------------------------------------------------------------------------------


def confused(secret: bytes) -> str:
    """HS256 with something public as the secret."""
    data = f"{b64(dump({'alg': 'HS256', 'typ': 'JWT', 'kid': 'k1'}))}.{b64(PAYLOAD)}"
    return f"{data}.{b64(hmac.new(secret, data.encode(), hashlib.sha256).digest())}"


def public(encoding, form, private=EC) -> bytes:
    return private.public_key().public_bytes(encoding, form)


ENC, FORM = serialization.Encoding, serialization.PublicFormat


@pytest.mark.parametrize(
    "secret",
    [
        pytest.param(public(ENC.PEM, FORM.SubjectPublicKeyInfo), id="A2-pem"),
        pytest.param(public(ENC.PEM, FORM.PKCS1, RSA), id="A2-pkcs1"),
        pytest.param(public(ENC.OpenSSH, FORM.OpenSSH), id="A2-ssh"),
        pytest.param(public(ENC.DER, FORM.SubjectPublicKeyInfo), id="A2-der"),
        pytest.param(dump(jwk()), id="A2-jwk-json"),
        pytest.param(b"", id="A3-empty"),
        pytest.param(b"None", id="A3-none"),
    ],
)
def test_no_public_key_is_ever_a_secret(secret: bytes) -> None:
    assert refusal(confused(secret), algs=ALGS).reason == "alg"


def with_signature(raw: bytes) -> str:
    return f"{HEAD}.{BODY}.{b64(raw)}"


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(bytes(64), id="A10-zero"),
        pytest.param(bytes(32) + S, id="A10-r-zero"),
        pytest.param(R + bytes(32), id="A10-s-zero"),
        pytest.param(ORDER.to_bytes(32, "big") + S, id="A10-r-order"),
        pytest.param(R + ORDER.to_bytes(32, "big"), id="A10-s-order"),
        pytest.param(b"\xff" * 64, id="A10-all-ones"),
        pytest.param(R + ((int.from_bytes(S, "big") + ORDER) % 2**256).to_bytes(32, "big"), id="A10-s-plus-order"),
        pytest.param(encode_dss_signature(int.from_bytes(R, "big"), int.from_bytes(S, "big")), id="A10-der"),
        pytest.param((R + S)[:-1], id="A10-truncated"),
        pytest.param(R + S + b"\0", id="A10-trailing"),
        pytest.param(b"\0" + R + b"\0" + S, id="A10-widened"),
        pytest.param(S + R, id="A10-swapped"),
        pytest.param(b"", id="A10-empty"),
    ],
)
def test_ecdsa_signatures(raw: bytes) -> None:
    assert refusal(with_signature(raw)).reason == "signature"


def rsa_signed(scheme, digest, alg: str) -> str:
    data = f"{b64(dump({'alg': alg, 'typ': 'JWT', 'kid': 'k1'}))}.{b64(PAYLOAD)}"
    return f"{data}.{b64(RSA.sign(data.encode(), scheme, digest))}"


def rsa_raw(block: bytes) -> str:
    """An RS256 token whose signature opens to `block`."""
    numbers = RSA.private_numbers()
    n, d = numbers.public_numbers.n, numbers.d
    signature = pow(int.from_bytes(block, "big"), d, n).to_bytes(256, "big")
    return f"{b64(dump({'alg': 'RS256', 'typ': 'JWT', 'kid': 'k1'}))}.{b64(PAYLOAD)}.{b64(signature)}"


def pkcs1_block(
    prefix: str = "3031300d060960864801650304020105000420", pad: bytes = b"\xff", junk: bytes = b""
) -> bytes:
    data = f"{b64(dump({'alg': 'RS256', 'typ': 'JWT', 'kid': 'k1'}))}.{b64(PAYLOAD)}"
    tail = b"\0" + bytes.fromhex(prefix) + hashlib.sha256(data.encode()).digest() + junk
    return b"\0\x01" + pad * (256 - 2 - len(tail)) + tail


SHA256, SHA384 = hashes.SHA256(), hashes.SHA384()


@pytest.mark.parametrize(
    ("bad", "alg"),
    [
        pytest.param(rsa_raw(pkcs1_block(pad=b"\xfe")), "RS256", id="A11-padding-bytes"),
        pytest.param(rsa_raw(pkcs1_block(junk=b"\0" * 8)), "RS256", id="A11-trailing-junk"),
        pytest.param(rsa_raw(pkcs1_block("302f300b0609608648016503040201" + "0420")), "RS256", id="A11-no-null"),
        pytest.param(rsa_raw(b"\0\x02" + pkcs1_block()[2:]), "RS256", id="A11-block-type"),
        pytest.param(rsa_raw(pkcs1_block(prefix="")), "RS256", id="A11-no-digest-info"),
        pytest.param(rsa_signed(padding.PKCS1v15(), SHA384, "RS256"), "RS256", id="A11-other-hash"),
        pytest.param(rsa_signed(padding.PSS(padding.MGF1(SHA256), 20), SHA256, "PS256"), "PS256", id="A11-pss-salt"),
        pytest.param(rsa_signed(padding.PSS(padding.MGF1(SHA384), 32), SHA256, "PS256"), "PS256", id="A11-pss-mgf"),
        pytest.param(rsa_signed(padding.PKCS1v15(), SHA256, "PS256"), "PS256", id="A11-pkcs1-as-pss"),
        pytest.param(
            rsa_signed(padding.PSS(padding.MGF1(SHA256), 32), SHA256, "RS256"), "RS256", id="A11-pss-as-pkcs1"
        ),
    ],
)
def test_rsa_signatures(bad: str, alg: str) -> None:
    with pytest.raises(JoseError) as refused:
        verify(bad, keyset(RSA, alg=alg).find, profile(algs=ALGS), NOW)
    assert refused.value.reason == "signature"


def test_the_forged_rsa_blocks_differ_from_a_good_one_only_where_they_say() -> None:
    verify(rsa_raw(pkcs1_block()), keyset(RSA, alg="RS256").find, profile(algs=ALGS), NOW)


@pytest.mark.parametrize("alg", sorted(KEY_OF))
def test_every_algorithm_works_and_is_bound_to_its_key(alg: str) -> None:
    good = token(alg=alg)
    assert verify(good, keyset(KEY_OF[alg], alg=alg).find, profile(algs=frozenset({alg})), NOW)["jti"] == "jti-1"
    if alg != "ES256":  # the set's key is for ES256, whatever the header says
        assert refusal(good, algs=ALGS).reason == "alg"
    with pytest.raises(JoseError) as refused:
        verify(good, keyset(KEY_OF[alg], alg=alg).find, profile(algs=ALGS - {alg}), NOW)
    assert refused.value.reason == "alg"


@pytest.mark.parametrize("place", [0, 1, 2])
def test_any_flipped_bit_is_noticed(place: int) -> None:
    parts = GOOD.split(".")
    raw = bytearray(unb64(parts[place]))
    for index in range(len(raw)):
        raw[index] ^= 1
        changed = [*parts[:place], b64(bytes(raw)), *parts[place + 1 :]]
        refusal(".".join(changed))
        raw[index] ^= 1


def test_a22_a_key_of_another_issuer_does_not_sign_for_this_one() -> None:
    assert refusal(token(key=OTHER_EC)).reason == "signature"


def test_a7_a_kid_of_another_issuer_is_unknown_here() -> None:
    with pytest.raises(UnknownKey):
        verify(token(header={"kid": "theirs"}), keyset().find, profile(), NOW)


def test_a23_nothing_is_remembered_by_a_part_of_the_token() -> None:
    find = keyset().find
    verify(GOOD, find, profile(), NOW)
    verify(GOOD, find, profile(), NOW)
    for cut in (20, len(HEAD) + 10, len(HEAD) + len(BODY) + 5):
        with pytest.raises(JoseError):
            verify(GOOD[:cut] + token({"sub": "admin"}, key=OTHER_EC)[cut:], find, profile(), NOW)


def test_a24_there_is_no_way_to_claims_but_verification() -> None:
    """Header members reach nobody, and claims come out of `verify` only."""
    verified = verify(GOOD, keyset().find, profile(), NOW)
    assert set(verified) == set(claims())
    assert verified.header.kid == "k1"
    assert verified.audiences == (AUDIENCE,)
    assert verified.expires_s == claims()["exp"]


# --- Claims -----------------------------------------------------------------------------------------------------------


def raw_claim(text: bytes, without: str) -> str:
    return sign_parts(HEADER, spliced(text, dump(claims(**{without: None}))))


@pytest.mark.parametrize(
    ("bad", "reason", "claim"),
    [
        # 18: dates
        pytest.param(token({"exp": None}), "claim_missing", "exp", id="A18-exp-missing"),
        pytest.param(raw_claim(b'"exp":null', "exp"), "time_form", "exp", id="A18-exp-null"),
        pytest.param(token({"exp": str(NOW + 60)}), "time_form", "exp", id="A18-exp-string"),
        pytest.param(token({"exp": True}), "time_form", "exp", id="A18-exp-bool"),
        pytest.param(token({"exp": NOW + 60.0}), "time_form", "exp", id="A18-exp-float"),
        pytest.param(token({"exp": NOW + 0.5}), "time_form", "exp", id="A18-exp-fraction"),
        pytest.param(raw_claim(b'"exp":1e400', "exp"), "json", None, id="A18-exp-1e400"),
        pytest.param(raw_claim(b'"exp":1e18', "exp"), "time_form", "exp", id="A18-exp-1e18"),
        pytest.param(raw_claim(b'"exp":Infinity', "exp"), "json", None, id="A18-exp-infinity"),
        pytest.param(token({"exp": -1}), "time_form", "exp", id="A18-exp-negative"),
        pytest.param(token({"exp": 10**30}), "number", None, id="A18-exp-huge"),
        pytest.param(token({"exp": 10**18}), "time_form", "exp", id="A18-exp-far"),
        pytest.param(token({"exp": [NOW + 60]}), "time_form", "exp", id="A18-exp-list"),
        pytest.param(token({"nbf": NOW + 291}), "time_order", "nbf", id="A18-nbf-after-exp"),
        pytest.param(token({"nbf": NOW + 60}), "not_yet", "nbf", id="A18-nbf-future"),
        pytest.param(token({"nbf": str(NOW)}), "time_form", "nbf", id="A18-nbf-string"),
        pytest.param(token({"iat": NOW + 60}), "not_yet", "iat", id="A18-iat-future"),
        pytest.param(token({"iat": NOW + 290}), "time_order", "iat", id="A18-iat-is-exp"),
        pytest.param(token({"iat": True}), "time_form", "iat", id="A18-iat-bool"),
        pytest.param(token({"iat": NOW - 11}), "lifetime", "exp", id="A18-lifetime"),
        pytest.param(token({"iat": None, "exp": NOW + 301}), "lifetime", "exp", id="A18-lifetime-without-iat"),
        # 21: audience
        *(
            pytest.param(token({"aud": value}), "audience", "aud", id=f"A21-aud-{name}")
            for name, value in (
                ("missing", None),
                ("empty-list", []),
                ("empty", ""),
                ("two", [AUDIENCE, "https://evil.example"]),
                ("twice", [AUDIENCE, AUDIENCE]),
                ("nested", [[AUDIENCE]]),
                ("object", {"0": AUDIENCE}),
                ("number", 1),
                ("prefix", AUDIENCE[:-1]),
                ("longer", AUDIENCE + ".evil.example"),
                ("slash", AUDIENCE + "/"),
                ("case", AUDIENCE.upper()),
                ("http", AUDIENCE.replace("https", "http")),
                ("token-endpoint", AUDIENCE + "/oauth2/token"),
                ("nul", AUDIENCE + "\0"),
                ("many", [AUDIENCE] * 17),
            )
        ),
        pytest.param(raw_claim(b'"aud":null', "aud"), "audience", "aud", id="A21-aud-null"),
        # 22: issuer look-alikes
        *(
            pytest.param(token({"iss": value}), "issuer", "iss", id=f"A22-iss-{name}")
            for name, value in (
                ("slash", ISSUER + "/"),
                ("case", "https://ISSUER.example"),
                ("userinfo", "https://issuer.example@evil.example"),
                ("idn", "https://issu\u0435r.example"),
                ("port", ISSUER + ":443"),
                ("path", ISSUER + "/x"),
                ("dot", ISSUER + "."),
                ("prefix", ISSUER[:-1]),
            )
        ),
        pytest.param(token({"iss": None}), "claim_missing", "iss", id="A22-iss-missing"),
        pytest.param(token({"iss": [ISSUER]}), "claim_form", "iss", id="A22-iss-list"),
        # 16: identifiers
        *(
            pytest.param(token({name: value}), "claim_form", name, id=f"A16-{name}-{kind}")
            for name in ("sub", "jti", "client_id")
            for kind, value in (
                ("nul", "a\0b"),
                ("newline", "a\nb"),
                ("escape", "a\x1b[2J"),
                ("bidi", "a\u202eb"),
                ("invisible", "a\u200bb"),
                ("empty", ""),
                ("number", 7),
                ("list", ["a"]),
                ("bool", True),
                ("long", "a" * 256),
            )
        ),
        pytest.param(raw_claim(b'"sub":null', "sub"), "claim_form", "sub", id="A16-sub-null"),
        pytest.param(token({"sub": None}), "claim_missing", "sub", id="A16-sub-missing"),
        pytest.param(token({"jti": None}), "claim_missing", "jti", id="B28-jti-missing"),
    ],
)
def test_claims(bad: str, reason: str, claim: str | None) -> None:
    refused = refusal(bad)
    assert refused.reason == reason
    assert (refused.claim if isinstance(refused, ClaimRefused) else None) == claim
    assert str(refused).isprintable()


def test_audience_as_a_string_or_as_a_list_of_one() -> None:
    for aud in (AUDIENCE, [AUDIENCE]):
        assert verify(token({"aud": aud}), keyset().find, profile(), NOW).audiences == (AUDIENCE,)


def test_several_audiences_only_where_the_profile_says_so() -> None:
    several = token({"aud": ["https://other.example", AUDIENCE]})
    assert verify(several, keyset().find, profile(sole_audience=False), NOW).audiences[1] == AUDIENCE
    assert refusal(token({"aud": ["https://other.example"]}), sole_audience=False).reason == "audience"


def test_a_token_without_audience_by_design() -> None:
    assert verify(token({"aud": None}), keyset().find, profile(audiences=None), NOW).audiences == ()
    assert verify(token(), keyset().find, profile(audiences=None), NOW).audiences == (AUDIENCE,)
    assert refusal(token({"aud": 1}), audiences=None).reason == "audience"


def test_typ_may_be_optional_but_never_wrong() -> None:
    assert verify(token(header={"typ": None}), keyset().find, profile(typ_required=False), NOW)
    assert refusal(token(header={"typ": "at+jwt"}), typ_required=False).reason == "typ"


def test_profiles_that_would_check_nothing_cannot_be_made() -> None:
    for changes in (
        {"algs": frozenset()},
        {"algs": frozenset({"none"})},
        {"algs": frozenset({"HS256"})},
        {"audiences": frozenset()},
    ):
        with pytest.raises(ValueError, match=r"."):
            profile(**changes)


# --- Time: 19 and 66 --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        pytest.param(claims()["exp"] - 1, None, id="F66-last-second"),
        pytest.param(claims()["exp"], "expired", id="A19-no-leeway"),
        pytest.param(NOW + 3_600, "expired", id="F66-an-hour-ahead"),
        pytest.param(NOW - 3_600, "not_yet", id="F66-an-hour-back"),
        pytest.param(0, "not_yet", id="F66-1970"),
        pytest.param(2**31, "expired", id="F66-2038"),
        pytest.param(claims()["iat"], None, id="F66-same-second"),
        pytest.param(claims()["iat"] - 1, "not_yet", id="F66-a-second-early"),
        pytest.param(NOW - 120, "not_yet", id="F66-two-minutes-back"),
        pytest.param(NOW + 120, None, id="F66-two-minutes-ahead"),
    ],
)
def test_a_clock_that_jumps(now: int, reason: str | None) -> None:
    if reason is None:
        verify(GOOD, keyset().find, profile(), now)
        return
    with pytest.raises(ClaimRefused) as refused:
        verify(GOOD, keyset().find, profile(), now)
    assert refused.value.reason == reason


def test_f66_a_clock_set_back_lets_a_token_without_iat_live_no_longer_than_the_bound() -> None:
    bare = token({"iat": None})
    with pytest.raises(ClaimRefused) as refused:
        verify(bare, keyset().find, profile(), NOW - 3_600)
    assert refused.value.reason == "lifetime"


def test_leeway_and_skew_are_what_the_profile_says() -> None:
    exp = claims()["exp"]
    verify(GOOD, keyset().find, profile(leeway_s=5), exp + 4)
    with pytest.raises(ClaimRefused):
        verify(GOOD, keyset().find, profile(leeway_s=5), exp + 5)
    ahead = token({"iat": NOW + 30, "nbf": NOW + 30})
    verify(ahead, keyset().find, profile(max_ahead_s=30), NOW)
    assert refusal(ahead, max_ahead_s=29).reason == "not_yet"


def test_keys_are_asked_for_before_claims_are_believed() -> None:
    """An expired token with a bad signature is a bad signature: claims tell nothing until they are verified."""
    assert refusal(token({"exp": NOW - 1}, key=OTHER_EC)).reason == "signature"
    with pytest.raises(UnknownKey):
        verify(GOOD, load_jwks({"keys": []}).find, profile(), NOW)
