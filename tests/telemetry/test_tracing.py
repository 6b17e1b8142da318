"""Whose request it was: in events, logs and spans; and nothing that was asked or issued in any span."""

import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import structlog
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from broker.errors import ConfigurationInvalid
from broker.sections import TracingSection
from broker.service import Issuance
from broker.telemetry.tracing import Spans, traceparent_in
from tests.kit import Broker, Home
from tests.service.memory_backend import Site

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, NOT_SAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"


@pytest.mark.parametrize(
    "value",
    [
        "",
        "00",
        SAMPLED.upper(),
        f"01-{TRACE}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"{SAMPLED}-more",
        f" {SAMPLED}",
        f"{SAMPLED}\n",
        SAMPLED.replace("4b", "4\u0663"),
        "00-" + "a" * 10_000,
    ],
    ids=range(11),
)
def test_what_is_not_well_formed_is_as_if_it_were_not_there(value: str):
    assert traceparent_in([(b"traceparent", value.encode())]) is None


def test_one_is_taken_and_two_are_none():
    one = (b"traceparent", SAMPLED.encode())
    assert traceparent_in([(b"host", b"x"), one]) == SAMPLED
    assert traceparent_in([one, one]) is None


def sent(broker: Broker, traceparent: str) -> dict[str, Any]:
    """The event of one token request."""
    size = broker.size
    answer = broker.form("/oauth2/token", broker.token_fields(), headers={"traceparent": traceparent})
    assert answer.status_code == 200
    return broker.events("issued", start=size)[0]


def test_events_keep_it(broker: Broker):
    assert sent(broker, SAMPLED)["traceparent"] == SAMPLED
    assert sent(broker, NOT_SAMPLED)["traceparent"] == NOT_SAMPLED
    assert "traceparent" not in sent(broker, "00-nonsense-01")
    headers = {"traceparent": SAMPLED}
    fields = broker.token_fields(resource="https://unknown.example.com")
    broker.form("/oauth2/token", fields, headers=headers)
    assert broker.events("refused")[-1]["traceparent"] == SAMPLED
    assert broker.post("/v1/tasks", {"purpose": "x"}, by="dispute-bot", headers=headers).status_code == 201
    assert broker.events("task.opened")[-1]["traceparent"] == SAMPLED
    body = {"target": "agent", "value": "dispute-bot", "reason": "x"}
    assert broker.post("/v1/kills", body, by="operator", headers=headers).status_code == 201
    assert broker.events("killed")[-1]["traceparent"] == SAMPLED
    assert broker.post("/v1/kills", {**body, "value": "data-bot"}, by="operator").status_code == 201
    assert "traceparent" not in broker.events("killed")[-1]


def test_a_secrets_intent_keeps_it(tmp_path: Path):
    site = Site(tmp_path)
    body = {"resource": "orders-db", "actions": ["orders:read"]}
    answer = site.broker.post("/v1/credentials", body, by="data-bot", headers={"traceparent": SAMPLED})
    assert answer.status_code == 201, answer.text
    assert site.broker.events("issuing")[-1]["traceparent"] == SAMPLED
    site.broker.close()


def test_log_lines_carry_the_id_that_the_answer_names(shared: Broker):
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        answer = shared.get("/v1/tasks/nothing", by="operator", headers={"traceparent": SAMPLED})
    assert answer.status_code == 404
    (line,) = (line for line in lines if line["event"] == "refused")
    assert line["request_id"] == answer.json()["request_id"] == answer.headers["x-request-id"]
    assert line["traceparent"] == SAMPLED
    again = shared.get("/v1/tasks/nothing", by="operator")
    assert again.json()["request_id"] != answer.json()["request_id"]


def test_every_other_answer_names_its_request(shared: Broker):
    for path in ("/livez", "/oauth2/jwks", "/readyz", "/no/such/path", "/v1/whoami"):
        first, second = (shared.get(path).headers.get_list("x-request-id") for _ in range(2))
        assert len(first) == len(second) == 1, path
        assert first != second
    given = {"x-request-id": "edge-7:42"}
    whoami = shared.get("/v1/whoami", by="operator", headers=given)
    assert (whoami.status_code, whoami.headers.get_list("x-request-id")) == (200, ["edge-7:42"])
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        answer = shared.get("/v1/tasks/nothing", by="operator", headers=given)
    assert answer.json()["request_id"] == "edge-7:42"
    assert [line["request_id"] for line in lines if line["event"] == "refused"] == ["edge-7:42"]
    form = {"token": "x", "client_assertion": "a.b.c", "client_assertion_type": "nonsense"}
    refused = shared.form("/oauth2/introspect", form, headers=given)
    assert refused.json()["request_id"] == "edge-7:42"
    assert refused.headers.get_list("x-request-id") == ["edge-7:42"]


