"""Configuration: one TOML file, any key of it overridable by environment, unknown keys refused.

`[tokens] max_ttl_s` is `TASKPASS_TOKENS__MAX_TTL_S` in the environment. Relative paths count from the directory of the
file. Every key is described once, in `sections`: the reference in the documentation is rendered from there.
"""

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field, ValidationError
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from broker.addresses import PublicUrl, is_loopback, public_url, split_listen
from broker.errors import ConfigurationInvalid, Problem
from broker.files import read_regular
from broker.sections import (
    IssuerSection,
    KeptSection,
    KeysSection,
    LedgerSection,
    LimitsSection,
    LogSection,
    MetricsSection,
    PoliciesSection,
    RegistrySection,
    RetentionSection,
    SecretsSection,
    Section,
    ServeSection,
    SignalsSection,
    TasksSection,
    TokensSection,
    TracingSection,
    TransitSection,
)
from broker.sentences import meant, sentence_of

__all__ = [
    "Config",
    "LedgerSection",
    "MetricsSection",
    "ServeSection",
    "SignalsSection",
    "is_loopback",
    "load_config",
    "public_url",
    "render_reference",
    "split_listen",
]

PREFIX = "TASKPASS_"
DELIMITER = "__"
DEFAULT_FILE = "taskpass.toml"
_MAX_FILE = 256 << 10
_HEADER = re.compile(r"\s*\[\s*([A-Za-z0-9_-]+)\s*\]")
_KEY = re.compile(r"\s*([A-Za-z0-9_-]+)\s*=")


class Config(BaseSettings):
    """The configuration of one broker. Read it with `load_config`; tests and `taskpass dev` call the constructor."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        env_prefix=PREFIX,
        env_nested_delimiter=DELIMITER,
        env_ignore_empty=True,
    )

    issuer: PublicUrl = Field(
        description="The broker's public URL: the `iss` of every token and the audience that workloads must name. "
        "https, unless it is loopback. Never change it."
    )
    serve: ServeSection = ServeSection()
    ledger: LedgerSection = LedgerSection()
    kept: KeptSection = KeptSection()
    retention: RetentionSection = RetentionSection()
    registry: RegistrySection = RegistrySection()
    policies: PoliciesSection = PoliciesSection()
    keys: KeysSection
    transit: TransitSection = TransitSection()
    tokens: TokensSection = TokensSection()
    tasks: TasksSection = TasksSection()
    limits: LimitsSection = LimitsSection()
    secrets: SecretsSection = SecretsSection()
    issuers: dict[str, IssuerSection] = Field(
        default={},
        description="Issuers of secrets by name, each a table `[issuers.<name>]` with its `kind` (`vault`, `postgres`, "
        "`x509`, `github_app`, `aws_sts`) and that kind's options. A resource names the one that mints for it.",
    )
    signals: SignalsSection = SignalsSection()
    metrics: MetricsSection = MetricsSection()
    tracing: TracingSection = TracingSection()
    log: LogSection = LogSection()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment wins over the file; there is no other source."""
        return env_settings, init_settings

    @property
    def control_url(self) -> str:
        """Base URL of the control process."""
        return self.serve.control_url or self.issuer

    @property
    def ledger_origin(self) -> str:
        """The ledger's name in its checkpoints."""
        return self.ledger.origin or urlsplit(self.issuer).netloc


def load_config(path: Path | None = None) -> Config:
    """Read the configuration file: `path`, else `TASKPASS_CONFIG`, else `taskpass.toml` here.

    Raises ConfigurationInvalid that names every key that is unknown, missing or wrong, with its line or its variable.
    """
    file = path or Path(os.environ.get(f"{PREFIX}CONFIG") or DEFAULT_FILE)
    text, data = _read(file)
    problems = list(_unknown_variables(os.environ))
    try:
        config = Config(**data)
    except ValidationError as error:
        problems += (_problem(found, file, text) for found in error.errors(include_url=False))
    except SettingsError as error:
        problems.append(Problem(f"the environment cannot be read: {error}"))
    if problems:
        raise ConfigurationInvalid("The configuration does not hold.", problems=problems)
    return _anchored(config, file.absolute().parent)


