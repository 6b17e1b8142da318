"""`taskpass completion`."""

import click
from click.shell_completion import get_completion_class

from broker.cli.options import command


@command(short_help="Print the completion script of a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    r"""Print the script that completes commands and options in SHELL.

    \b
    Examples:
      eval "$(taskpass completion bash)"                                in ~/.bashrc
      eval "$(taskpass completion zsh)"                                 in ~/.zshrc
      taskpass completion fish > ~/.config/fish/completions/taskpass.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ctx.find_root().command, {}, "taskpass", "_TASKPASS_COMPLETE").source())
