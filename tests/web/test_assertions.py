"""What is wrong with an assertion, through every door that takes one. Sections A and C of the attack catalogue: refused
with the right code, counted, nothing issued, no 5xx. What each corruption does to the JOSE layer is tested there.
"""

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.jose.forge import EC, RSA, b64, dump, sign_parts
from tests.kit import GRANTS, IDP, ISSUER, OTHER_IDP, Broker, Home

Make = Callable[[Home], str]


def signed(home: Home, header: bytes | None = None, payload: bytes | None = None, key: Any = None) -> str:
    """A signature of the identity provider over any bytes at all."""
    good = dump({"alg": "ES256", "typ": "JWT", "kid": home.idp.kid})
    header, payload = header or good, payload or dump(home.claims())
    return sign_parts(header, payload, key=key or home.idp._key)


def header(**changes: Any) -> Make:
    def make(home: Home) -> str:
        members = {"alg": "ES256", "typ": "JWT", "kid": home.idp.kid, **changes}
        return signed(home, dump({name: value for name, value in members.items() if value != "-"}))

    return make


def claim(**changes: Any) -> Make:
    return lambda home: signed(home, payload=dump(home.claims(**changes)))


def at(name: str, seconds: int) -> Make:
    return lambda home: signed(home, payload=dump(home.claims(**{name: home.clock() // 1000 + seconds})))


def raw_claim(text: str) -> Make:
    return lambda home: signed(home, payload=b"{" + text.encode() + b"," + dump(home.claims())[1:])


def spliced(change: Callable[[str, str, str], str]) -> Make:
    return lambda home: change(*signed(home).split("."))


def hmac_with(secret: Callable[[Home], bytes]) -> Make:
    def make(home: Home) -> str:
        head = dump({"alg": "HS256", "typ": "JWT", "kid": home.idp.kid})
        return sign_parts(head, dump(home.claims()), alg="HS256", key=secret(home))

    return make


def unsigned(alg: str) -> Make:
    return lambda home: f"{b64(dump({'alg': alg, 'typ': 'JWT'}))}.{b64(dump(home.claims()))}."


def pem(home: Home) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return home.idp._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


STRUCTURE: dict[str, Make] = {
    "1-none": unsigned("none"),
    "1-None": unsigned("None"),
    "1-nOnE": unsigned("nOnE"),
    "1-empty-signature": spliced(lambda h, p, s: f"{h}.{p}."),
    "2-hs256-pem": hmac_with(pem),
    "2-hs256-jwk": hmac_with(lambda home: json.dumps(home.idp.jwk).encode()),
    "3-hs256-empty": hmac_with(lambda home: b""),
    "4-embedded-jwk": lambda home: signed(
        home, dump({"alg": "ES256", "typ": "JWT", "jwk": home.other_idp.jwk}), key=EC
    ),
    "5-jku": header(jku="https://evil.example.com/jwks"),
    "5-x5u": header(x5u="https://evil.example.com/x"),
    "5-x5c": header(x5c=["AAAA"]),
    "6-kid-path": header(kid="../../../../dev/null"),
    "6-kid-sql": header(kid="' OR 1=1 --"),
    "6-kid-crlf": header(kid="a\r\nb"),
    "6-kid-nul": header(kid="a\x00"),
    "6-kid-list": header(kid=["a"]),
    "6-kid-int": header(kid=7),
    "6-kid-long": header(kid="a" * 5_000),
    "7-kid-of-another-issuer": lambda home: header(kid=home.other_idp.kid)(home),
    "8-crit": header(crit=["exp"]),
    "8-crit-empty": header(crit=[]),
    "9-b64": header(b64=False, crit=["b64"]),
    "10-psychic": spliced(lambda h, p, s: f"{h}.{p}.{b64(bytes(64))}"),
    "10-truncated": spliced(lambda h, p, s: f"{h}.{p}.{s[:-8]}"),
    "10-trailing": spliced(lambda h, p, s: f"{h}.{p}.{s}AAAA"),
    "11-rs256": lambda home: sign_parts(
        dump({"alg": "RS256", "typ": "JWT"}), dump(home.claims()), alg="RS256", key=RSA
    ),
    "13-json-serialisation": spliced(lambda h, p, s: json.dumps({"payload": p, "protected": h, "signature": s})),
    "14-jwe": spliced(lambda h, p, s: f"{h}.{p}.{s}.{p}.{s}"),
    "14-zip": header(zip="DEF"),
    "15-huge": spliced(lambda h, p, s: f"{h}.{p}.{s}{'A' * 9_000}"),
    "16-duplicate-claim": raw_claim('"sub":"data-bot"'),
    "16-duplicate-header": lambda home: signed(home, b'{"alg":"none","alg":"ES256","typ":"JWT"}'),
    "16-bom": lambda home: signed(home, payload=b"\xef\xbb\xbf" + dump(home.claims())),
    "16-utf16": lambda home: signed(home, payload=json.dumps(home.claims()).encode("utf-16")),
    "16-nan": raw_claim('"x":NaN'),
    "16-digits": raw_claim(f'"x":{"1" * 4_000}'),
    "16-deep": raw_claim(f'"x":{"[" * 2_000}{"]" * 2_000}'),
    "16-surrogate": raw_claim('"x":"\\ud800"'),
    "16-overlong": lambda home: signed(home, payload=b'{"x":"\xc0\xaf",' + dump(home.claims())[1:]),
    "17-padding": spliced(lambda h, p, s: f"{h}.{p}.{s}=="),
    "17-space": spliced(lambda h, p, s: f"{h}.{p}. {s}"),
    "17-alphabet": spliced(lambda h, p, s: f"{h}.{p}.{base64.b64encode(bytes(range(190, 254))).decode()[:86]}"),
    "20-typ-at": header(typ="at+jwt"),
    "20-typ-session": header(typ="session+jwt"),
    "20-typ-secevent": header(typ="secevent+jwt"),
    "20-typ-list": header(typ=["JWT"]),
    "not-a-token": lambda home: "x",
    "two-parts": spliced(lambda h, p, s: f"{h}.{p}"),
    "payload-array": lambda home: signed(home, payload=b"[]"),
}
CLAIMS: dict[str, Make] = {
    "18-no-exp": claim(exp=None),
    "18-exp-string": claim(exp="1790000060"),
    "18-exp-bool": claim(exp=True),
    "18-exp-float": claim(exp=1790000060.5),
    "18-exp-negative": claim(exp=-1),
    "18-exp-huge": claim(exp=10**18),
    "18-exp-1e400": raw_claim('"nbf":1e400'),
    "18-expired": at("exp", 0),
    "18-nbf-after-exp": at("nbf", 61),
    "18-nbf-future": at("nbf", 55),
    "18-iat-future": at("iat", 55),
    "18-too-long": at("exp", 90_000),
    "21-aud-missing": claim(aud=None),
    "21-aud-slash": claim(aud=ISSUER + "/"),
    "21-aud-case": claim(aud=ISSUER.upper()),
    "21-aud-prefix": claim(aud=ISSUER[:-1]),
    "21-aud-two": claim(aud=[ISSUER, "https://elsewhere.example.com"]),
    "21-aud-nested": claim(aud=[[ISSUER]]),
    "21-aud-object": claim(aud={"a": ISSUER}),
    "21-aud-empty": claim(aud=[]),
    "22-iss-slash": claim(iss=IDP + "/"),
    "22-iss-case": claim(iss=IDP.replace("idp", "IDP")),
    "22-iss-userinfo": claim(iss="https://a@idp.example.com"),
    "22-iss-port": claim(iss=IDP + ":443"),
    "22-iss-idn": claim(iss="https://\u0456dp.example.com"),
    "22-iss-other": lambda home: home.idp.sign("JWT", home.claims(iss=OTHER_IDP)),
    "22-iss-missing": claim(iss=None),
    "22-iss-list": claim(iss=[IDP]),
    "29-sub-missing": claim(sub=None),
    "43-sub-case": claim(sub="Dispute-Bot"),
    "43-sub-space": claim(sub="dispute-bot "),
    "43-sub-homoglyph": claim(sub="d\u0456spute-bot"),
    "42-sub-prefix": claim(sub="dispute-bot-evil"),
    "42-sub-glob": claim(sub="*"),
    "77-sub-control": claim(sub="dispute-bot\r\n"),
    "35-sub-in-the-mesh": claim(sub="spiffe://example.org/ns/data/sa/bot"),
    "34-trust-domain-look-alike": claim(sub="spiffe://example.org.evil/ns/data/sa/bot", iss=None),
    "34-spiffe-case": lambda home: home.mesh.sign("JWT", home.claims("spiffe://Example.org/ns/data/sa/bot", iss=None)),
    "34-spiffe-dots": lambda home: home.mesh.sign("JWT", home.claims("spiffe://example.org/ns/../sa/bot", iss=None)),
    "operator-in-the-idp": claim(sub="operator", iss="operator"),
}
MATRIX = STRUCTURE | CLAIMS


@pytest.mark.parametrize("grant", GRANTS, ids=["credentials", "bearer"])
@pytest.mark.parametrize("make", MATRIX.values(), ids=MATRIX.keys())
def test_at_the_token_endpoint(shared: Broker, make: Make, grant: str):
    size, grants = shared.size, shared.query("SELECT count(*) FROM grants")
    answer = shared.token(assertion=make(shared.home), grant=grant)
    expected = ("invalid_client", 401) if grant == GRANTS[0] else ("invalid_grant", 400)
    assert (answer.json()["error"], answer.status_code) == expected, answer.text
    assert "decision_id" not in answer.json()
    shared.do("flush_refusals")
    (event,) = shared.events(start=size)  # one count under one reason, nothing else
    assert event["type"] == "refusals"
    assert list(event["counts"].values()) == [1]
    assert shared.query("SELECT count(*) FROM grants") == grants


DOORS: dict[str, Callable[[Broker, str], Any]] = {
    "bearer": lambda broker, proof: broker.request("GET", "/v1/whoami", headers=_header(proof)),
    "session": lambda broker, proof: broker.request("POST", "/v1/sessions", headers=_header(proof)),
    "kills": lambda broker, proof: broker.request(
        "POST", "/v1/kills", headers=_header(proof), json={"target": "all", "reason": "x"}
    ),
    "introspect": lambda broker, proof: broker.form("/oauth2/introspect", {"token": "x"}, headers=_header(proof)),
    "introspect-form": lambda broker, proof: broker.form("/oauth2/introspect", {"token": "x", **_form(proof)}),
    "revoke-form": lambda broker, proof: broker.form("/oauth2/revoke", {"token": "x", **_form(proof)}),
}


def _header(proof: str) -> dict[str, str]:
    return {"authorization": f"Bearer {proof}"}


def _form(proof: str) -> dict[str, str]:
    return {
        "client_assertion": proof,
        "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
    }


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS.keys())
@pytest.mark.parametrize("make", MATRIX.values(), ids=MATRIX.keys())
def test_at_every_other_door(shared: Broker, make: Make, door: Callable[[Broker, str], Any]):
    size = shared.size
    answer = door(shared, make(shared.home))
    assert answer.status_code == 401, answer.text
    assert answer.json().get("error", answer.json().get("code")) == "invalid_client"
    shared.do("flush_refusals")
    (event,) = shared.events(start=size)
    assert event["type"] == "refusals"
    assert sum(event["counts"].values()) == 1


def test_21_the_token_endpoint_is_an_audience_of_the_grant_alone(shared: Broker):
    aud = f"{ISSUER}/oauth2/token"
    assert shared.token(assertion=shared.home.assertion(aud=aud), grant=GRANTS[1]).status_code == 200
    assert shared.token(assertion=shared.home.assertion(aud=aud)).status_code == 401
    assert shared.request("GET", "/v1/whoami", bearer=shared.home.assertion(aud=aud)).status_code == 401
    assert shared.token(assertion=shared.home.assertion(aud=[ISSUER])).status_code == 200


def test_20_no_token_of_ours_is_an_identity(shared: Broker):
    access = shared.granted()["access_token"]
    for token in (access, shared.session("dispute-bot"), shared.session("operator")):
        for grant in GRANTS:
            assert shared.token(assertion=token, grant=grant).status_code in (400, 401)
    for who in ("operator", "billing"):  # genuine, and no agent
        answer = shared.token(assertion=shared.home.proof(who))
        assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client")
        assert shared.request("GET", "/v1/whoami", bearer=access).status_code == 401


def test_23_24_the_same_token_with_another_payload_is_not_remembered_as_good(shared: Broker):
    head, payload, signature = shared.home.assertion().split(".")
    assert shared.token(assertion=f"{head}.{payload}.{signature}").status_code == 200
    other = b64(dump(shared.home.claims("data-bot")))
    assert shared.token("data-bot", assertion=f"{head}.{other}.{signature}").status_code == 401


def test_84_a_flood_of_unknown_keys_is_one_aggregated_event(broker: Broker):
    size = broker.size
    for n in range(200):
        assert broker.token(assertion=header(kid=f"k{n}")(broker.home)).status_code == 401
    assert broker.size == size
    broker.do("flush_refusals")
    (event,) = broker.events(start=size)
    assert sum(event["counts"].values()) == 200
    assert broker.granted()
