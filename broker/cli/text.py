"""Plain text for people: aligned tables and facts, times that can be read, and nothing that could move the cursor."""

import unicodedata
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

_BIDI = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u061c")


def clean(value: object) -> str:
    """The value as one harmless line: no control, escape or direction marks, which agents' words might contain."""
    text = value if isinstance(value, str) else str(value)
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        " " if char in "\n\r\t" else char
        for char in text
        if char in "\n\r\t" or (char not in _BIDI and unicodedata.category(char) not in ("Cc", "Cs", "Co", "Cn"))
    )


def moment(ms: int | None) -> str:
    """A ledger time, e.g. `2026-11-21 12:31:02.123Z`."""
    return "-" if ms is None else f"{_utc(ms):%Y-%m-%d %H:%M:%S}.{ms % 1000:03}Z"


def clock(ms: int | None) -> str:
    """A ledger time of today, e.g. `12:31:02.123Z`; with its day if that is another."""
    if ms is None:
        return "-"
    today = datetime.now(UTC).date()
    return f"{_utc(ms):%H:%M:%S}.{ms % 1000:03}Z" if _utc(ms).date() == today else moment(ms)


def _utc(ms: int) -> datetime:
    return datetime.fromtimestamp(ms // 1000, UTC)


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Aligned columns under their names. Empty cells show a dash."""
    cells = [[clean(cell) if cell not in (None, "") else "-" for cell in row] for row in rows]
    widths = [max(len(line[column]) for line in (list(headers), *cells)) for column in range(len(headers))]
    lines = (headers, *cells)
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def facts(pairs: Iterable[tuple[str, object]], *, indent: int = 2) -> list[str]:
    """Named values, aligned; those that are None or empty are left out."""
    kept = [(name, clean(value)) for name, value in pairs if value not in (None, "", [], {})]
    width = max((len(name) for name, _ in kept), default=0)
    return [f"{' ' * indent}{name:<{width}}  {value}" for name, value in kept]


def plural(count: int, noun: str, plural_form: str | None = None) -> str:
    """`1 token`, `2 tokens`."""
    return f"{count} {noun if count == 1 else plural_form or noun + 's'}"


def assigned(values: dict[str, Any]) -> str:
    """`a=1 b=x`."""
    return " ".join(f"{name}={value}" for name, value in values.items())
