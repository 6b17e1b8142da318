"""What the documentation takes from the code: `python -m docs.render` writes those parts, a test compares them.

A generated part stands between `<!-- generated: name -->` and `<!-- end -->`; everything around it is written by hand.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from broker.cli import TABLE
from broker.config import render_reference
from broker.errors import TaskpassError
from broker.ledger.event_types import EVENT_TYPES
from broker.telemetry.catalogue import CATALOGUE
from broker.web.guards import GUARDS
from broker.web.readiness import NEXT

DOCS = Path(__file__).parent
_PART = re.compile(r"<!-- generated: (?P<name>[a-z]+) -->\n.*?<!-- end -->", re.DOTALL)
_ORDER = ("agent", "verifier", "operator")


def guards() -> str:
    """Every route and the kinds of callers it is for."""
    rows = ["| method | path | callers |", "|---|---|---|"]
    for (method, path), guard in GUARDS.items():
        anonymous = "the scraper's token" if guard.scrapes else "anyone"
        kinds = anonymous if guard.kinds is None else ", ".join(kind for kind in _ORDER if kind in guard.kinds)
        rows.append(f"| {method} | `{path}` | {kinds} |")
    return "\n".join(rows)


def errors() -> str:
    """Every error code with its status and meaning, in the order of the tree."""
    rows = ["| code | status | meaning |", "|---|---|---|"]
    rows += (f"| `{each.code}` | {each.status} | {_sentence(each)} |" for each in _subclasses(TaskpassError))
    return "\n".join(rows)


def events() -> str:
    """Every event type of the ledger."""
    rows = ["| type | what it says |", "|---|---|"]
    rows += (f"| `{each.name}` | {each.meaning} |" for each in EVENT_TYPES.values())
    return "\n".join(rows)


def commands() -> str:
    """Every command, by the heading it stands under in `taskpass --help`."""
    rows = ["| command | what it does |", "|---|---|"]
    for title, section in TABLE.items():
        rows.append(f"| **{title}** | |")
        rows += (f"| `taskpass {name}` | {help_} |" for name, (_, help_) in section.items())
    return "\n".join(rows)


def metrics() -> str:
    """Every metric by the name under which it is scraped."""
    rows = ["| metric | kind | labels | what it says |", "|---|---|---|---|"]
    for metric in CATALOGUE.values():
        name = metric.samples[0] if metric.kind == "counter" else metric.name
        labels = ", ".join(f"`{label}`" for label in (*metric.labels, *(() if metric.live else ("process",))))
        rows.append(f"| `{name}` | {metric.kind} | {labels} | {metric.meaning} |")
    return "\n".join(rows)


def readiness() -> str:
    """Every reason that `/readyz` gives."""
    return "\n".join(
        ["| code | what to do |", "|---|---|", *(f"| `{code}` | {next_} |" for code, next_ in NEXT.items())]
    )


PARTS: dict[str, Callable[[], str]] = {
    "commands": commands,
    "configuration": lambda: render_reference().rstrip("\n"),
    "errors": errors,
    "events": events,
    "guards": guards,
    "metrics": metrics,
    "readiness": readiness,
}


def rendered(text: str) -> str:
    """A document with its generated parts made anew. Raises KeyError for a part that nobody makes."""

    def part(found: re.Match[str]) -> str:
        return f"<!-- generated: {found['name']} -->\n{PARTS[found['name']]()}\n<!-- end -->"

    return _PART.sub(part, text)


def _subclasses(kind: type[TaskpassError]) -> Iterator[type[TaskpassError]]:
    for each in kind.__subclasses__():
        if each.__module__ == kind.__module__:
            yield each
            yield from _subclasses(each)


def _sentence(kind: type[TaskpassError]) -> str:
    return " ".join((kind.__doc__ or "").split("\n\n")[0].split())


def main() -> None:
    """Write every document anew."""
    for path in (*DOCS.glob("*.md"), DOCS.parent / "README.md"):
        text = path.read_text()
        if rendered(text) != text:
            path.write_text(rendered(text))


if __name__ == "__main__":
    main()