def render_reference() -> str:
    """The table of all keys, in Markdown."""
    rows = ["| key | environment | default | meaning |", "|---|---|---|---|"]
    for name, variable, default, description in _reference():
        rows.append(f"| `{name}` | `{variable}` | {default} | {description} |")
    return "\n".join(rows) + "\n"


def _reference() -> Iterator[tuple[str, str, str, str]]:
    for name, field in Config.model_fields.items():
        section = field.annotation
        members = section.model_fields if isinstance(section, type) and issubclass(section, Section) else {"": field}
        for key, member in members.items():
            path = [part for part in (name, key) if part]
            default = member.default
            if default is PydanticUndefined:
                shown = "required"
            else:
                shown = "" if default is None or default == "" else f"`{default}`"
            yield ".".join(path), _variable(path), shown, member.description or ""


def _read(file: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = read_regular(file, _MAX_FILE).decode()
        return text, tomllib.loads(text)
    except OSError as error:
        cause = f"cannot be read: {error.strerror}; `taskpass init` writes one"
    except tomllib.TOMLDecodeError as error:
        cause = f"not TOML: {error}"
    except ValueError as error:
        cause = "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
    raise ConfigurationInvalid("There is no usable configuration.", problems=[Problem(cause, str(file))])


def _unknown_variables(environ: Mapping[str, str]) -> Iterator[Problem]:
    """Variables for a section that does not exist; the sections refuse their own unknown keys."""
    for variable in sorted(environ):
        section, delimiter, _ = variable.upper().removeprefix(PREFIX).partition(DELIMITER)
        if variable.upper().startswith(PREFIX) and delimiter and section.lower() not in Config.model_fields:
            yield Problem(f"{variable}: unknown section{meant(section.lower(), Config.model_fields)}")


def _problem(error: Mapping[str, Any], file: Path, text: str) -> Problem:
    path = [str(part) for part in error["loc"]]
    if error["type"] == "extra_forbidden":
        section = Config.model_fields[path[0]].annotation if len(path) > 1 else Config
        known = getattr(section, "model_fields", {})
        sentence = f"unknown key{meant(path[-1], known)}"
    elif error["type"] == "missing":
        sentence = f"is missing; set it here or as {_variable(path)}"
        if path == ["keys"]:  # the one section without which no broker starts
            sentence = "is missing: it says how signing keys are sealed; give encryption_key_file in it"
    else:
        sentence = sentence_of(error)
    if _variable(path) in os.environ:
        return Problem(f"{_variable(path)}: {sentence}")
    return Problem(f"{'.'.join(path)}: {sentence}", str(file), _line_of(text, path))


def _variable(path: list[str]) -> str:
    return PREFIX + DELIMITER.join(path).upper()


def _line_of(text: str, path: list[str]) -> int | None:
    """The line of a key, or of its section. TOML's parser does not tell; tables and keys of this file are plain."""
    section, found = "", None
    wanted = path if len(path) > 1 else ["", *path]
    for number, line in enumerate(text.splitlines(), 1):
        header, key = _HEADER.match(line), _KEY.match(line)
        if header:
            section = header[1]
            if [section] == path or section == wanted[0]:
                found = number
        elif key and [section, key[1]] == wanted[:2]:
            return number
    return found


def _anchored(config: Config, base: Path) -> Config:
    """The same configuration with every relative path counted from `base`."""
    sections: dict[str, Any] = {}
    for name in Config.model_fields:
        section = getattr(config, name)
        if isinstance(section, Section):
            paths = {key: base / value for key, value in section if isinstance(value, Path)}
            sections[name] = section.model_copy(update=paths)
    sections["issuers"] = {name: _anchored_issuer(issuer, base) for name, issuer in config.issuers.items()}
    return config.model_copy(update=sections)


def _anchored_issuer(issuer: IssuerSection, base: Path) -> IssuerSection:
    """An option that names a file says so in its name."""
    paths = {key: str(base / value) for key, value in issuer.options.items() if key.endswith("_file")}
    return IssuerSection(kind=issuer.kind, **{**issuer.options, **paths})
