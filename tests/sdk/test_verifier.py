"""What the verifier refuses, with which code; and that remembering a token skips none of what can change."""

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from broker.jose import Signer
from broker.sdk.errors import (
    FeedStale,
    InsufficientScope,
    InvalidToken,
    Refused,
    TokenKilled,
)
from broker.sdk.verifier import UnknownSigningKey

from .kit import AUDIENCE, START_MS, asynchronous, broker_and_clock, verifier_of

NOW_S = START_MS // 1000


def detail(**members):
    return {"type": "task_action", "actions": ["credits:propose"], "parameters": {"amount": 100}} | members


def actors(count):
    chain = {"sub": "last"}
    for number in range(count - 1):
        chain = {"sub": f"actor-{number}", "act": chain}
    return chain


@asynchronous
async def test_a_good_token_is_accepted_with_what_it_says():
    broker, clock = broker_and_clock()
    async with verifier_of(broker, clock) as verifier:
        details = [detail()]
        bearer = broker.token(audience=AUDIENCE, scope="invoices:read", task="tsk_1", authorization_details=details)
        token = verifier.verify(bearer, scopes=["invoices:read"], actions=["credits:propose", "invoices:read"])
    assert (token.agent, token.task, token.exp) == ("agent", "tsk_1", NOW_S + 300)
    assert token.scope == {"invoices:read"}
    assert token.actions == {"invoices:read", "credits:propose"}
    assert token.parameters("credits:propose") == {"amount": 100}
    assert token.parameters("invoices:read") == {}
    with pytest.raises(KeyError):
        token.parameters("payments:send")
    assert bearer not in repr(token)


WRONG_CLAIMS = {
    "another issuer": {"iss": "https://taskpass.test.evil"},
    "issuer with a slash": {"iss": "https://taskpass.test/"},
    "no issuer": {"iss": None},
    "another audience": {"aud": "https://payroll.test"},
    "audience with a slash": {"aud": AUDIENCE + "/"},
    "two audiences": {"aud": [AUDIENCE, "https://payroll.test"]},
    "no audience": {"aud": None},
    "expired this second": {"iat": NOW_S - 10, "exp": NOW_S},
    "no exp": {"exp": None},
    "exp as text": {"exp": str(NOW_S + 60)},
    "exp as a float": {"exp": NOW_S + 60.5},
    "exp as true": {"exp": True},
    "exp in the year 10000": {"exp": 10**15},
    "lives for days": {"exp": NOW_S + 86_400},
    "no iat": {"iat": None},
    "iat far ahead": {"iat": NOW_S + 100},
    "no sub": {"sub": None},
    "sub as a number": {"sub": 7},
    "no client_id": {"client_id": None},
    "no jti": {"jti": None},
    "no task": {"task": None},
    "task as a list": {"task": ["tsk_1"]},
    "empty task": {"task": ""},
    "no seq": {"seq": None},
    "seq below zero": {"seq": -1},
    "seq as text": {"seq": "1"},
    "seq as true": {"seq": True},
    "seq as a float": {"seq": 1.0},
    "seq beyond any ledger": {"seq": 1 << 60},
    "scope as a list": {"scope": ["invoices:read"]},
    "act as text": {"act": "helper"},
    "act without sub": {"act": {"client_id": "helper"}},
    "act nested without sub": {"act": {"sub": "helper", "act": {}}},
    "act too deep": {"act": actors(9)},
    "details not a list": {"authorization_details": detail()},
    "details of another type": {"authorization_details": [detail(type="payment")]},
    "details without actions": {"authorization_details": [detail(actions=[])]},
    "details with odd parameters": {"authorization_details": [detail(parameters=[1])]},
    "one action with two limits": {"authorization_details": [detail(), detail(parameters={"amount": 9_999})]},
    "another epoch": {"jti": "grt_00000000_1"},
    "a jti that is no address": {"jti": "1234"},
}


