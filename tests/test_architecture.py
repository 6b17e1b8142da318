"""The house numbers: module and function lengths, protocol sizes, and that no clock is read where one is injected."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted(path for package in ("broker", "issuers", "policies") for path in (ROOT / package).rglob("*.py"))
MAX_MODULE, MAX_FUNCTION, MAX_PROTOCOL = 450, 40, 4

# The numbered pipeline and the composition root read top to bottom; each may be as long as its one list.
LONGER = {("broker/app.py", "_assemble"): 130}

# The only modules that may ask the host for the time: each is where a clock is handed out, or measures a duration.
CLOCKS = {
    "broker/breaker.py",
    "broker/processes.py",
    "broker/stores.py",
    "broker/attest/jwks.py",
    "broker/attest/fetch.py",
    "broker/ledger/postgres.py",
    "broker/ledger/postgres_link.py",
    "broker/ledger/postgres_readers.py",
    "broker/ledger/postgres_watch.py",
    "broker/ledger/sqlite.py",
    "broker/ledger/turns.py",
    "broker/ledger/writer.py",
    "broker/telemetry/tracing.py",
    "broker/service/batching.py",
    "broker/sdk/clock.py",
    "issuers/vault/link.py",
}


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_a_module_fits_in_a_head(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_MODULE


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_functions_read_top_to_bottom(path: Path) -> None:
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            lines = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
            assert lines <= LONGER.get((_name(path), node.name), MAX_FUNCTION), f"{node.name} has {lines} lines"


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_protocols_are_small(path: Path) -> None:
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.ClassDef) and any(isinstance(b, ast.Name) and b.id == "Protocol" for b in node.bases):
            methods = [item for item in node.body if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)]
            assert len(methods) <= MAX_PROTOCOL, f"{node.name} has {len(methods)} methods"


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_time_is_injected(path: Path) -> None:
    if _name(path) in CLOCKS or _name(path).startswith(("broker/cli/", "broker/sdk/testkit/")):
        return
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "time":
            raise AssertionError(f"line {node.lineno} reads time.{node.attr}")
