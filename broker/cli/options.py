"""What every command takes: how to answer, where the broker is, and who is asking.

The options stand on the group, with their variables, and again, hidden, on each command, so that they may be given
before or after it. All end up in one `Settings`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

FORMATS: Final = ("table", "json", "yaml", "name")


@dataclass(slots=True)
class Settings:
    """The common options of one invocation; None: not given."""

    output: str = "table"
    no_color: bool = False
    debug: bool = False
    url: str | None = None
    ca_file: Path | None = None
    key: Path | None = None
    client_id: str | None = None
    token_file: Path | None = None
    token_command: str | None = None
    github: bool = False
    session: bool = False


def settings_of(ctx: click.Context) -> Settings:
    """The invocation's settings."""
    root = ctx.find_root()
    if not isinstance(root.obj, Settings):
        root.obj = Settings()
    return root.obj


def _store(ctx: click.Context, param: click.Parameter, value: Any) -> None:  # noqa: ANN401  (of any option)
    if value is not None and param.name is not None:
        setattr(settings_of(ctx), param.name, value)


_FILE = click.Path(dir_okay=False, path_type=Path)
config_option = click.option(
    "--config", "config_path", type=_FILE, metavar="FILE", help="Default: TASKPASS_CONFIG, else ./taskpass.toml."
)
"""For commands that read the broker's own configuration, on its machine."""

_ANSWER: Final[list[tuple[tuple[str, ...], dict[str, Any]]]] = [
    (
        ("-o", "--output"),
        {
            "type": click.Choice(FORMATS),
            "envvar": "TASKPASS_OUTPUT",
            "help": "How to answer: table (for people), json, yaml, or name (ids only).",
        },
    ),
    (("--no-color",), {"is_flag": True, "help": "No colours; so does the variable NO_COLOR."}),
    (
        ("-v", "--debug"),
        {"is_flag": True, "help": "Tell on standard error what is asked of the broker, with request ids."},
    ),
]
_CONNECTION: Final[list[tuple[tuple[str, ...], dict[str, Any]]]] = [
    (
        ("--url",),
        {
            "metavar": "URL",
            "envvar": "TASKPASS_URL",
            "help": "The broker's issuer URL. Default: that of the operator session, else of ./taskpass.toml.",
        },
    ),
    (
        ("--ca-file",),
        {"type": _FILE, "envvar": "TASKPASS_CA_FILE", "help": "Trust these certificate authorities instead."},
    ),
    (
        ("--key",),
        {
            "type": _FILE,
            "envvar": "TASKPASS_KEY_FILE",
            "help": "Identity: sign as --client-id with this registered private key (PEM, P-256).",
        },
    ),
    (
        ("--client-id",),
        {
            "metavar": "ID",
            "envvar": "TASKPASS_CLIENT_ID",
            "help": "The subject that the key of --key is registered for.",
        },
    ),
    (
        ("--token-file",),
        {
            "type": _FILE,
            "envvar": "TASKPASS_TOKEN_FILE",
            "help": "Identity: a JWT that the platform keeps in this file (projected token, JWT-SVID).",
        },
    ),
    (
        ("--token-command",),
        {
            "metavar": "COMMAND",
            "envvar": "TASKPASS_TOKEN_COMMAND",
            "help": "Identity: a JWT that this command prints. {audience} in it stands for the issuer URL.",
        },
    ),
    (
        ("--github",),
        {
            "is_flag": True,
            "envvar": "TASKPASS_GITHUB",
            "help": "Identity: this GitHub Actions job. Else: TASKPASS_TOKEN.",
        },
    ),
    (
        ("--session",),
        {
            "is_flag": True,
            "help": "Ask as the operator of `taskpass login`, even where a workload identity is at hand.",
        },
    ),
]


def group_options() -> list[click.Parameter]:
    """All of them, as the group shows them, and `--version`."""
    options: list[click.Parameter] = [_option(names, known) for names, known in _ANSWER + _CONNECTION]
    return [
        *options,
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_version,
            help="Show the version and exit.",
        ),
    ]


def _option(names: tuple[str, ...], known: dict[str, Any], *, hidden: bool = False) -> click.Option:
    taken = dict(known)
    if hidden:
        taken.pop("envvar", None)
    return click.Option(list(names), **taken, default=None, hidden=hidden, expose_value=False, callback=_store)


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = version("taskpass")
    except PackageNotFoundError:
        found = "0+unknown"
    click.echo(f"taskpass {found}")
    ctx.exit()


class Command(click.Command):
    """A command that takes the common options too. An option of its own with the same name comes first."""

    def __init__(self, name: str | None, **settings: Any) -> None:  # noqa: ANN401  (click's own)
        own: list[click.Parameter] = settings.pop("params", None) or []
        taken = {name for param in own for name in param.opts}
        common = [
            _option(names, known, hidden=True) for names, known in _ANSWER + _CONNECTION if not taken & set(names)
        ]
        super().__init__(name, params=[*own, *common], **_with_paragraphs(settings))


class Group(click.Group):
    """A group of such commands."""

    command_class = Command

    def __init__(self, name: str | None = None, **settings: Any) -> None:  # noqa: ANN401  (click's own)
        super().__init__(name, **_with_paragraphs(settings))


def _with_paragraphs(settings: dict[str, Any]) -> dict[str, Any]:
    """Click's mark for "do not wrap this paragraph" is a control character; docstrings write it out."""
    text = settings.get("help")
    return settings if text is None else {**settings, "help": text.replace("\\b\n", "\b\n")}


def command(name: str | None = None, **settings: Any) -> Callable[[Callable[..., Any]], Command]:  # noqa: ANN401
    """`click.command` for a `Command`."""
    return click.command(name, cls=Command, **settings)


def group(name: str | None = None, **settings: Any) -> Callable[[Callable[..., Any]], Group]:  # noqa: ANN401
    """`click.group` for a `Group`."""
    return click.group(name, cls=Group, **settings)
