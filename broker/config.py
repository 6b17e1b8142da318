"""Configuration: one TOML file, any key of it overridable by environment, unknown keys refused.

`[tokens] max_ttl_s` is `TASKPASS_TOKENS__MAX_TTL_S` in the environment. Relative paths count from the directory of the
file. Every key is described once, here: the reference in the documentation is rendered from this module.
"""

import ipaddress
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from broker.errors import ConfigurationInvalid, Problem
from broker.files import read_regular
from broker.sentences import meant, sentence_of

PREFIX = "TASKPASS_"
DELIMITER = "__"
DEFAULT_FILE = "taskpass.toml"
_MAX_FILE = 256 << 10
_HEADER = re.compile(r"\s*\[\s*([A-Za-z0-9_-]+)\s*\]")
_KEY = re.compile(r"\s*([A-Za-z0-9_-]+)\s*=")


def is_loopback(host: str) -> bool:
    """Whether `host` (a name or an address) is this machine and nothing else."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def split_listen(value: str) -> tuple[str, int]:
    """`host:port` in two; an IPv6 address stands in brackets. Raises ValueError."""
    host, _, port = value.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65_535 or (":" in host and not host.startswith("[")):
        raise ValueError("must be host:port, e.g. 127.0.0.1:8700 or [::1]:8700")
    return host.strip("[]"), int(port)


def _listen(value: str) -> str:
    split_listen(value)
    return value


def public_url(value: str) -> str:
    """A public URL of ours, unchanged. Clients compare it byte for byte, so there is one way to write it; any other
    raises ValueError.
    """
    parts = urlsplit(value)
    if parts.scheme not in ("https", "http") or not parts.hostname or value != f"{parts.scheme}://{parts.netloc}":
        raise ValueError("must be a URL such as https://taskpass.example.com, without a path or a '/' at its end")
    if "@" in parts.netloc or value != value.lower() or not value.isascii():
        raise ValueError("must be lower-case ASCII without user information")
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        raise ValueError("must be https: plain http is for loopback only")
    return value


def _networks(value: str) -> str:
    for part in filter(None, (part.strip() for part in value.split(","))):
        ipaddress.ip_network(part)  # raises ValueError, with a sentence
    return value


def _database(value: SecretStr) -> SecretStr:
    parts = urlsplit(value.get_secret_value())
    if parts.scheme not in ("postgresql", "postgres") or not parts.path.strip("/"):
        raise ValueError("must be a URL such as postgresql://user:password@host/database")
    return value


Listen = Annotated[str, AfterValidator(_listen)]
PublicUrl = Annotated[str, AfterValidator(public_url)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class ServeSection(_Section):
    """Where the processes listen."""

    listen: Listen = Field(default="127.0.0.1:8700", description="Address of the token workers, `host:port`.")
    control_listen: Listen = Field(
        default="127.0.0.1:8701",
        description="Address of the control process: kill switch, feed, operators. It has a port of its own so that a "
        "kill never queues behind tokens.",
    )
    control_url: PublicUrl | None = Field(
        default=None,
        description="Public URL of the control process, as verifiers and operators reach it. Default: the issuer, "
        "for a proxy that routes by path.",
    )
    workers: int = Field(default=2, ge=1, le=64, description="Number of token worker processes.")
    trusted_proxies: Annotated[str, AfterValidator(_networks)] = Field(
        default="",
        description="Addresses or networks, separated by commas, whose `X-Forwarded-*` headers are believed. Empty: "
        "nobody's.",
    )


class LedgerSection(_Section):
    """The one source of truth."""

    path: Path = Field(default=Path("data/ledger.db"), description="The SQLite file. Its directory must exist.")
    url: Annotated[SecretStr, AfterValidator(_database)] | None = Field(
        default=None,
        description="In place of `path`: a PostgreSQL database that several brokers share, "
        "`postgresql://user:password@host/database?sslmode=verify-full`. `taskpass db upgrade` creates and upgrades "
        "the ledger in it.",
    )
    state_path: Path = Field(
        default=Path("data"),
        description="With `url`: directory for what this machine keeps beside the database, space reserved for kills "
        "among it. Never share it between machines.",
    )
    origin: str | None = Field(
        default=None,
        pattern=r"^[!-*,-~]{1,200}$",
        description="Name of this ledger in its signed checkpoints. Default: the issuer without its scheme. "
        "Never change it.",
    )

    @model_validator(mode="after")
    def _one_place(self) -> "LedgerSection":
        if self.url is not None and "path" in self.model_fields_set:
            raise ValueError("give path (SQLite) or url (PostgreSQL), not both")
        return self

    def side_file(self, suffix: str) -> Path:
        """A file of this machine that belongs to the ledger."""
        base = self.path if self.url is None else self.state_path / "ledger"
        return base.with_name(base.name + suffix)


class RegistrySection(_Section):
    """Who and what is registered."""

    path: Path = Field(default=Path("registry"), description="Directory of the registry's YAML files.")


class PoliciesSection(_Section):
    """What is allowed."""

    path: Path = Field(
        default=Path("policies"), description="Directory with `permits/`, `gates/`, `nevers/` and `cases.yaml`."
    )


class KeysSection(_Section):
    """The broker's own signing keys."""

    encryption_key_file: Path | None = Field(
        default=None,
        description="File with the key that seals the signing keys in the ledger: 32 bytes in base64, readable by its "
        "owner only.",
    )
    encryption_key: SecretStr | None = Field(
        default=None,
        description="The same key itself; meant for the environment. Give exactly one of the two.",
    )
    rotate_every_hours: int = Field(
        default=720,
        ge=1,
        le=8_784,
        description="Age at which the token signing key is replaced by the next one, which is published ahead of that.",
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> "KeysSection":
        if (self.encryption_key is None) == (self.encryption_key_file is None):
            raise ValueError("give exactly one of encryption_key_file and encryption_key")
        return self


class TokensSection(_Section):
    """Access tokens."""

    max_ttl_s: int = Field(
        default=300,
        ge=10,
        le=3_600,
        description="Longest lifetime of an access token, in seconds. An agent's own limit, its task's deadline and "
        "the policy can only shorten it.",
    )


class TasksSection(_Section):
    """Tasks."""

    default_deadline_s: int = Field(
        default=3_600, ge=1, le=30 * 86_400, description="Deadline of a task whose client names none, in seconds."
    )
    max_deadline_s: int = Field(
        default=86_400, ge=1, le=30 * 86_400, description="Latest deadline that a task may have, in seconds."
    )

    @model_validator(mode="after")
    def _in_order(self) -> "TasksSection":
        if self.default_deadline_s > self.max_deadline_s:
            raise ValueError("default_deadline_s is above max_deadline_s")
        return self


class LimitsSection(_Section):
    """What a stranger can cost."""

    max_request_bytes: int = Field(
        default=65_536, ge=4_096, le=1 << 20, description="Largest request body that is read, in bytes."
    )
    refusals_interval_s: int = Field(
        default=60,
        ge=1,
        le=3_600,
        description="Refusals before authentication are written to the ledger as counts per reason, once per this many "
        "seconds.",
    )


class SecretsSection(_Section):
    """Credentials at backends, whichever issuer makes them."""

    workers: int = Field(
        default=8,
        ge=1,
        le=64,
        description="Threads that call one backend to make credentials, and as many again that end them.",
    )
    call_limit_s: float = Field(
        default=30.0, ge=1, le=120, description="How long one call to a backend is waited for, in seconds."
    )
    stuck_after: int = Field(
        default=8,
        ge=1,
        le=100,
        description="After so many failed tries to end a credential it is `stuck`: somebody is told. It is tried on.",
    )
    sweep_every_s: int = Field(
        default=300,
        ge=10,
        le=86_400,
        description="How often the backends are searched for what bears our name and no grant owns, in seconds.",
    )


class IssuerSection(BaseModel):
    """One issuer of secrets: its kind, and that kind's options, which are checked by the issuer itself."""

    model_config = ConfigDict(extra="allow", frozen=True, hide_input_in_errors=True)

    kind: Literal["vault", "postgres", "x509", "github_app", "aws_sts"]

    @property
    def options(self) -> dict[str, Any]:
        """What stands beside `kind`."""
        return dict(self.model_extra or {})

    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        return [("kind", self.kind)]  # an option may be a secret


class LogSection(_Section):
    """The log on standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe level logged."
    )
    format: Literal["json", "console"] = Field(default="json", description="`json` for machines, `console` for people.")


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
    registry: RegistrySection = RegistrySection()
    policies: PoliciesSection = PoliciesSection()
    keys: KeysSection
    tokens: TokensSection = TokensSection()
    tasks: TasksSection = TasksSection()
    limits: LimitsSection = LimitsSection()
    secrets: SecretsSection = SecretsSection()
    issuers: dict[str, IssuerSection] = Field(
        default={},
        description="Issuers of secrets by name, each a table `[issuers.<name>]` with its `kind` (`vault`, `postgres`, "
        "`x509`, `github_app`, `aws_sts`) and that kind's options. A resource names the one that mints for it.",
    )
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
        members = section.model_fields if isinstance(section, type) and issubclass(section, _Section) else {"": field}
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
        if isinstance(section, _Section):
            paths = {key: base / value for key, value in section if isinstance(value, Path)}
            sections[name] = section.model_copy(update=paths)
    sections["issuers"] = {name: _anchored_issuer(issuer, base) for name, issuer in config.issuers.items()}
    return config.model_copy(update=sections)


def _anchored_issuer(issuer: IssuerSection, base: Path) -> IssuerSection:
    """An option that names a file says so in its name."""
    paths = {key: str(base / value) for key, value in issuer.options.items() if key.endswith("_file")}
    return IssuerSection(kind=issuer.kind, **{**issuer.options, **paths})
