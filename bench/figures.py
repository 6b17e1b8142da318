"""The figures that this suite answers for: their names, units and targets, and how they are kept and shown."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure. `at_least` or `at_most` is its target; `below` says that reaching it is not enough."""

    name: str
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    below: bool = False

    @property
    def target(self) -> str:
        """The target as written beside the value."""
        if self.at_least is not None:
            return f">= {self.at_least:g}"
        return f"{'<' if self.below else '<='} {self.at_most:g}"

    def meets(self, value: float) -> bool:
        """Whether `value` reaches the target."""
        if self.at_least is not None:
            return value >= self.at_least
        assert self.at_most is not None
        return value < self.at_most if self.below else value <= self.at_most


FIGURES = {
    figure.name: figure
    for figure in (
        Figure("issue_ratio_c1", "times the peer's rate", at_least=1.0),
        Figure("issue_ratio_c16", "times the peer's rate", at_least=2.0),
        Figure("issue_ratio_c64", "times the peer's rate", at_least=2.0),
        Figure("issue_p99_ratio_c64", "times the peer's p99", at_most=0.35),
        Figure("issue_crypto_share_c64", "of the limit set by ES256", at_least=0.30),
        Figure("issue_policies1000_ratio", "times the rate with 10 policies", at_least=0.85),
        Figure("issue_workers2_ratio", "times the rate of one worker", at_least=1.7),
        Figure("issue_slow_disk_ratio", "times the rate on this disk", at_least=0.8),
        Figure("worker_rss_mb", "MB", at_most=150, below=True),
        Figure("kill_p90_ms_100", "ms", at_most=25, below=True),
        Figure("kill_scale_ratio", "times a kill of 10 tokens", at_most=1.2, below=True),
        Figure("verify_ratio", "times a bare ES256 verification", at_most=1.6, below=True),
        Figure("verify_cached_us", "us", at_most=5, below=True),
        Figure("ledger_verify_1m_s", "s", at_most=60, below=True),
        Figure("ledger_proof_ms", "ms", at_most=5, below=True),
        Figure("ledger_open_1m_s", "s", at_most=2, below=True),
        Figure("cli_token_ms", "ms", at_most=250, below=True),
        Figure("pg_ratio_c64", "times the rate on SQLite", at_least=0.75),
        Figure("pg_two_brokers_ratio", "times one broker, modelled", at_least=1.6),
        Figure("kill_cross_p90_ms", "ms", at_most=50, below=True),
        Figure("kill_no_redis_p99_ms", "ms", at_most=1_000, below=True),
        Figure("failover_s", "s", at_most=2, below=True),
        Figure("secret_postgres_overhead", "% over the bare statements", at_most=25, below=True),
        Figure("secret_vault_overhead", "% over the bare lease", at_most=15, below=True),
        Figure("secret_loop_block_ms", "ms, ending 1,200 secrets", at_most=50, below=True),
    )
}


class Book:
    """What was measured: `latest.json` holds the figures, `details.json` what they were computed from."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.figures: dict[str, dict[str, Any]] = _read(directory / "latest.json")
        self.details: dict[str, Any] = _read(directory / "details.json")

    def figure(self, name: str, value: float, *, also: Callable[[], bool] = lambda: True, note: str = "") -> None:
        """Enter a figure. `also` is a second condition of its target, which `note` explains."""
        figure = FIGURES[name]
        self._enter(name, {"value": _rounded(value), "ok": figure.meets(value) and also()}, note)

    def skipped(self, names: Iterable[str], why: str) -> None:
        """Enter figures that could not be measured here: never `ok`."""
        for name in names:
            self._enter(name, {"value": None, "ok": False}, f"skipped: {why}")

    def detail(self, name: str, value: object) -> None:
        """Enter what was seen on the way."""
        self.details[name] = value
        self._save()

    def _enter(self, name: str, outcome: dict[str, Any], note: str) -> None:
        figure = FIGURES[name]
        entry = {"value": outcome["value"], "unit": figure.unit, "target": figure.target, "ok": outcome["ok"]}
        self.figures[name] = {**entry, "note": note} if note else entry
        print(line(name, self.figures[name]), flush=True)
        self._save()

    def _save(self) -> None:
        known = {name: self.figures[name] for name in FIGURES if name in self.figures}
        for name, content in (("latest.json", known), ("details.json", self.details)):
            (self._directory / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def percentile(ordered: Sequence[float], percent: int) -> float:
    """The first of these ascending values that at least so many percent of them do not exceed: the nearest rank."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def line(name: str, entry: dict[str, Any]) -> str:
    """One line of the table."""
    value = "-" if entry["value"] is None else f"{entry['value']:g}"
    verdict = "ok" if entry["ok"] else "MISSED" if entry["value"] is not None else ""
    note = f"  {entry['note']}" if entry.get("note") else ""
    return f"  {name:26} {value:>10}  {entry['unit']:33} {entry['target']:>8}  {verdict}{note}"


def _rounded(value: float) -> float:
    """Three significant digits, and whole numbers above a thousand."""
    return round(value) if abs(value) >= 1000 else float(f"{value:.3g}")


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content