@pytest.mark.parametrize("claims", WRONG_CLAIMS.values(), ids=WRONG_CLAIMS.keys())
@asynchronous
async def test_a_wrong_claim_is_an_invalid_token(claims):
    broker, clock = broker_and_clock()
    async with verifier_of(broker, clock, resource_metadata="https://invoices.test/meta") as verifier:
        bearer = resigned(broker, broker.token(audience=AUDIENCE), **claims)
        with pytest.raises(InvalidToken) as refused:
            verifier.verify(bearer)
    assert (refused.value.status, refused.value.code) == (401, "invalid_token")
    challenge = refused.value.www_authenticate
    assert challenge.startswith('Bearer error="invalid_token", error_description="')
    assert challenge.endswith('resource_metadata="https://invoices.test/meta"')


def resigned(broker, bearer, *, typ="at+jwt", signer=None, **claims):
    payload = bearer.split(".")[1]
    body = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))) | claims
    return (signer or broker.signer).sign(typ, {name: value for name, value in body.items() if value is not None})


def forged_header(bearer, **header):
    raw = base64.urlsafe_b64encode(json.dumps(header).encode()).rstrip(b"=").decode()
    return ".".join([raw, *bearer.split(".")[1:]])


def new_signer(kid=None):
    return Signer(private_key=ec.generate_private_key(ec.SECP256R1()), kid=kid)


FORGERIES = {
    "empty": lambda _broker, _good: "",
    "not a token": lambda _broker, _good: "a.b.c",
    "longer than 8 KiB": lambda _broker, good: good + "A" * 8192,
    "not ASCII": lambda _broker, good: good[:-1] + "é",
    "lone surrogate": lambda _broker, good: good[:-1] + "\ud800",
    "with a newline": lambda _broker, good: good + "\n",
    "padded": lambda _broker, good: good + "=",
    "unsigned": lambda broker, good: forged_header(good, alg="none", typ="at+jwt", kid=broker.signer.kid)[:-86],
    "HMAC": lambda broker, good: forged_header(good, alg="HS256", typ="at+jwt", kid=broker.signer.kid),
    "key in the header": lambda broker, good: forged_header(good, alg="ES256", typ="at+jwt", jwk=new_signer().jwk),
    "no kid": lambda _broker, good: forged_header(good, alg="ES256", typ="at+jwt"),
    "signature of zeros": lambda _broker, good: good.rsplit(".", 1)[0] + "." + "A" * 86,
    "other payload": lambda broker, good: ".".join(
        [good.split(".")[0], resigned(broker, good, sub="root").split(".")[1], good.split(".")[2]]
    ),
    "other key, same kid": lambda broker, good: resigned(broker, good, signer=new_signer(broker.signer.kid)),
    "session token": lambda broker, good: resigned(broker, good, typ="session+jwt"),
    "client assertion": lambda broker, good: resigned(broker, good, typ="client-authentication+jwt"),
    "plain JWT": lambda broker, good: resigned(broker, good, typ="JWT"),
}


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES.keys())
@asynchronous
async def test_a_forgery_is_an_invalid_token(forge):
    broker, clock = broker_and_clock()
    async with verifier_of(broker, clock) as verifier:
        forged = forge(broker, broker.token(audience=AUDIENCE))
        with pytest.raises(InvalidToken) as refused:
            await verifier.averify(forged)
    assert refused.value.code == "invalid_token"
    assert "\n" not in refused.value.www_authenticate


@asynchronous
async def test_the_typ_may_be_written_as_a_whole_media_type():
    broker, clock = broker_and_clock()
    async with verifier_of(broker, clock) as verifier:
        verifier.verify(resigned(broker, broker.token(audience=AUDIENCE), typ="application/at+JWT"))


