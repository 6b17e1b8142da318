"""Role sessions against a server that speaks STS and checks the broker's web identity token by its published keys."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.sdk.testkit import FakeBroker
from issuers import Ending, IssuerError, Minted, Order, Standing
from issuers.aws_sts import TAGS_CLAIM, AwsStsIssuer, session_policy, settings_of
from tests.issuers.api_server import Fault, Reply
from tests.issuers.sts_server import NAMESPACE, ROLE, StsServer

START = 1_790_000_000
SETTINGS: dict[str, Any] = {
    "role_arn": ROLE,
    "statements": {
        "reports:read": [
            {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::reports/{customer}/*"}
        ],
        "reports:list": [
            {
                "Effect": "Allow",
                "Action": ["s3:ListBucket"],
                "Resource": "arn:aws:s3:::reports",
                "Condition": {"StringEquals": {"aws:PrincipalTag/agent": "${aws:username}"}},
            }
        ],
    },
}


class Clock:
    def __init__(self) -> None:
        self.ms = START * 1000

    def __call__(self) -> int:
        return self.ms


@pytest.fixture(scope="module")
def provider() -> Iterator[FakeBroker]:
    """The broker as AWS sees it: its discovery document and its published keys."""
    fake = FakeBroker()
    with fake.serve():
        yield fake


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sts(provider: FakeBroker, clock: Clock) -> Iterator[StsServer]:
    with StsServer(issuer=provider.issuer, now=clock) as server:
        yield server


@pytest.fixture
def issuer(provider: FakeBroker, sts: StsServer, clock: Clock) -> AwsStsIssuer:
    return an_issuer(provider, sts, clock)


def an_issuer(provider: FakeBroker, sts: StsServer, clock: Clock, **changes: Any) -> AwsStsIssuer:
    def sign(_kid: str, typ: str, claims: Any) -> str:
        return provider.signer.sign(typ, dict(claims))

    known = {"iss": provider.issuer, "sign": sign, "now": clock, "url": sts.url, "timeout_s": 5.0}
    return AwsStsIssuer(**{**known, **changes})


def order(
    *actions: str, limited: tuple[str, ...] = (), agent: str = "reporter", ttl: int = 1000, settings: Any = None,
    **parameters: Any,
) -> Order:  # fmt: skip
    return Order(
        seq=7, jti="grt_0000abcd_7", kid="k", agent=agent, task="tsk_0000abcd_6", audience="https://reports.example.com",
        actions=actions if actions or limited else ("reports:list",), limited=limited, parameters=parameters,
        iat=START, exp=START + ttl, settings=SETTINGS if settings is None else settings,
    )  # fmt: skip


def mint(issuer: AwsStsIssuer, wanted: Order) -> Minted:
    return issuer.issue(wanted, issuer.prepare(wanted))


def test_a_session_ends_with_the_order_and_is_named_after_the_grant(sts: StsServer, issuer: AwsStsIssuer) -> None:
    minted = mint(issuer, order())
    (session,) = sts.sessions
    assert minted.exp == session["exp"] == START + 1000
    assert minted.values == {
        "access_key_id": session["AccessKeyId"],
        "secret_access_key": session["SecretAccessKey"],
        "session_token": session["SessionToken"],
    }
    assert session["form"]["RoleSessionName"] == minted.handle["session"] == "grt_0000abcd_7"
    assert issuer.ending is Ending.EXPIRES_ONLY
    assert not any(value in json.dumps(dict(minted.handle)) + repr(minted) for value in minted.values.values())


def test_it_never_outlives_the_order(sts: StsServer, issuer: AwsStsIssuer, clock: Clock) -> None:
    prepared = issuer.prepare(order(ttl=issuer.min_ttl_s))
    clock.ms += 59_900
    assert issuer.issue(order(ttl=issuer.min_ttl_s), prepared).exp <= START + issuer.min_ttl_s
    clock.ms += 2_000
    with pytest.raises(IssuerError, match="shorter than 900") as failed:
        issuer.issue(order(ttl=issuer.min_ttl_s), prepared)
    assert failed.value.happened is False


def test_the_web_identity_is_for_aws_alone_and_short(sts: StsServer, issuer: AwsStsIssuer) -> None:
    mint(issuer, order())
    claims = sts.sessions[0]["claims"]
    assert (claims["aud"], claims["sub"], claims["jti"]) == ("sts.amazonaws.com", "agent:reporter", "grt_0000abcd_7")
    assert claims["exp"] - claims["iat"] == 300
    assert TAGS_CLAIM not in claims


def test_an_access_token_does_not_pass_for_a_web_identity(provider: FakeBroker, sts: StsServer, clock: Clock) -> None:
    def access_token(_kid: str, _typ: str, _claims: Any) -> str:
        return provider.token(audience="sts.amazonaws.com", agent="reporter")

    with pytest.raises(IssuerError, match="does not trust"):
        mint(an_issuer(provider, sts, clock, sign=access_token), order())
    assert sts.sessions == []


def test_tags_name_agent_and_task(sts: StsServer, issuer: AwsStsIssuer) -> None:
    mint(issuer, order(settings={**SETTINGS, "tags": True}))
    told = sts.sessions[0]["claims"][TAGS_CLAIM]
    assert told == {"principal_tags": {"agent": ["reporter"], "task": ["tsk_0000abcd_6"]}}


def test_the_session_policy_is_of_the_granted_actions_alone(sts: StsServer, issuer: AwsStsIssuer) -> None:
    managed = "arn:aws:iam::aws:policy/ReadOnlyAccess"
    mint(issuer, order(limited=("reports:read",), customer="acme", settings={**SETTINGS, "policy_arns": [managed]}))
    form = sts.sessions[0]["form"]
    (statement,) = json.loads(form["Policy"])["Statement"]
    assert statement["Resource"] == "arn:aws:s3:::reports/acme/*"
    assert form["PolicyArns.member.1.arn"] == managed


def test_variables_of_iam_stay_what_they_are(sts: StsServer, issuer: AwsStsIssuer) -> None:
    mint(issuer, order())
    assert "${aws:username}" in sts.sessions[0]["form"]["Policy"]


@pytest.mark.parametrize("value", ["*", "a*", "?", "${aws:username}", "../x", "a/b", "a:b", "", "x" * 201, "ä", "a b"])
def test_a_parameter_never_widens_the_policy(sts: StsServer, issuer: AwsStsIssuer, value: str) -> None:
    with pytest.raises(IssuerError, match="meaning in IAM") as refused:
        issuer.prepare(order(limited=("reports:read",), customer=value))
    assert refused.value.happened is False
    assert sts.asked == []


@given(customer=st.text(max_size=12) | st.integers() | st.booleans())
def test_whatever_the_parameter_is_the_policy_names_one_customer(customer: Any) -> None:
    try:
        policy = session_policy(order(limited=("reports:read",), customer=customer), settings_of(SETTINGS))
    except IssuerError:
        return
    (statement,) = json.loads(policy)["Statement"]
    named = statement["Resource"].removeprefix("arn:aws:s3:::reports/").removesuffix("/*")
    assert named == (str(customer).lower() if isinstance(customer, bool) else str(customer))
    assert named
    assert not set(named) & set('*?${}/:"\\ ')


@pytest.mark.parametrize(
    "wanted",
    [
        order("reports:burn"),
        order("reports:read"),  # granted outright, but its statement needs a parameter
        order(limited=("reports:read",)),
        order("reports:read", limited=("reports:list",), customer="acme"),  # the parameter is the other action's
        order(settings={}),
        order(settings={**SETTINGS, "statements": {"reports:list": [{"Effect": "Allow", "Sid": "x" * 2100}]}}),
    ],
)
def test_what_cannot_be_granted_reaches_nobody(sts: StsServer, issuer: AwsStsIssuer, wanted: Order) -> None:
    with pytest.raises(IssuerError) as refused:
        issuer.prepare(wanted)
    assert refused.value.happened is False
    assert sts.asked == []


def test_it_is_live_until_it_ends_and_says_what_can_be_done(issuer: AwsStsIssuer, clock: Clock) -> None:
    handle = mint(issuer, order()).handle
    issuer.revoke(handle)
    issuer.close(handle)
    found = issuer.status(handle)
    assert found.standing is Standing.LIVE
    assert "ends by 2026-09-21T14:30:00Z" in str(found.note)
    assert "aws:userid is like '*:grt_0000abcd_7'" in str(found.note)
    clock.ms += 1_100_000
    assert issuer.status(handle).standing is Standing.GONE
    assert list(issuer.orphans()) == []


def error(code: str) -> bytes:
    text = f'<ErrorResponse xmlns="{NAMESPACE}"><Error><Type>Sender</Type><Code>{code}</Code><Message>hush</Message>'
    return f"{text}</Error></ErrorResponse>".encode()


@pytest.mark.parametrize(
    ("reply", "happened", "wait", "sentence"),
    [
        (Reply(400, error("ExpiredTokenException")), False, None, "finds this broker's token expired"),
        (Reply(400, error("IDPCommunicationError")), False, None, "cannot fetch this broker's keys"),
        (Reply(400, error("PackedPolicyTooLarge")), False, None, "too large"),
        (Reply(400, error("Throttling")), False, None, "limits our rate"),
        (Reply(401), False, None, "answered 401"),
        (Reply(403, error("AccessDenied")), False, None, "does not trust"),
        (Reply(403, error("Newly.Invented <b>")), False, None, "answered 403"),
        (Reply(404, b"<html>"), False, None, "answered 404"),
        (Reply(429, headers={"Retry-After": "5"}), False, 5.0, "limits our rate"),
        (Reply(500, error("InternalFailure")), None, None, "answered 500"),
        (Reply(503, headers={"Retry-After": "2"}), None, 2.0, "answered 503"),
        (Reply(200, b"<a/>"), None, None, "not understood"),
        (Reply(200, b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'), None, None, "not understood"),
    ],
)
def test_refusals_say_whether_anything_happened(
    sts: StsServer, issuer: AwsStsIssuer, reply: Reply, happened: bool | None, wait: float | None, sentence: str
) -> None:
    sts.faults = [Fault("status", reply=reply)]
    with pytest.raises(IssuerError, match=sentence) as failed:
        mint(issuer, order())
    assert (failed.value.happened, failed.value.retry_after_s) == (happened, wait)
    assert "hush" not in str(failed.value)


@pytest.mark.parametrize("kind", ["cut", "truncated", "garbage", "huge"])
@pytest.mark.parametrize("happened", [False, True])
def test_an_answer_that_did_not_come_whole_is_not_known(
    sts: StsServer, issuer: AwsStsIssuer, kind: str, happened: bool
) -> None:
    sts.faults = [Fault(kind, happened, Reply(200, error("x")))]
    with pytest.raises(IssuerError) as failed:
        mint(issuer, order())
    assert failed.value.happened is None


@pytest.mark.parametrize("kind", ["silent", "drip"])
def test_a_slow_backend_is_waited_for_so_long(provider: FakeBroker, sts: StsServer, clock: Clock, kind: str) -> None:
    sts.faults = [Fault(kind, happened=True)]
    with pytest.raises(IssuerError, match=r"within 0\.3 seconds") as failed:
        mint(an_issuer(provider, sts, clock, timeout_s=0.3), order())
    assert failed.value.happened is None


def test_aws_refuses_whom_the_role_does_not_trust(sts: StsServer, issuer: AwsStsIssuer) -> None:
    with pytest.raises(IssuerError, match="does not trust"):
        mint(issuer, order(agent="somebody-else"))


def test_aws_refuses_what_another_key_signed(provider: FakeBroker, sts: StsServer, clock: Clock) -> None:
    other = FakeBroker()
    with pytest.raises(IssuerError, match="registered as an OIDC provider"):
        mint(an_issuer(provider, sts, clock, sign=lambda _, typ, claims: other.signer.sign(typ, dict(claims))), order())


def test_another_session_than_was_asked_for_is_not_delivered(
    sts: StsServer, issuer: AwsStsIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    act = sts.act

    def of_another(asked: Any) -> Reply:
        reply = act(asked)
        return Reply(reply.status, reply.body.replace(b"agent:reporter", b"agent:other"), reply.headers)

    monkeypatch.setattr(sts, "act", of_another)
    with pytest.raises(IssuerError, match="another session") as failed:
        mint(issuer, order())
    assert failed.value.happened is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"role_arn": "arn:aws:iam::1:role/x"}, "must be a role"),
        ({"statements": {}}, "each action"),
        ({"statements": {"a": []}}, "'a'"),
        ({"statements": {"a": [{"Action": "s3:*"}]}}, "'a'"),
        ({"policy_arns": ["x"]}, "at most 10"),
        ({"policy_arns": "x"}, "at most 10"),
        ({"tags": "yes"}, "true or false"),
        ({"role": "x"}, "'role'"),
    ],
)
def test_settings_are_checked_in_a_sentence(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        settings_of({**SETTINGS, **change})
