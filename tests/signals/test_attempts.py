"""How often an address may fail: here, with the others' counts, and never because of a lie alone."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import TooManyAttempts
from broker.signals import INTERVAL_S
from broker.signals.attempts import FLOOR, Attempts
from broker.signals.memory import Hub, MemorySignals
from tests.kit import Broker

STRANGER = "192.0.2.7"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Said(MemorySignals):
    """Signals that answer with what the test says."""

    def __init__(self, answer: int = 0) -> None:
        super().__init__()
        self.answer = answer

    def count(self, name: str) -> int:
        return self.answer


def refused(attempts: Attempts, address: str | None = STRANGER) -> bool:
    try:
        attempts.admit(address)
    except TooManyAttempts:
        return True
    return False


def failures_until_refused(attempts: Attempts, *, most: int = 1000) -> int:
    for number in range(most):
        if refused(attempts):
            return number
        attempts.failed(STRANGER)
    return most


def test_an_address_waits_once_it_has_failed_so_often():
    attempts = Attempts(limit=20, signals=Said(), clock=Clock())
    assert failures_until_refused(attempts) == 20
    assert not refused(attempts, "192.0.2.8")
    with pytest.raises(TooManyAttempts) as told:
        attempts.admit(STRANGER)
    assert told.value.status == 429
    assert 0 < told.value.retry_after <= INTERVAL_S


def test_it_may_try_again_when_the_interval_is_over():
    clock = Clock()
    attempts = Attempts(limit=3, signals=MemorySignals(hub=Hub(clock=clock)), clock=clock)
    assert failures_until_refused(attempts) == 3
    clock.now += INTERVAL_S
    assert failures_until_refused(attempts) == 3


def test_two_brokers_count_together():
    clock = Clock()
    hub = Hub(clock=clock)
    one, other = (Attempts(limit=80, signals=MemorySignals(hub=hub), clock=clock) for _ in range(2))
    assert failures_until_refused(one) == 80
    assert failures_until_refused(other) == 80 // FLOOR


@given(limit=st.integers(1, 200), said=st.integers(-(1 << 63), 1 << 63))
def test_no_lie_lifts_the_limit_or_takes_more_than_its_floor(limit, said):
    attempts = Attempts(limit=limit, signals=Said(said), clock=Clock())
    failed = failures_until_refused(attempts)
    assert -(-limit // FLOOR) <= failed <= limit


@pytest.mark.parametrize("address", [None, "127.0.0.1", "::1", "::ffff:127.0.0.1", "/run/taskpass.sock", ""])
def test_this_machine_and_what_has_no_address_are_never_refused(address):
    attempts = Attempts(limit=1, signals=Said(1 << 40), clock=Clock())
    for _ in range(10):
        attempts.failed(address)
    assert not refused(attempts, address)


def test_one_ipv6_network_is_one_address():
    attempts = Attempts(limit=2, signals=Said(), clock=Clock())
    attempts.failed("2001:db8::1")
    attempts.failed("2001:db8::2:3:4:5")
    assert refused(attempts, "2001:db8::abcd")
    assert not refused(attempts, "2001:db8:0:1::1")


def test_no_limit_is_none():
    assert failures_until_refused(Attempts(limit=0, signals=Said(1 << 40), clock=Clock()), most=100) == 100


def test_a_flood_of_addresses_is_bounded():
    attempts = Attempts(limit=1, signals=Said(), clock=Clock())
    for number in range(11_000):
        attempts.failed(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert len(attempts._failures) <= 10_000
    assert refused(attempts, "10.0.42.247"), "the newest are known"


# --- At the front door ------------------------------------------------------------------------------------------------


@pytest.fixture
def limited(home, start, monkeypatch) -> Callable[..., Broker]:
    """A broker that lets an address fail three times."""
    limits = home.config.limits.model_copy(update={"failures_per_minute": 3})
    home.config = home.config.model_copy(update={"limits": limits})
    return start()


@contextmanager
def from_afar(broker: Broker) -> Iterator[None]:
    """The broker's requests come from another machine."""
    transport = httpx2.ASGITransport(app=broker.process.app, raise_app_exceptions=False, client=(STRANGER, 4711))
    here, broker.http = broker.http, httpx2.AsyncClient(transport=transport, base_url=broker.home.issuer)
    yield
    broker.run(broker.http.aclose())
    broker.http = here


def test_the_token_endpoint_counts_who_proves_nothing(limited):
    with from_afar(limited):
        assert limited.token().status_code == 200
        for _ in range(3):
            assert limited.token(assertion="no.such.thing").status_code in {400, 401}
        answer = limited.token()
        assert answer.status_code == 429
        assert answer.json()["error"] == "temporarily_unavailable"
        assert int(answer.headers["retry-after"]) >= 1
    assert limited.token().status_code == 200, "from elsewhere"


def test_a_refused_agent_has_proved_who_it_is(limited):
    with from_afar(limited):
        for _ in range(5):
            assert limited.token(resource="https://payments.example.com").status_code == 400
        assert limited.token().status_code == 200


def test_every_other_route_counts_with_it_and_a_kill_is_never_refused(limited):
    session, operator = limited.session("operator"), limited.home.operator()
    with from_afar(limited):
        for _ in range(3):
            assert limited.request("GET", "/v1/whoami", bearer="no.such.thing").status_code == 401
        assert limited.request("GET", "/v1/whoami", bearer=session).status_code == 429
        assert limited.form("/oauth2/introspect", {"token": "x"}, bearer=session).status_code == 429
        assert limited.token().status_code == 429
        body = {"target": "agent", "value": "dispute-bot", "reason": "test"}
        for bearer in (session, operator):
            assert limited.request("POST", "/v1/kills", json=body, bearer=bearer).status_code == 201