@asynchronous
async def test_what_is_not_granted_is_insufficient_scope_and_names_all_that_is_needed():
    broker, clock = broker_and_clock()
    async with verifier_of(broker, clock) as verifier:
        bearer = broker.token(audience=AUDIENCE, scope="invoices:read", authorization_details=[detail()])
        for asked in ({"scopes": ["invoices:read", "invoices:write"]}, {"scopes": ["credits:propose"]}):
            with pytest.raises(InsufficientScope) as refused:
                verifier.verify(bearer, **asked)
            assert refused.value.status == 403
            assert f'scope="{" ".join(asked["scopes"])}"' in refused.value.www_authenticate
        with pytest.raises(InsufficientScope):
            verifier.verify(bearer, actions=["payments:send"])


SELECTORS = {
    "agent": {"agent": "agent"},
    "client id": {"agent": "client"},
    "actor": {"agent": "helper"},
    "actor's actor": {"agent": "origin"},
    "task": {"task": "tsk_1"},
    "grant": {"grant": "JTI"},
    "resource": {"resource": AUDIENCE},
    "key": {"key": "KID"},
    "all": {"all": ""},
}


@pytest.mark.parametrize("mode", ["strict", "best_effort"])
@pytest.mark.parametrize("selector", SELECTORS.values(), ids=SELECTORS.keys())
@asynchronous
async def test_a_kill_ends_exactly_what_it_covers(selector, mode):
    broker, clock = broker_and_clock()
    async with verifier_of(broker, clock, mode=mode) as verifier:
        act = {"sub": "helper", "act": {"sub": "origin"}}
        bearer = broker.token(audience=AUDIENCE, task="tsk_1", client_id="client", act=act)
        other = broker.token(audience=AUDIENCE, agent="bystander", task="tsk_2")
        token = verifier.verify(bearer)
        verifier.verify(other)
        names = {"JTI": token.jti, "KID": broker.signer.kid}
        kill = broker.kill(**{kind: names.get(value, value) for kind, value in selector.items()})
        await broker.acknowledged(kill)
        for _ in range(2):
            with pytest.raises(TokenKilled) as refused:
                verifier.verify(bearer)
        assert refused.value.kill_id == kill.id
        if selector.keys() & {"agent", "task", "grant"}:
            verifier.verify(other)
        if "key" not in selector:  # what is issued after the kill lives: positions decide
            later = broker.token(audience=AUDIENCE, task="tsk_1", client_id="client", act=act)
            verifier.verify(later)


@asynchronous
async def test_an_audience_written_as_a_list_of_one_is_killed_with_its_resource():
    broker, clock = broker_and_clock()
    async with verifier_of(broker, clock) as verifier:
        bearer = resigned(broker, broker.token(audience=AUDIENCE), aud=[AUDIENCE])
        verifier.verify(bearer)
        await broker.acknowledged(broker.kill(resource=AUDIENCE))
        with pytest.raises(TokenKilled):
            verifier.verify(bearer)


@asynchronous
async def test_a_remembered_token_expires_on_time():
    broker, clock = broker_and_clock()
    async with verifier_of(broker, clock, mode="best_effort") as verifier:
        bearer = broker.token(audience=AUDIENCE)
        verifier.verify(bearer)
        clock.sleep(299.999)
        verifier.verify(bearer)
        clock.sleep(0.001)
        with pytest.raises(InvalidToken, match="expired"):
            verifier.verify(bearer)


@asynchronous
async def test_strict_refuses_remembered_and_new_tokens_when_stale_and_recovers_by_a_heartbeat():
    broker, clock = broker_and_clock()
    async with verifier_of(broker, clock, staleness_bound_s=5) as verifier:
        remembered, new = (broker.token(audience=AUDIENCE) for _ in range(2))
        verifier.verify(remembered)
        clock.sleep(5)
        verifier.verify(remembered)
        assert verifier.fresh
        clock.sleep(0.001)
        assert not verifier.fresh
        for bearer in (remembered, new):
            with pytest.raises(FeedStale) as refused:
                verifier.verify(bearer)
        assert (refused.value.status, refused.value.code) == (503, "temporarily_unavailable")
        assert refused.value.www_authenticate is None
        await broker.settled()  # sends a stamp of now, which only a heartbeat brings back
        with pytest.raises(FeedStale):
            verifier.verify(new)
        await broker.beat()
        verifier.verify(remembered)
        verifier.verify(new)


