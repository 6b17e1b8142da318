"""Fills `docs/performance.md` from what was measured last, and draws its curves.

Only what stands between a pair of markers is replaced; the words around them are written by people.
"""

import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.charts import line_chart
from bench.figures import FIGURES, Book

DOCS = Path(__file__).parents[1] / "docs"
_PAGE = DOCS / "performance.md"
_NOT_YET = "Not measured yet: `make bench`, then `python -m bench report`."
_CURVES = {
    "agents": ("CPU time of one token, by registered agents", "agents", "times that of the smallest"),
    "policies": ("CPU time of one token, by policies loaded", "policies", "times that of the smallest"),
    "live grants": ("CPU time of one token, by live grants", "live grants", "times that of an empty ledger"),
    "ledger length": ("CPU time of one token, by ledger length", "events", "times that of an empty ledger"),
    "verifiers": ("A kill's commit to the last refusal, by verifiers", "connected verifiers", "ms, median"),
}


def write(book: Book) -> None:
    """Replace every marked part of the page. Raises KeyError for a marker that nobody fills."""
    parts: dict[str, Callable[[Book], str]] = {
        "machine": _machine,
        "figures": _figures,
        "tokens": _tokens,
        "steps": _steps,
        "curves": _curves,
        "soak": _soak,
    }
    text = _PAGE.read_text(encoding="utf-8")
    pattern = re.compile(r"(<!-- bench: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
    filled = pattern.sub(lambda found: f"{found[1]}{parts[found[2]](book).strip()}\n{found[3]}", text)
    _PAGE.write_text(filled, encoding="utf-8")
    print(f"wrote {_PAGE}")


def _machine(book: Book) -> str:
    about: dict[str, str] = book.details.get("machine", {})
    if not about:
        return _NOT_YET
    lines = [f"- {name}: {value}" for name, value in about.items()]
    return "\n".join([f"- measured: {book.details['when']}", f"- peer: {book.details.get('peer', 'none')}", *lines])


def _figures(book: Book) -> str:
    rows = ["| figure | value | target | |", "|---|---|---|---|"]
    for name, figure in FIGURES.items():
        entry = book.figures.get(name)
        if entry is None:
            rows.append(f"| `{name}` | | {figure.target} {figure.unit} | not measured |")
            continue
        value = "" if entry["value"] is None else f"{entry['value']:g} {entry['unit']}"
        verdict = "ok" if entry["ok"] else "**missed**" if entry["value"] is not None else ""
        rows.append(
            f"| `{name}` | {value} | {entry['target']} | {' '.join([verdict, entry.get('note', '')]).strip()} |"
        )
    return "\n".join(rows)


def _tokens(book: Book) -> str:
    rows = [
        "| connections | | tokens per second | p50 ms | p99 ms | CPU us per token | in ES256 verifications |",
        "|---|---|---|---|---|---|---|",
    ]
    for connections in ("1", "16", "64", "64 novel"):
        detail: dict[str, Any] = book.details.get(f"tokens c{connections}", {})
        for who, called in (("taskpass", "taskpass"), ("floor", "the libraries alone"), ("peer", "peer")):
            if who in detail:
                seen = detail[who]
                rows.append(
                    f"| {connections} | {called} | {seen['per_s']:.0f} | {seen['p50_ms']:.1f} | {seen['p99_ms']:.1f} "
                    f"| {seen['cpu_us']:.0f} | {seen['units']:.1f} |"
                )
    limits = [
        f"With {connections} in flight the libraries alone reach {detail['floor_ratio']:.2f} times the peer's rate."
        for connections in ("1", "16", "64")
        if "floor_ratio" in (detail := book.details.get(f"tokens c{connections}", {}))
    ]
    kills = [
        f"From a kill's commit to the last of {number} verifiers refusing: median {seen['p50']:.1f} ms, "
        f"p90 {seen['p90']:.1f} ms, worst {seen['max']:.1f} ms."
        for number in (20, 100)
        if (seen := book.details.get(f"kill {number}"))
    ]
    return "\n".join([*rows, "", *limits, "", *kills]) if len(rows) > 2 else _NOT_YET


def _steps(book: Book) -> str:
    spent: dict[str, float] = book.details.get("steps", {})
    if not spent:
        return _NOT_YET
    rows = ["| step | us of CPU per token |", "|---|---|"]
    return "\n".join([*rows, *(f"| {name} | {spent[name]:.1f} |" for name in sorted(spent, key=_place))])


def _place(step: str) -> tuple[bool, int, str]:
    """Numbered steps by number, what has none at the end."""
    number = re.match(r"\d+", step)
    return number is None, int(number[0]) if number else 0, step


def _curves(book: Book) -> str:
    curves: dict[str, list[tuple[float, float]]] = book.details.get("curves", {})
    shown = []
    for name, (title, x, y) in _CURVES.items():
        if name in curves:
            file = f"curve-{name.replace(' ', '-')}.svg"
            (DOCS / file).write_text(line_chart(title, curves[name], x=x, y=y), encoding="utf-8")
            shown.append(f"![{title}]({file})")
    return "\n\n".join(shown) or "Not drawn yet: `python -m bench curves`, then `python -m bench report`."


def _soak(book: Book) -> str:
    seen: dict[str, Any] = book.details.get("soak", {})
    if not seen:
        return "Not run yet: `python -m bench soak`."
    rows = [f"- {name}: {_plain(value)}" for name, value in seen.items() if name not in ("windows", "memory")]
    return "\n".join(textwrap.fill(row, width=120, subsequent_indent="  ") for row in rows)


def _plain(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(_plain(each) for each in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
