"""schemathesis against the published document: whatever fits it or does not, no 5xx, and answers as published."""

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import schemathesis
import schemathesis.specs.openapi.schemas  # now: CPython 3.11's parser may fail in one thread while another compiles
from hypothesis import HealthCheck, Phase, given, reject, settings
from hypothesis import strategies as st
from schemathesis.checks import content_type_conformance, not_a_server_error, response_schema_conformance

from tests.kit import Broker, Home

CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance]
ENDLESS = "/v1/revocations/stream"
EXAMPLES = 8


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    broker = Broker(Home(Path(tmp_path_factory.mktemp("fuzzed")) / "broker"))
    broker.open_task()
    yield broker
    broker.close()


@pytest.mark.parametrize("who", [None, "operator", "dispute-bot", "billing"])
def test_every_operation_under_schemathesis(fuzzed: Broker, who: str | None):
    schema = schemathesis.openapi.from_dict(fuzzed.get("/openapi.json").json())
    seen = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path == ENDLESS and who == "billing":
            continue  # an endless answer: tested over a socket
        seen += 1

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            phases=(Phase.explicit, Phase.generate),
            suppress_health_check=list(HealthCheck),
        )
        @schemathesis_given(operation)
        def check(case: schemathesis.Case) -> None:
            send(fuzzed, case, who)

        check()
    assert seen >= 30


def schemathesis_given(operation):
    good = operation.as_strategy()
    bad = operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)
    return given(case=st.one_of(good, bad))


def send(broker: Broker, case: schemathesis.Case, who: str | None) -> None:
    asked = case.as_transport_kwargs(base_url=broker.home.issuer)
    headers = {name: value for name, value in (asked.get("headers") or {}).items() if name.lower() != "authorization"}
    if who is not None:
        headers["Authorization"] = f"Bearer {broker.session(who)}"
    body = {name: asked[name] for name in ("json", "data", "content") if asked.get(name) is not None}
    if isinstance(body.get("data"), str | bytes):
        body["content"] = body.pop("data")
    try:
        request = broker.http.build_request(
            asked["method"], asked["url"], params=asked.get("params"), headers=headers, **body
        )
    except (httpx2.InvalidURL, UnicodeEncodeError, ValueError, TypeError):
        reject()  # no client could send it
    answer = broker.run(broker.http.send(request))
    case.validate_response(schemathesis.Response.from_any(answer), checks=CHECKS)