# --- Spans ------------------------------------------------------------------------------------------------------------


class Collector:
    """An OTLP collector that keeps what it is sent."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        received = self.received

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    import gzip

                    body = gzip.decompress(body)
                received.append(body)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1/traces"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def spans(self) -> list[Any]:
        found = []
        for raw in self.received:
            for resource in ExportTraceServiceRequest.FromString(raw).resource_spans:
                found += [span for scope in resource.scope_spans for span in scope.spans]
        return found

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def collector() -> Iterator[Collector]:
    started = Collector()
    yield started
    started.close()


def test_spans_of_batches_commits_and_kills_are_exported_and_tell_no_secret(tmp_path: Path, collector: Collector):
    home = Home(tmp_path / "broker")
    home.config = home.config.model_copy(update={"tracing": TracingSection(endpoint=collector.url)})
    broker = Broker(home)
    fields = broker.token_fields()
    token = broker.form("/oauth2/token", fields, headers={"traceparent": SAMPLED}).json()["access_token"]
    broker.form("/oauth2/token", broker.token_fields(), headers={"traceparent": NOT_SAMPLED})
    broker.post("/v1/agents/dispute-bot/pause", {"reason": "x"}, by="operator", headers={"traceparent": SAMPLED})
    broker.close()
    spans = collector.spans()
    names = [span.name for span in spans]
    assert names.count("taskpass.token_batch") == 2
    assert names.count("taskpass.ledger_commit") >= 3
    (child,) = (span for span in spans if span.name == "taskpass.token")
    assert (child.trace_id.hex(), child.parent_span_id.hex()) == (TRACE, PARENT)
    (kill,) = (span for span in spans if span.name == "taskpass.kill")
    assert (kill.trace_id.hex(), kill.parent_span_id.hex()) == (TRACE, PARENT)
    everything = b"".join(collector.received)
    for secret in (token, fields["client_assertion"]):
        assert secret.encode() not in everything
        assert secret.rpartition(".")[2].encode() not in everything


def test_a_batch_is_told_by_its_stages_in_their_order(tmp_path: Path, collector: Collector):
    home = Home(tmp_path / "broker")
    home.config = home.config.model_copy(update={"tracing": TracingSection(endpoint=collector.url)})
    broker = Broker(home)
    headers = {"traceparent": SAMPLED}
    answers = broker.gather(
        broker.ask("POST", "/oauth2/token", data=broker.token_fields(**fields), headers=headers)
        for fields in ({}, {}, {"assertion": "a.b.c"}, {"resource": "https://unknown.example.com"})
    )
    assert sorted(answer.status_code for answer in answers) == [200, 200, 400, 401]
    assert broker.events("issued")[-1]["traceparent"] == SAMPLED
    broker.close()
    spans = collector.spans()
    batches = {span.span_id: span for span in spans if span.name == "taskpass.token_batch"}
    assert sum(_requests(batch) for batch in batches.values()) == 4
    stages = ("authenticate", "evaluate", "commit", "sign")
    for batch in batches.values():
        parts = [span for span in spans if span.parent_span_id == batch.span_id]
        parts.sort(key=lambda span: span.start_time_unix_nano)
        assert [part.name for part in parts] == [f"taskpass.{stage}" for stage in stages]
        assert {part.trace_id for part in parts} == {batch.trace_id}
        ends = [batch.start_time_unix_nano]
        for part in parts:
            assert part.start_time_unix_nano >= ends[-1]
            ends.append(part.end_time_unix_nano)
        assert batch.end_time_unix_nano >= ends[-1]
    counted = {stage: sum(_requests(span) for span in spans if span.name == f"taskpass.{stage}") for stage in stages}
    assert counted == {"authenticate": 4, "evaluate": 3, "commit": 3, "sign": 2}
    tokens = [span for span in spans if span.name == "taskpass.token"]
    assert {span.trace_id.hex() for span in tokens} == {TRACE}
    assert {link.span_id for span in tokens for link in span.links} <= set(batches)
    assert b"a.b.c" not in b"".join(collector.received)


def _requests(span: Any) -> int:
    (number,) = (each.value.int_value for each in span.attributes if each.key == "taskpass.requests")
    return int(number)


def test_without_tracing_nothing_stands_between(shared: Broker):
    assert type(shared.process.broker.issuance) is Issuance


def test_without_the_extra_it_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigurationInvalid, match=r"taskpass\[otel\]"):
        Spans.to("http://127.0.0.1:4318/v1/traces", version="1")
    assert Spans.to(None, version="1")


@pytest.mark.parametrize("endpoint", ["ftp://x/", "http://", "http://user:secret@host/v1/traces", "x"])
def test_an_endpoint_that_is_none_is_refused(endpoint: str):
    with pytest.raises(ValueError, match="must be a URL"):
        TracingSection(endpoint=endpoint)
