"""The table of degraded modes: its tests, alerts and codes are there, and nothing that can fail is missing."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
import yaml

from broker.web.readiness import NEXT

ROOT = Path(__file__).parent.parent
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in (ROOT / "docs/degraded-modes.md").read_text().splitlines()
    if line.startswith("| ") and "`tests/" in line
]


@cache
def names_in(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].replace("*", ""))
def test_every_row_is_whole_and_names_a_test_that_exists(row: list[str]) -> None:
    assert len(row) == 6
    assert all(row)
    for test in re.findall(r"`([^`]+)`", row[5]):
        path, _, name = test.partition("::")
        name, _, case = name.removesuffix("]").partition("[")
        assert name in names_in(path)
        assert not case or f'"{case}"' in (ROOT / path).read_text()


def test_every_alert_and_code_exists() -> None:
    groups = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yaml").read_text())["groups"]
    alerts = {rule["alert"] for group in groups for rule in group["rules"]}
    seen = " ".join(row[4] for row in ROWS)
    assert set(re.findall(r"\bTaskpass[A-Z]\w+", seen)) <= alerts
    codes = set(re.findall(r"`((?:ledger|rules|issuance|clock|vault|signals)_\w+)`", seen))
    assert codes <= set(NEXT)
    assert set(NEXT) - codes <= {"rules_missing"}  # a ledger that was just made, not one that fails


def test_whatever_a_broker_needs_has_a_row() -> None:
    parts = {found[1].split()[0] for row in ROWS if (found := re.match(r"\*\*([^*:]+)", row[0]))}
    assert {"Broker", "PostgreSQL", "Redis", "Policy", "JWKS", "Vault", "Backend", "Feed", "Clock", "Disk"} <= parts
