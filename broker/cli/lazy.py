"""A command group whose commands are imported when they are needed, and not for its help text."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click

Table = Mapping[str, Mapping[str, tuple[str, str]]]
"""Section -> command -> (`module:attribute`, one line of help)."""


class LazyGroup(click.Group):
    """The top of the command line."""

    def __init__(self, *, table: Table, **settings: Any) -> None:  # noqa: ANN401  (click's own)
        super().__init__(**settings)
        self.table = table
        self._targets = {name: entry for commands in table.values() for name, entry in commands.items()}

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """In the order of the table."""
        return list(self._targets)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import it now."""
        if cmd_name not in self._targets:
            return None
        module, _, attribute = self._targets[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with a suggestion for a name that is nearly right."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from difflib import get_close_matches

            near = get_close_matches(args[0], self._targets, n=1)
            if not near:
                raise
            raise click.UsageError(f"{error.message} Did you mean {near[0]!r}?", ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """One block for each section."""
        for section, commands in self.table.items():
            with formatter.section(section):
                formatter.write_dl([(name, text) for name, (_, text) in commands.items()])
