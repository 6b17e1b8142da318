"""A second opinion: whatever this layer accepts, PyJWT accepts with the same claims. (Not the other way round.)"""

import json

import jwt
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.jose import JoseError, verify
from broker.jose.encoding import load_json
from broker.jose.errors import Malformed

from .forge import AUDIENCE, HEADER, ISSUER, KEY_OF, NOW, PAYLOAD, b64, claims, dump, keyset, profile, sign_parts, token

ALGS = sorted(set(KEY_OF) - {"Ed25519"})  # PyJWT knows the older name only
OURS = {alg: keyset(KEY_OF[alg], alg=alg) for alg in ALGS}
PROFILES = {alg: profile(algs=frozenset({alg})) for alg in ALGS}

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(["iss", "sub", "aud", "exp", "nbf", "iat", "jti", "client_id", "x"]) | st.text(max_size=10)


def pyjwt(text: str, alg: str):
    return jwt.decode(
        text,
        KEY_OF[alg].public_key(),
        algorithms=[alg],
        audience=AUDIENCE,
        issuer=ISSUER,
        # Its clock is the host's; its other checks of dates stay on where they take no clock.
        options={
            "require": ["exp", "iss", "sub", "jti"],
            "verify_exp": False,
            "verify_nbf": False,
            "verify_iat": False,
        },
    )


def agree(text: str, alg: str) -> bool:
    """Whether we accept; fails where we alone do."""
    try:
        ours = verify(text, OURS[alg].find, PROFILES[alg], NOW)
    except JoseError:
        return False
    assert dict(ours) == pyjwt(text, alg)
    return True


@given(
    st.sampled_from(ALGS),
    st.dictionaries(
        st.text(max_size=10).map("x".__add__),
        st.text(max_size=20) | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.none(),
        max_size=5,
    ),
)
@settings(max_examples=150, deadline=None)
def test_good_tokens_are_accepted_by_both(alg: str, extra) -> None:
    assert agree(token(extra, alg=alg), alg)
    assert pyjwt(token(extra, alg=alg), alg)


@given(st.dictionaries(names, values, max_size=4))
@settings(max_examples=300, deadline=None)
def test_any_claims(changes) -> None:
    try:
        payload = json.dumps({**claims(), **changes}, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        payload = json.dumps({**claims(), **changes}).encode()
    agree(sign_parts(HEADER, payload), "ES256")


@given(st.sampled_from([HEADER, PAYLOAD]), st.data())
@settings(max_examples=300, deadline=None)
def test_signed_bytes_changed_at_random(part: bytes, data) -> None:
    at = data.draw(st.integers(0, len(part)))
    cut = data.draw(st.integers(0, 6))
    put = data.draw(
        st.binary(max_size=6) | st.sampled_from([b'"a":1,', b" ", b"\\u0041", b"1e3", b"-0", b"0.0", b"{}"])
    )
    changed = part[:at] + put + part[at + cut :]
    header, payload = (changed, PAYLOAD) if part is HEADER else (HEADER, changed)
    agree(sign_parts(header, payload), "ES256")


@given(st.sampled_from(ALGS), st.data())
@settings(max_examples=200, deadline=None)
def test_tokens_changed_at_random_are_refused(alg: str, data) -> None:
    good = token(alg=alg)
    at = data.draw(st.integers(0, len(good) - 1))
    put = data.draw(st.text("ABCdef019-_.=+/ \n", max_size=3))
    cut = data.draw(st.integers(0, 3))
    changed = good[:at] + put + good[at + cut :]
    assert agree(changed, alg) is (changed == good)


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_no_input_does_anything_but_refuse(raw: bytes) -> None:
    for text in (raw.decode("latin-1"), b64(raw), f"{b64(raw)}.{b64(raw)}.{b64(raw)}", f"{b64(HEADER)}.{b64(raw)}."):
        assert not agree(text, "ES256")


@given(values, st.booleans())
@settings(max_examples=300, deadline=None)
def test_strict_json_reads_what_json_reads_or_refuses(value, compact: bool) -> None:
    """The fast path (a byte-for-byte round trip) and the slow one understand a text alike."""
    raw = dump(value) if compact else json.dumps(value, indent=1).encode()
    try:
        ours = load_json(raw, what="text")
    except Malformed:
        return
    assert ours == json.loads(raw)
    assert json.dumps(ours) == json.dumps(json.loads(raw))  # 1 is not 1.0, and True is not 1