@asynchronous
async def test_best_effort_goes_on_with_what_it_knows():
    broker, clock = broker_and_clock()
    async with verifier_of(broker, clock, mode="best_effort") as verifier:
        bearer, dead = broker.token(audience=AUDIENCE), broker.token(audience=AUDIENCE, agent="dead")
        await broker.acknowledged(broker.kill(agent="dead"))
        clock.sleep(60)
        verifier.verify(bearer)
        with pytest.raises(TokenKilled):
            verifier.verify(dead)
        assert not verifier.fresh


@asynchronous
async def test_a_clock_that_is_set_back_revives_nothing():
    broker, clock = broker_and_clock()
    for mode in ("strict", "best_effort"):
        async with verifier_of(broker, clock, mode=mode) as verifier:
            bearer = broker.token(audience=AUDIENCE)
            verifier.verify(bearer)
            clock.sleep(300)
            await broker.beat()  # the ledger says what time it is
            clock.set_back(3600)
            for _ in range(2):
                with pytest.raises(InvalidToken, match="expired"):
                    verifier.verify(bearer)
            clock.wall_ms += 3_600_000


@asynchronous
async def test_time_passes_on_the_elapsed_clock_while_the_wall_clock_stands_still():
    broker, clock = broker_and_clock()
    async with verifier_of(broker, clock, mode="best_effort") as verifier:
        bearer = broker.token(audience=AUDIENCE)
        clock.sleep(301)
        clock.set_back(301)
        with pytest.raises(InvalidToken, match="expired"):
            verifier.verify(bearer)


@asynchronous
async def test_below_the_floor_nothing_is_accepted_and_kills_are_forgotten():
    broker, clock = broker_and_clock()
    async with verifier_of(broker, clock) as verifier:
        old = broker.token(audience=AUDIENCE)
        verifier.verify(old)
        await broker.acknowledged(broker.kill(agent="somebody"))
        new = broker.token(audience=AUDIENCE)
        assert verifier.status.kills == 1
        broker.feed.raise_floor(broker.feed.position)
        await broker.beat()
        assert verifier.status.kills == 0
        with pytest.raises(InvalidToken, match="ledger's clock"):
            verifier.verify(old)
        verifier.verify(new)


@asynchronous
async def test_a_provisional_kill_covers_everything_until_its_durable_entry_takes_over():
    broker, clock = broker_and_clock()
    async with verifier_of(broker, clock) as verifier:
        before = broker.token(audience=AUDIENCE)
        provisional = broker.kill(provisional=True, agent="agent")
        after = broker.token(audience=AUDIENCE)
        await broker.settled()
        for bearer in (before, after):
            with pytest.raises(TokenKilled):
                verifier.verify(bearer)
        kill = broker.feed.withdraw(provisional, confirm=True)
        newest = broker.token(audience=AUDIENCE)
        await broker.acknowledged(kill)
        for bearer in (before, after):
            with pytest.raises(TokenKilled) as refused:
                verifier.verify(bearer)
        assert refused.value.kill_id == kill.id
        verifier.verify(newest)


@asynchronous
async def test_a_provisional_kill_that_is_withdrawn_never_was():
    broker, clock = broker_and_clock()
    async with verifier_of(broker, clock) as verifier:
        bearer, other = broker.token(audience=AUDIENCE), broker.token(audience=AUDIENCE, agent="other")
        await broker.acknowledged(broker.kill(agent="other"))
        provisional = broker.kill(provisional=True, all="")
        await broker.settled()
        with pytest.raises(TokenKilled):
            verifier.verify(bearer)
        broker.feed.withdraw(provisional, confirm=False)
        await broker.settled()
        verifier.verify(bearer)
        with pytest.raises(TokenKilled):
            verifier.verify(other)


