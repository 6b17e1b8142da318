"""The light client: the same exchanges over the standard library alone, and nothing imported that costs a start-up."""

import subprocess
import sys

import pytest

from broker.sdk import light, protocol
from broker.sdk.errors import Never, NotAuthenticated, Unavailable
from broker.sdk.protocol import Ask, Request, Session
from broker.sdk.testkit import FakeBroker

from .kit import AUDIENCE


@pytest.fixture(scope="module")
def served():
    broker = FakeBroker()
    with broker.serve():
        yield broker


def test_a_credential_over_a_real_socket(served):
    flow = protocol.obtain(served.issuer, Ask.of(AUDIENCE, scope="invoices:read"))
    credential = light.run(flow, identity=served.identity)
    assert credential.scope == ("invoices:read",)
    assert credential.token.count(".") == 2


def test_a_task_over_a_real_socket(served):
    session = Session()
    task = light.run(protocol.open_task(served.issuer, session, purpose="x"), identity=served.identity)
    light.run(protocol.end_task(served.issuer, session, task["id"], outcome="completed"), identity=served.identity)
    assert served.tasks[task["id"]]["state"] == "ended"


def test_refusals_are_typed(served):
    served.refuse("/oauth2/token", 400, error="access_denied", outcome="never")
    try:
        with pytest.raises(Never):
            light.run(protocol.obtain(served.issuer, Ask.of(AUDIENCE)), identity=served.identity)
    finally:
        served.accept("/oauth2/token")


def test_nobody_there_is_an_outage():
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:9 did not answer"):
        light.send(Request("GET", "http://127.0.0.1:9/"))


def test_an_answer_without_end_is_not_read(served):
    served.refuse("/v1/whoami", 200, padding="x" * (1 << 21))
    try:
        with pytest.raises(Unavailable, match="bytes"):
            light.send(Request("GET", f"{served.issuer}/v1/whoami"))
    finally:
        served.accept("/v1/whoami")


def test_without_an_identity_nothing_is_sent(served):
    before = len(served.requests)

    class Nobody:
        def assertion(self, audience):
            raise NotAuthenticated("No identity.", code="no_identity")

    with pytest.raises(NotAuthenticated):
        light.run(protocol.obtain(served.issuer, Ask.of(AUDIENCE)), identity=Nobody())
    assert len(served.requests) == before


def test_nothing_heavy_is_imported():
    heavy = ["httpx", "httpx2", "fastapi", "pydantic", "asyncio", "cryptography", "requests", "broker.jose"]
    program = f"import sys, broker.sdk.light; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
