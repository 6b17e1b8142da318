"""What one look of `taskpass doctor` found."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One look: `ok`, `warning`, `wrong` or `skipped`, what was seen, and what to do about it."""

    check: str
    state: str
    detail: str
    fix: str | None = None
