"""What leaves: signed once, in the strict form that `verify` demands, and readable by others."""

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from broker.jose import Signer, load_jwks, parse, thumbprint, verify

from .forge import AUDIENCE, EC, EC384, ISSUER, NOW, claims, profile


def test_signed_tokens_verify_here_and_elsewhere() -> None:
    signer = Signer(private_key=EC)
    made = signer.sign("at+jwt", claims())
    assert (
        dict(verify(made, load_jwks({"keys": [signer.jwk]}).find, profile(typ=frozenset({"at+jwt"})), NOW)) == claims()
    )
    options = {"verify_exp": False, "verify_iat": False}
    assert jwt.decode(made, EC.public_key(), ["ES256"], options, audience=AUDIENCE, issuer=ISSUER) == claims()


def test_the_header_says_which_key_and_what_kind() -> None:
    signer = Signer(private_key=EC)
    for typ in ("at+jwt", "session+jwt", "at+jwt"):
        header = parse(signer.sign(typ, claims())).header
        assert (header.typ, header.alg, header.kid) == (typ, "ES256", thumbprint(signer.jwk))


def test_a_given_kid_is_kept_and_published() -> None:
    signer = Signer(private_key=EC, kid="2027-01")
    assert signer.kid == signer.jwk["kid"] == parse(signer.sign("JWT", {})).header.kid == "2027-01"
    assert signer.jwk["use"] == "sig"
    assert "d" not in signer.jwk


def test_only_p256() -> None:
    with pytest.raises(ValueError, match="P-256"):
        Signer(private_key=EC384)


def test_short_r_and_s_keep_their_width() -> None:
    signer = Signer(private_key=ec.generate_private_key(ec.SECP256R1()))
    assert {len(parse(signer.sign("JWT", {"n": n})).signature) for n in range(300)} == {64}


def test_claims_that_are_not_json_are_a_bug() -> None:
    with pytest.raises(TypeError):
        Signer(private_key=EC).sign("JWT", {"x": object()})
