"""Section A of the attack catalogue, the part about reading: refused before any key is looked at, or any byte believed.

All tokens here are signed correctly unless the case is about the signature: what refuses them is the strict form.
"""

import json

import pytest

from broker.jose import HeaderRefused, JoseError, Malformed, parse, verify

from .forge import HEADER, NOW, PAYLOAD, b64, claims, dump, keyset, profile, sign_parts, spliced, token, unb64

GOOD = token()
HEAD, BODY, SIGNATURE = GOOD.split(".")


def with_header(**members):
    return token(header=members)


def flipped_last(part: str) -> str:
    """Another spelling of the same bytes: the unused low bits of the last character are set."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    twin = alphabet[alphabet.index(part[-1]) ^ 1]
    assert unb64(part) == unb64(part[:-1] + twin)
    return part[:-1] + twin


def padded_payload() -> str:
    """A payload whose length leaves unused bits."""
    return next(b64(dump(claims(jti="x" * n))) for n in range(1, 4) if len(b64(dump(claims(jti="x" * n)))) % 4)


CASES = [
    # 1, 2: no algorithm without a public key exists
    pytest.param(f"{HEAD}.{BODY}.", "signature", id="A1-empty-signature"),
    *(pytest.param(with_header(alg=alg), "alg", id=f"A1-alg-{alg}") for alg in ("none", "None", "nOnE", "NONE")),
    pytest.param(with_header(alg=""), "alg", id="A1-alg-empty"),
    pytest.param(with_header(alg=None), "alg", id="A1-alg-missing"),
    pytest.param(with_header(alg=["ES256"]), "alg", id="A1-alg-list"),
    pytest.param(with_header(alg="es256"), "alg", id="A1-alg-case"),
    # 4, 5: keys and their addresses do not come with the token
    *(
        pytest.param(with_header(**{name: value}), "header_member", id=f"A{number}-header-{name}")
        for number, name, value in (
            (4, "jwk", {"kty": "EC"}),
            (5, "jku", "https://evil.example/jwks"),
            (5, "x5u", "http://169.254.169.254/"),
            (5, "x5c", ["MII"]),
            (8, "crit", ["exp"]),
            (8, "crit", []),
            (8, "crit", ["b64"]),
            (9, "b64", False),
            (9, "b64", True),
            (14, "zip", "DEF"),
            (14, "enc", "A256GCM"),
            (14, "p2c", 2**31),
            (16, "cty", "JWT"),
            (16, "unknown", 1),
        )
    ),
    # 6: key ids
    *(
        pytest.param(with_header(kid=kid), reason, id=f"A6-kid-{name}")
        for name, kid, reason in (
            ("traversal", "../../dev/null", "unknown_key"),
            ("sql", "' OR 1=1 --", "unknown_key"),
            ("file", "file:///etc/passwd", "unknown_key"),
            ("crlf", "k1\r\nX: y", "kid"),
            ("nul", "k1\x00", "kid"),
            ("list", ["k1"], "kid"),
            ("int", 1, "kid"),
            ("null", "", "kid"),
            ("10kb", "k" * 10_000, "too_long"),
            ("long", "k" * 201, "kid"),
            ("bidi", "k1\u202e", "kid"),
        )
    ),
    pytest.param(sign_parts(spliced(b'"kid":null', b'{"alg":"ES256"}'), PAYLOAD), "kid", id="A6-kid-json-null"),
    # 13, 14: one serialisation
    pytest.param(
        dump({"payload": BODY, "protected": HEAD, "signature": SIGNATURE}).decode(), "compact_form", id="A13-flat"
    ),
    pytest.param(
        dump({"payload": BODY, "signatures": [{"protected": HEAD, "signature": SIGNATURE}]}).decode(),
        "compact_form",
        id="A13-general",
    ),
    pytest.param(f"{HEAD}.{BODY}.{SIGNATURE}.{SIGNATURE}", "compact_form", id="A13-two-signatures"),
    pytest.param(f"{HEAD}.{BODY}.{SIGNATURE}.x.y", "compact_form", id="A14-five-segments"),
    pytest.param(f"{HEAD}.{BODY}", "compact_form", id="A13-two-segments"),
    pytest.param("", "compact_form", id="A13-empty"),
    pytest.param("..", "json", id="A13-empty-segments"),
    # 15: sizes
    pytest.param(token({"x": "x" * 9_000}), "too_long", id="A15-large-payload"),
    pytest.param(with_header(x="x" * 9_000), "too_long", id="A15-large-header"),
    pytest.param(GOOD + "A" * 9_000, "too_long", id="A15-large-signature"),
    pytest.param("." * 500_000, "too_long", id="A15-dots"),
    # 16: JSON that two parsers read differently
    pytest.param(sign_parts(HEADER, spliced(b'"sub":"admin"')), "duplicate_member", id="A16-duplicate-payload"),
    pytest.param(sign_parts(HEADER, PAYLOAD[:-1] + b',"exp":9999999999}'), "duplicate_member", id="A16-duplicate-last"),
    pytest.param(sign_parts(HEADER, spliced(b'"s\\u0075b":"admin"')), "duplicate_member", id="A16-duplicate-escaped"),
    pytest.param(sign_parts(HEADER, spliced(b'"x":{"a":1,"a":1}')), "duplicate_member", id="A16-duplicate-nested"),
    pytest.param(sign_parts(spliced(b'"alg":"none"', HEADER), PAYLOAD), "duplicate_member", id="A16-duplicate-header"),
    pytest.param(sign_parts(HEADER, b"\xef\xbb\xbf" + PAYLOAD), "json", id="A16-bom"),
    pytest.param(sign_parts(b"\xef\xbb\xbf" + HEADER, PAYLOAD), "json", id="A16-bom-header"),
    pytest.param(sign_parts(HEADER, PAYLOAD.decode().encode("utf-16")), "json", id="A16-utf16"),
    pytest.param(sign_parts(HEADER, PAYLOAD.decode().encode("utf-16-le")), "json", id="A16-utf16le"),
    pytest.param(sign_parts(HEADER, spliced(b'"x":"\xff"')), "json", id="A16-latin1"),
    pytest.param(sign_parts(HEADER, spliced(b'"x":"\xc0\xaf"')), "json", id="A16-overlong"),
    pytest.param(sign_parts(HEADER, spliced(b'"x":"\xed\xa0\x80"')), "json", id="A16-surrogate-bytes"),
    pytest.param(sign_parts(HEADER, spliced(b'"x":"\\ud800"')), "json", id="A16-lone-surrogate"),
    pytest.param(sign_parts(HEADER, spliced(b'"x":NaN')), "json", id="A16-nan"),
    pytest.param(sign_parts(HEADER, spliced(b'"x":-Infinity')), "json", id="A16-infinity"),
    pytest.param(sign_parts(HEADER, spliced(b'"x":1e400')), "json", id="A16-1e400"),
    pytest.param(sign_parts(HEADER, spliced(b'"x":' + b"9" * 5_000)), "json", id="A16-5000-digits"),
    pytest.param(sign_parts(HEADER, spliced(b'"x":' + b"9" * 25)), "number", id="A16-25-digits"),
    pytest.param(sign_parts(HEADER, spliced(b'"x":9223372036854775808 ')), "number", id="A16-over-64-bits"),
    pytest.param(sign_parts(HEADER, spliced(b'"x":' + b"[" * 2_900 + b"]" * 2_900)), "json", id="A16-deep-2900"),
    pytest.param(sign_parts(HEADER, spliced(b'"x":' + b"[" * 900 + b"]" * 900)), "depth", id="A16-deep-900"),
    pytest.param(sign_parts(HEADER, spliced(b'"x":' + b'{"a":' * 16 + b"1" + b"}" * 16)), "depth", id="A16-deep-17"),
    pytest.param("[" * 50_000, "too_long", id="A16-deep-50000"),
    pytest.param(sign_parts(HEADER, spliced(b'"x":"\x00"')), "json", id="A16-raw-nul"),
    pytest.param(sign_parts(HEADER, PAYLOAD + b" x"), "json", id="A16-trailing"),
    pytest.param(sign_parts(HEADER, b"[]"), "json", id="A16-array"),
    pytest.param(sign_parts(HEADER, b'"x"'), "json", id="A16-string"),
    pytest.param(sign_parts(HEADER, b"null"), "json", id="A16-null"),
    pytest.param(sign_parts(b"[]", PAYLOAD), "json", id="A16-array-header"),
    # 17: one spelling
    pytest.param(f"{HEAD}.{BODY}.{SIGNATURE}==", "base64url", id="A17-padding"),
    pytest.param(f"{HEAD}.{BODY}=.{SIGNATURE}", "base64url", id="A17-padding-payload"),
    pytest.param(f"{HEAD}.{BODY}.{flipped_last(SIGNATURE)}", "base64url", id="A17-last-character"),
    pytest.param(f"{HEAD}.{flipped_last(padded_payload())}.{SIGNATURE}", "base64url", id="A17-last-character-payload"),
    pytest.param(f"{HEAD}.{BODY}. {SIGNATURE}", "base64url", id="A17-space"),
    pytest.param(f"{GOOD}\n", "base64url", id="A17-newline"),
    pytest.param(f" {GOOD}", "base64url", id="A17-leading-space"),
    pytest.param(f'"{GOOD}"', "base64url", id="A17-quotes"),
    pytest.param(f"{HEAD[:8]}?{HEAD[8:]}.{BODY}.{SIGNATURE}", "base64url", id="A17-foreign-character"),
    pytest.param(f"{HEAD}.{BODY}.{SIGNATURE[:-2]}+/", "base64url", id="A17-plain-alphabet"),
    pytest.param(f"{HEAD}.{BODY}.{SIGNATURE}\u0661", "base64url", id="A17-not-ascii"),
    pytest.param(f"{HEAD}.{BODY}.A", "base64url", id="A17-impossible-length"),
    # 20: media types
    *(
        pytest.param(with_header(typ=typ), "typ", id=f"A20-typ-{name}")
        for name, typ in (
            ("at", "at+jwt"),
            ("dpop", "dpop+jwt"),
            ("logout", "logout+jwt"),
            ("statuslist", "statuslist+jwt"),
            ("secevent", "secevent+jwt"),
            ("missing", None),
            ("empty", ""),
            ("list", ["JWT"]),
            ("suffix", "JWT "),
            ("other-tree", "text/JWT"),
        )
    ),
]


@pytest.mark.parametrize(("bad", "reason"), CASES)
def test_refused(bad: str, reason: str) -> None:
    with pytest.raises(JoseError) as refusal:
        verify(bad, keyset().find, profile(), NOW)
    assert refusal.value.reason == reason
    sentence = str(refusal.value)
    assert sentence.endswith(".")
    assert sentence.isprintable()
    assert len(sentence) < 300
    assert SIGNATURE[:12] not in sentence


def test_the_good_token_is_what_the_bad_ones_differ_from() -> None:
    assert dict(verify(GOOD, keyset().find, profile(), NOW)) == claims()


@pytest.mark.parametrize("typ", ["JWT", "jwt", "application/jwt", "APPLICATION/JWT"])
def test_typ_compares_as_a_media_type(typ: str) -> None:
    assert parse(with_header(typ=typ)).header.typ == "jwt"


def test_a_mechanism_may_allow_a_header_member_and_gets_to_see_it() -> None:
    members = frozenset({"alg", "typ", "kid", "jwk"})
    parsed = parse(with_header(jwk={"kty": "EC"}), header_members=members)
    assert parsed.header.extra == (("jwk", {"kty": "EC"}),)
    with pytest.raises(HeaderRefused):  # the cache of headers does not forget who may have what
        parse(with_header(jwk={"kty": "EC"}))


def test_what_is_never_allowed_cannot_be_allowed() -> None:
    with pytest.raises(ValueError, match="never"):
        profile(header_members=frozenset({"alg", "crit"}))
    with pytest.raises(HeaderRefused):
        parse(with_header(b64=False), header_members=frozenset({"alg", "typ", "kid", "b64"}))


def test_the_size_bound_goes_down_only() -> None:
    with pytest.raises(Malformed):
        parse(GOOD, max_bytes=len(GOOD) - 1)
    parse(GOOD, max_bytes=len(GOOD))
    with pytest.raises(Malformed):
        parse(token({"x": "x" * 9_000}), max_bytes=1_000_000)


def test_strictness_does_not_mistake_odd_but_unambiguous_json() -> None:
    text = json.dumps(claims(x={"a": [1, 2.5, "\u00e9", {"b": None}], "c": [[], {}] * 10}), indent=1)
    assert parse(sign_parts(HEADER, text.encode())).unverified_claims == json.loads(text)
