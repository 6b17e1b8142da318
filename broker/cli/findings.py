"""What a check found, and how it is told."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

import click

from broker.cli.errors import DONE, FAILED
from broker.cli.output import Output
from broker.cli.text import clean

_COLORS = {"ok": "green", "warning": "yellow", "wrong": "red", "skipped": "white"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One look: `ok`, `warning`, `wrong` or `skipped`, what was seen, and what to do about it."""

    check: str
    state: str
    detail: str
    fix: str | None = None


def tell(found: Iterable[Finding]) -> int:
    """Print them; the exit code: 1 when something is wrong."""
    findings = list(found)
    output = Output.current()
    if output.for_people:
        for line in _lines(findings):
            click.echo(line)
    else:
        output.many([asdict(finding) for finding in findings], [], name="check")
    return FAILED if any(finding.state == "wrong" for finding in findings) else DONE


def _lines(findings: list[Finding]) -> Iterator[str]:
    for finding in findings:
        mark = click.style(f"{finding.state:<8}", fg=_COLORS[finding.state], bold=finding.state == "wrong")
        first, *more = finding.detail.splitlines()
        yield f"{mark} {finding.check:<14} {clean(first)}"
        yield from (f"{'':24}{clean(line.strip())}" for line in more)
        if finding.fix:
            yield f"{'':24}-> {clean(finding.fix)}"