@asynchronous
async def test_a_new_epoch_refuses_everything_of_the_old_one():
    broker, clock = broker_and_clock()
    async with verifier_of(broker, clock) as verifier:
        old_signer, old = broker.signer, broker.token(audience=AUDIENCE)
        verifier.verify(old)
        connections = broker.feed.connections
        broker.restore()
        await broker.until(lambda: broker.feed.connections > connections)
        await broker.settled()
        new = broker.token(audience=AUDIENCE)
        token = await verifier.averify(new)
        assert token.jti.split("_")[1] == broker.feed.epoch
        with pytest.raises(InvalidToken):
            verifier.verify(old)
        with pytest.raises(InvalidToken):  # even if the restored broker still published the old key
            await verifier.averify(resigned(broker, old))
        with pytest.raises(UnknownSigningKey):
            await verifier.averify(resigned(broker, new, signer=old_signer))


@asynchronous
async def test_after_a_restore_the_old_keys_verify_nothing_even_before_the_new_ones_are_here():
    broker, clock = broker_and_clock()
    async with verifier_of(broker, clock) as verifier:
        old_signer, connections = broker.signer, broker.feed.connections
        broker.refuse("/oauth2/jwks", 503)
        broker.restore()
        await broker.until(lambda: broker.feed.connections > connections)
        await broker.settled()
        forged = resigned(broker, broker.token(audience=AUDIENCE), signer=old_signer)
        with pytest.raises(FeedStale, match="keys"):
            verifier.verify(forged)


@asynchronous
async def test_an_unknown_key_is_looked_for_at_a_bounded_rate():
    broker, clock = broker_and_clock()
    async with verifier_of(broker, clock, mode="best_effort") as verifier:

        def fetches():
            return sum(seen.path == "/oauth2/jwks" for seen in broker.requests)

        broker.rotate()
        rotated = broker.token(audience=AUDIENCE)
        with pytest.raises(UnknownSigningKey):  # does no I/O
            verifier.verify(rotated)
        before = fetches()
        await verifier.averify(rotated)
        assert fetches() == before + 1
        stranger = new_signer()
        for _ in range(20):
            with pytest.raises(UnknownSigningKey):
                await verifier.averify(resigned(broker, rotated, signer=stranger))
        assert fetches() == before + 1
        clock.sleep(30)
        with pytest.raises(UnknownSigningKey):
            await verifier.averify(resigned(broker, rotated, signer=stranger))
        assert fetches() == before + 2


@asynchronous
async def test_a_killed_key_is_replaced_without_waiting():
    broker, clock = broker_and_clock()
    async with verifier_of(broker, clock) as verifier:
        with pytest.raises(UnknownSigningKey):  # the cooldown is spent
            await verifier.averify(resigned(broker, broker.token(audience=AUDIENCE), signer=new_signer()))
        stolen = broker.signer
        broker.rotate(withdraw=True)
        await broker.acknowledged(broker.kill(key=stolen.kid))
        fresh = broker.token(audience=AUDIENCE)
        await verifier.averify(fresh)
        with pytest.raises(InvalidToken):
            await verifier.averify(resigned(broker, fresh, signer=stolen, seq=1 << 50))


@asynchronous
async def test_keys_that_cannot_be_fetched_for_an_hour_are_no_longer_used():
    broker, clock = broker_and_clock()
    async with verifier_of(broker, clock, mode="best_effort") as verifier:
        broker.refuse("/oauth2/jwks", 503)
        clock.sleep(3601)
        with pytest.raises(FeedStale, match="keys"):
            verifier.verify(broker.token(audience=AUDIENCE))


