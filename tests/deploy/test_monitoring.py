"""Alerts and dashboard, held against the metrics that exist: every name, every label, every sentence."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from broker.telemetry.catalogue import CATALOGUE, Metric, sample_names

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((DEPLOY / "prometheus/alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
]
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana/taskpass.json").read_text())
QUERIES = [
    *((rule["alert"], rule["expr"]) for rule in RULES),
    *((panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel["targets"]),
]

_OF_PROMETHEUS = {"up", "process_resident_memory_bytes", "process_cpu_seconds_total"}
_ADDED = {"instance", "job", "le"}  # by Prometheus, or by the kind of metric


def selectors(node: Any) -> Iterator[Any]:
    """Every selector in an expression."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for name in ("lhs", "rhs", "expr", "param", "vector_selector"):
        child = getattr(node, name, None)
        if child is not None:
            yield from selectors(child)
    for child in getattr(node, "args", None) or ():
        yield from selectors(child)


def metric_of(sample: str) -> Metric:
    return next(metric for metric in CATALOGUE.values() if sample in metric.samples)


@pytest.mark.parametrize(("where", "query"), QUERIES, ids=[where for where, _ in QUERIES])
def test_every_query_asks_for_metrics_and_labels_that_exist(where: str, query: str) -> None:
    parsed = promql_parser.parse(query.replace("$__rate_interval", "5m"))
    found = list(selectors(parsed))
    assert found
    labels = set(_ADDED)
    for selector in found:
        if selector.name in _OF_PROMETHEUS:
            labels |= {"process"}
            continue
        assert selector.name in sample_names(), selector.name
        metric = metric_of(selector.name)
        labels |= {*metric.labels, *(() if metric.live else ("process",))}
        for matcher in selector.matchers.matchers:
            assert matcher.name in labels, matcher.name
    for group in re.findall(r"\bby \(([^)]*)\)", query):
        assert {label.strip() for label in group.split(",")} <= labels


def test_every_alert_says_what_is_wrong_and_what_to_do() -> None:
    names = [rule["alert"] for rule in RULES]
    assert len(set(names)) == len(names)
    for rule in RULES:
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert set(rule["annotations"]) == {"summary", "next"}
        assert re.fullmatch(r"\d+[smh]", rule["for"])
        used = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        kept = re.match(r"(?:sum|max|min)(?: by \(([^)]*)\))? ?\(", rule["expr"])
        if kept is not None:
            assert used <= {label.strip() for label in (kept[1] or "").split(",")}, rule["alert"]


def test_what_endangers_a_kill_wakes_somebody() -> None:
    pages = " ".join(rule["expr"] for rule in RULES if rule["labels"]["severity"] == "page")
    for name in ("up", "ready", "provisional_kills", "kills_unacknowledged", "ledger_commit_failures", "disk_free"):
        assert name in pages


def test_panels_have_places_of_their_own() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


def test_prometheus_scrapes_with_the_token() -> None:
    (job,) = yaml.safe_load((DEPLOY / "prometheus/prometheus.yaml").read_text())["scrape_configs"]
    assert job["metrics_path"] == "/metrics"
    assert job["authorization"]["type"] == "Bearer"
