"""What a scrape says: counted in every process, read from the ledger, and only for who has the token."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from broker.config import MetricsSection, SignalsSection
from broker.errors import ConfigurationInvalid
from broker.telemetry.catalogue import CATALOGUE, sample_names
from broker.telemetry.metrics import Metrics
from broker.telemetry.reports import Reports
from demo.ports import free_port
from tests.kit import Broker, Home
from tests.service.memory_backend import Site
from tests.signals.test_conformance import until

TOKEN = "a token for scraping"
_OF_THE_PROCESS = ("process_", "python_")


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    home = Home(tmp_path / "broker")
    home.config = home.config.model_copy(update={"metrics": MetricsSection(token=SecretStr(TOKEN))})
    started = Broker(home)
    yield started
    started.close()


def scraped(broker: Broker) -> dict[str, list[tuple[dict[str, str], float]]]:
    answer = broker.request("GET", "/metrics", bearer=TOKEN)
    assert answer.status_code == 200, answer.text
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
    return found


def value(found: dict[str, Any], name: str, **labels: str) -> float:
    return sum(number for have, number in found.get(name, ()) if labels.items() <= have.items())


def test_off_by_default_and_for_the_token_only(shared: Broker, broker: Broker):
    assert shared.get("/metrics").status_code == 404
    for wrong in ({}, {"authorization": "Bearer another token here"}, {"authorization": f"Basic {TOKEN}"}):
        answer = broker.request("GET", "/metrics", headers=wrong)
        assert (answer.status_code, answer.json()["code"]) == (401, "invalid_client")
    assert broker.request("GET", "/metrics", bearer=broker.session("operator")).status_code == 401


def test_a_short_token_does_not_start(tmp_path: Path):
    home = Home(tmp_path / "broker")
    home.config = home.config.model_copy(update={"metrics": MetricsSection(token=SecretStr("short"))})
    with pytest.raises(ConfigurationInvalid, match="at least 16"):
        Broker(home)


def test_everything_scraped_is_in_the_catalogue(broker: Broker):
    broker.granted()
    names = {name for name in scraped(broker) if not name.startswith(_OF_THE_PROCESS)}
    assert names <= sample_names()
    always = {name for metric in CATALOGUE.values() if not metric.labels for name in metric.samples}
    assert always - names == set()


def test_requests_are_counted_by_outcome_and_each_batch_once(broker: Broker):
    broker.granted()
    broker.granted()
    refused = broker.token("dispute-bot", resource="https://unknown.example.com")
    assert refused.status_code == 400
    found = scraped(broker)
    assert value(found, "taskpass_token_requests_total", outcome="issued") == 2
    assert value(found, "taskpass_token_requests_total", outcome="invalid_target") == 1
    assert value(found, "taskpass_token_batch_seconds_count") == 3
    assert value(found, "taskpass_token_batch_requests_sum") == 3
    assert value(found, "taskpass_ledger_commit_seconds_count") >= 3
    assert value(found, "taskpass_ledger_queue_commands") == 0


def test_strangers_are_counted_by_reason(broker: Broker):
    assert broker.get("/v1/whoami").status_code == 401
    assert value(scraped(broker), "taskpass_unauthenticated_refusals_total", reason="no_credential") == 1


def test_facts_of_the_ledger_and_the_rules(broker: Broker):
    found = scraped(broker)
    assert value(found, "taskpass_ready") == 1
    assert value(found, "taskpass_ledger_position") == broker.size - 1
    assert value(found, "taskpass_holds_standing") == 0
    assert found["taskpass_review_expiry_seconds"][0][1] > 0
    assert value(found, "taskpass_signing_key_age_seconds", purpose="token") == 0
    broker.home.clock.forward(600)
    paused = broker.post("/v1/agents/dispute-bot/pause", {"reason": "test"}, by="operator")
    assert paused.status_code == 201
    found = scraped(broker)
    assert value(found, "taskpass_holds_standing") == 1
    assert value(found, "taskpass_signing_key_age_seconds", purpose="token") == pytest.approx(600, abs=1)
    assert value(found, "taskpass_policy_bundle_age_seconds") == pytest.approx(600, abs=1)


def test_an_expired_review_shows(broker: Broker):
    assert value(scraped(broker), "taskpass_agents_blocked") == 0
    broker.home.clock.forward(400 * 86_400)
    assert value(scraped(broker), "taskpass_agents_blocked") > 0


def test_what_is_away_is_looked_up_when_somebody_asks():
    away, lost, metrics = [False], [True], Metrics()
    metrics.follow(vault_away=lambda: away[0], signals_lost=lambda: lost[0])

    def seen() -> tuple[float, float]:
        read = {sample.name: sample.value for family in metrics.collect() for sample in family.samples}
        return read["taskpass_vault_away"], read["taskpass_signals_lost"]

    assert seen() == (0, 1)
    away[0], lost[0] = True, False
    assert seen() == (1, 0)


def test_a_broker_without_redis_is_ready_and_says_what_it_lacks(tmp_path: Path):
    home = Home(tmp_path / "broker")
    nobody = SignalsSection(url=SecretStr(f"redis://127.0.0.1:{free_port()}/0"))
    home.config = home.config.model_copy(update={"metrics": MetricsSection(token=SecretStr(TOKEN)), "signals": nobody})
    started = Broker(home)

    started.run(until(lambda: bool(started.process.app.state.ready())))
    assert started.granted()
    ready = started.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
    assert [reason["code"] for reason in ready.json()["reasons"]] == ["signals_lost"]
    found = scraped(started)
    assert value(found, "taskpass_ready") == 1
    assert value(found, "taskpass_degraded", code="signals_lost") == 1
    assert value(found, "taskpass_signals_lost") == 1
    assert "taskpass_not_ready" not in found
    started.close()


def test_reports_of_other_processes_keep_their_name_and_a_restart_is_a_reset(tmp_path: Path):
    reports = Reports(tmp_path / "metrics")
    worker = Metrics()
    worker.token_batch(["a token", "another", ValueError()], 0.01)
    reports.write("worker-0", worker.collect())
    ((name, age, families),) = reports.read((tmp_path / "metrics" / "worker-0.json").stat().st_mtime + 3)
    assert (name, age) == ("worker-0", pytest.approx(3))
    (counted,) = (family for family in families if family.name == "taskpass_token_requests")
    assert {(s.labels["outcome"], s.value) for s in counted.samples if s.name.endswith("_total")} == {
        ("issued", 2),
        ("server_error", 1),
    }
    reports.write("worker-0", Metrics().collect())
    reports.clear()
    assert list(reports.read(0)) == []


def test_a_full_disk_leaves_the_last_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    reports, metrics = Reports(tmp_path), Metrics()
    metrics.refused({"no_credential": 1})
    reports.write("worker-0", metrics.collect())
    before = (tmp_path / "worker-0.json").read_bytes()

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        reports.write("worker-0", Metrics().collect())
    assert (tmp_path / "worker-0.json").read_bytes() == before


def test_secrets_at_backends_are_counted_by_their_state(tmp_path: Path):
    site = Site(tmp_path)
    site.broker.close()
    site.home.config = site.home.config.model_copy(update={"metrics": MetricsSection(token=SecretStr(TOKEN))})
    site.start()
    name = "taskpass_secrets_at_backends"
    assert name not in scraped(site.broker)
    body = site.granted()
    assert scraped(site.broker)[name] == [({"issuer": "memory", "state": "live"}, 1)]
    site.killed("grant", body["id"])
    assert name not in scraped(site.broker)
    site.broker.close()