@asynchronous
async def test_a_verifier_starts_without_a_broker_and_refuses_until_there_is_one():
    broker, clock = broker_and_clock()
    broker.feed.accepting = False
    broker.refuse("/oauth2/jwks", 503)
    async with verifier_of(broker, clock, start_timeout_s=0.01) as verifier:
        bearer = broker.token(audience=AUDIENCE)
        with pytest.raises(FeedStale):
            verifier.verify(bearer)
        broker.feed.accepting = True
        broker.accept("/oauth2/jwks")
        await broker.until(lambda: bool(broker.feed.listening))
        await broker.beat()
        await verifier._published.refresh_for_unknown_key()
        verifier.verify(bearer)


def test_a_verifier_that_was_not_entered_refuses():
    broker, clock = broker_and_clock()
    with pytest.raises(FeedStale):
        verifier_of(broker, clock).verify(broker.token(audience=AUDIENCE))


@asynchronous
async def test_a_verifier_that_never_heard_a_heartbeat_refuses():
    broker, clock = broker_and_clock()
    broker.feed.pause_heartbeats()
    async with verifier_of(broker, clock, start_timeout_s=0.01) as verifier:
        await broker.until(lambda: bool(broker.feed.listening))
        await broker.settled()
        await verifier._published.refresh_for_unknown_key()
        with pytest.raises(FeedStale, match="feed"):
            verifier.verify(broker.token(audience=AUDIENCE))
        broker.feed.resume_heartbeats()
        await broker.settled()
        verifier.verify(broker.token(audience=AUDIENCE))


@asynchronous
async def test_what_is_remembered_is_bounded_and_the_least_used_goes_first():
    broker, clock = broker_and_clock()
    async with verifier_of(broker, clock, remember=2) as verifier:
        a, b, c = (broker.token(audience=AUDIENCE) for _ in range(3))
        for bearer in (a, b, a, c):
            verifier.verify(bearer)
        kept = [token.jti for token in (seen.token for seen in verifier._seen._seen.values())]
        assert kept == [verifier.verify(bearer).jti for bearer in (a, c)]


@asynchronous
async def test_metadata_of_another_issuer_is_not_believed():
    broker, clock = broker_and_clock()
    keys = "https://taskpass.test/oauth2/jwks"
    broker.refuse("/.well-known/oauth-authorization-server", 200, issuer="https://other.test", jwks_uri=keys)
    async with verifier_of(broker, clock, start_timeout_s=0.01) as verifier:
        with pytest.raises(FeedStale):
            verifier.verify(broker.token(audience=AUDIENCE))
        assert not any(seen.path == "/oauth2/jwks" for seen in broker.requests)


@pytest.mark.parametrize(
    "settings",
    [
        {"issuer": "http://taskpass.test"},
        {"issuer": "https://taskpass.test/"},
        {"issuer": "https://taskpass.test?x=1"},
        {"issuer": "https://user@taskpass.test"},
        {"audience": []},
        {"mode": "lenient"},
        {"staleness_bound_s": 0},
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings):
    broker, clock = broker_and_clock()
    with pytest.raises(ValueError, match=r".+"):
        verifier_of(broker, clock, **settings)


def test_a_verifier_on_a_thread_serves_code_without_an_event_loop():
    broker, clock = broker_and_clock()
    with verifier_of(broker, clock).start_in_thread() as verifier:
        bearer = broker.token(audience=AUDIENCE, scope="invoices:read")
        assert verifier.verify(bearer, scopes=["invoices:read"]).agent == "agent"
        broker.rotate()
        assert verifier.verify(broker.token(audience=AUDIENCE)).agent == "agent"
        kill = broker.kill(agent="agent")
        broker.feed.until(lambda: broker._all_at(kill.seq))
        with pytest.raises(TokenKilled):
            verifier.verify(bearer)
        assert verifier.fresh
        assert verifier.status.connected
    assert verifier.status is None
    clock.sleep(6)
    with pytest.raises(Refused):
        verifier.verify(bearer)
