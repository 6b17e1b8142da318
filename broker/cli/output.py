"""The one way to standard output: the same data as a table, JSON, YAML or bare names."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from broker.cli.options import Settings, settings_of
from broker.cli.text import clean, table

Column = tuple[str, str | Callable[[Mapping[str, Any]], object]]
"""A heading, and the member (or what is made of the row) below it."""


class Output:
    """Answers in the format that was asked for."""

    def __init__(self, settings: Settings) -> None:
        self.format = settings.output
        self._color = False if settings.no_color or os.environ.get("NO_COLOR") else None

    @classmethod
    def current(cls) -> "Output":
        """That of the running command."""
        return cls(settings_of(click.get_current_context()))

    @property
    def for_people(self) -> bool:
        """Whether the answer is text for people."""
        return self.format == "table"

    def one(self, body: Any, *, human: Callable[[], str], name: Callable[[], object] | None = None) -> None:  # noqa: ANN401
        """One thing. `human` makes its text; `name` its id, by default the member `id`."""
        if self.format == "name":
            self._write(clean(name() if name is not None else body["id"]))
        elif self.for_people:
            self._write(human())
        else:
            self._structured(body)

    def many(self, rows: Sequence[Mapping[str, Any]], columns: Sequence[Column], *, name: str = "id") -> None:
        """A list. Empty is `[]`, or nothing at all where names are wanted."""
        if self.format == "name":
            for row in rows:
                self._write(clean(row[name]))
        elif self.for_people:
            if not rows:
                self.note("Nothing found.")
                return
            cells = [[_cell(row, source) for _, source in columns] for row in rows]
            self._write(table([heading for heading, _ in columns], cells))
        else:
            self._structured(list(rows))

    def note(self, text: str) -> None:
        """Something for people beside the data, on standard error."""
        click.echo(text, err=True, color=self._color)

    def _structured(self, body: Any) -> None:  # noqa: ANN401
        if self.format == "yaml":
            import yaml

            self._write(yaml.safe_dump(body, sort_keys=False, allow_unicode=True).rstrip("\n"))
        else:
            self._write(json.dumps(body, indent=2, ensure_ascii=False))

    def _write(self, text: str) -> None:
        click.echo(text, color=self._color)


def _cell(row: Mapping[str, Any], source: str | Callable[[Mapping[str, Any]], object]) -> object:
    return row.get(source) if isinstance(source, str) else source(row)
