"""Where assertions come from, and what is refused before it is sent anywhere."""

import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from broker import jose
from broker.sdk.errors import NotAuthenticated, Unavailable
from broker.sdk.identity import CallableIdentity, EnvIdentity, FileIdentity, GitHubIdentity, KeyIdentity
from broker.sdk.protocol import Response

from .kit import START_MS, Clock

ISSUER = "https://taskpass.test"


def pem(key):
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.mark.parametrize("from_file", [True, False])
def test_a_key_signs_assertions_that_hold_for_a_minute_and_once(tmp_path, from_file):
    key = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "key.pem").write_bytes(pem(key))
    identity = KeyIdentity(client_id="agent", key=str(tmp_path / "key.pem") if from_file else key, now=Clock().now)
    keys = jose.load_jwks({"keys": [jose.public_jwk(key.public_key(), alg="ES256")]})
    profile = jose.Profile(
        kind="client assertion",
        typ=frozenset({"client-authentication+jwt"}),
        issuer="agent",
        audiences=frozenset({ISSUER}),
        required=("sub", "jti", "iat"),
        max_lifetime_s=60,
    )
    first, second = (jose.verify(identity.assertion(ISSUER), keys.find, profile, START_MS // 1000) for _ in range(2))
    assert (first["iss"], first["sub"], first["aud"]) == ("agent", "agent", ISSUER)
    assert first["exp"] == START_MS // 1000 + 60
    assert first["jti"] != second["jti"]


def test_a_key_may_be_registered_under_another_kid():
    key = ec.generate_private_key(ec.SECP256R1())
    assertion = KeyIdentity(client_id="agent", key=key, kid="agent-2026").assertion(ISSUER)
    assert jose.parse(assertion).header.kid == "agent-2026"


@pytest.mark.parametrize(
    "content",
    [None, b"", b"not a key", pem(ec.generate_private_key(ec.SECP384R1())), pem(rsa.generate_private_key(65537, 2048))],
    ids=["no file", "empty", "garbage", "P-384", "RSA"],
)
def test_a_key_that_cannot_sign_is_no_identity(tmp_path, content):
    if content is not None:
        (tmp_path / "key.pem").write_bytes(content)
    with pytest.raises(NotAuthenticated):
        KeyIdentity(client_id="agent", key=tmp_path / "key.pem").assertion(ISSUER)


def test_a_file_is_read_each_time(tmp_path):
    path = tmp_path / "token"
    identity = FileIdentity(path)
    path.write_text("a.b.c\n")
    assert identity.assertion(ISSUER) == "a.b.c"
    path.write_text("d.e.f")
    assert identity.assertion(ISSUER) == "d.e.f"


@pytest.mark.parametrize(
    "content", ["", " \n", "a.b", "a.b.c.d", "a.b. c", "a.b.c\nd.e.f", "ä.b.c", "a.b." + "c" * 20_000]
)
def test_what_is_no_token_is_not_sent(tmp_path, content):
    (tmp_path / "token").write_text(content)
    for identity in (FileIdentity(tmp_path / "token"), CallableIdentity(lambda _: content)):
        with pytest.raises(NotAuthenticated) as refused:
            identity.assertion(ISSUER)
        assert len(content) < 3 or content not in str(refused.value)


def test_a_file_that_is_not_there_is_no_identity(tmp_path):
    with pytest.raises(NotAuthenticated, match="No identity in"):
        FileIdentity(tmp_path / "token").assertion(ISSUER)


def test_a_variable_is_read_each_time():
    environ = {}
    identity = EnvIdentity("TASKPASS_IDENTITY", environ=environ)
    with pytest.raises(NotAuthenticated, match="TASKPASS_IDENTITY"):
        identity.assertion(ISSUER)
    environ["TASKPASS_IDENTITY"] = "a.b.c"
    assert identity.assertion(ISSUER) == "a.b.c"


def test_a_github_job_asks_its_runner_for_this_audience():
    environ = {"ACTIONS_ID_TOKEN_REQUEST_URL": "https://run.test/id?v=2", "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "runner"}
    asked = []

    def send(request):
        asked.append(request)
        return Response(200, {}, json.dumps({"value": "a.b.c"}).encode())

    assert GitHubIdentity(environ=environ, send=send).assertion(ISSUER) == "a.b.c"
    (request,) = asked
    assert request.url == "https://run.test/id?v=2&audience=https%3A%2F%2Ftaskpass.test"
    assert request.headers["Authorization"] == "Bearer runner"
    assert "runner" not in repr(request)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"token": "a.b.c"}', b"[" * 100_000])
def test_a_github_answer_without_a_token_is_an_outage(body):
    environ = {"ACTIONS_ID_TOKEN_REQUEST_URL": "https://run.test/id?v=2", "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "runner"}
    with pytest.raises(Unavailable):
        GitHubIdentity(environ=environ, send=lambda _: Response(500, {}, body)).assertion(ISSUER)


def test_outside_a_github_job_there_is_no_identity_and_a_hint():
    with pytest.raises(NotAuthenticated) as refused:
        GitHubIdentity(environ={}).assertion(ISSUER)
    assert "id-token: write" in refused.value.next
