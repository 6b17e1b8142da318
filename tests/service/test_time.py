"""66: clocks that jump. Ledger time never goes back, so nothing revives; what is fixed in a commit comes from it."""

import pytest

from broker.jose import parse
from tests.kit import START_MS, Broker

HOUR = 3600
JUMPS = {
    "-1h": START_MS - HOUR * 1000,
    "+1h": START_MS + HOUR * 1000,
    "1970": 0,
    "2038": (2**31 + 60) * 1000,
    "-1ms": START_MS - 1,
}


@pytest.mark.parametrize("jump", JUMPS.values(), ids=JUMPS.keys())
def test_66_what_is_dead_stays_dead(broker: Broker, jump: int):
    killed = broker.granted()["access_token"]
    broker.kill("agent", "dispute-bot", hold=False)
    task = broker.open_task("data-bot", deadline_seconds=20)
    over = broker.granted("data-bot", task=task)["access_token"]
    proof, svid = broker.home.assertion(), broker.home.svid()
    broker.request("GET", "/v1/whoami", bearer=proof)
    expired = [broker.session(who) for who in ("data-bot", "operator", "reader", "billing")]
    broker.clock.forward(1_000)  # everything has expired
    broker.do("expire_tasks", "housekeep")
    seers = [broker.request("POST", "/v1/sessions", bearer=broker.home.proof(who)) for who in ("operator", "billing")]
    broker.clock.now = jump
    broker.do("expire_tasks", "housekeep")
    for token in (killed, over):
        assert not any(
            broker.form("/oauth2/introspect", {"token": token}, bearer=each.json()["session_token"])
            .json()
            .get("active")
            for each in seers
        )
    assert broker.token(assertion=proof).status_code == 401
    assert broker.token("mesh-bot", assertion=svid).status_code == 401
    for each in expired:
        assert broker.request("GET", "/v1/whoami", bearer=each).status_code == 401
    (state,) = broker.query("SELECT state FROM tasks WHERE id = ?", task)
    assert state == ("expired",)


@pytest.mark.parametrize("jump", [-HOUR, -1, 0, 1], ids=str)
def test_66_lifetimes_count_from_ledger_time(broker: Broker, jump: int):
    broker.clock.forward(10)
    broker.open_task()  # a write: the ledger knows this time
    last = broker.process.ledger.head.time
    proof = broker.home.assertion(exp=broker.clock.s + 60)
    broker.clock.forward(jump)
    answer = broker.token(assertion=proof)
    assert answer.status_code in (200, 401)
    times = [event["t"] for event in broker.events()]
    assert times == sorted(times)
    if answer.status_code == 200:
        claims = parse(answer.json()["access_token"]).unverified_claims
        assert claims["iat"] == max(last, broker.clock.now) // 1000
        assert claims["exp"] == claims["iat"] + 300


def test_66_a_jump_ahead_ends_tasks_and_a_jump_back_does_not_reopen_them(broker: Broker):
    task = broker.open_task(heartbeat_seconds=30)
    token = broker.granted(task=task)["access_token"]
    broker.clock.forward(HOUR)
    broker.do("expire_tasks")
    broker.clock.forward(-HOUR)
    broker.do("expire_tasks")
    assert broker.query("SELECT state FROM tasks WHERE id = ?", task) == [("expired",)]
    assert broker.process.broker.evidence.grant_of(token)
    with broker.process.ledger.read() as r:
        assert r.head().time >= START_MS + HOUR * 1000


def test_66_the_floor_never_falls(broker: Broker):
    floors = []
    for jump in (0, 400, -300, 500, -1_000, 2_000):
        broker.clock.forward(jump)
        broker.token()
        broker.do("housekeep")
        floors.append(broker.process.ledger.head.floor)
    assert floors == sorted(floors)
