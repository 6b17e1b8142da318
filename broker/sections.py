"""The sections of the configuration: every key with its default, its bounds and its meaning."""

from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from broker.addresses import CollectorUrl, DatabaseUrl, KeepingUrl, Listen, Networks, PublicUrl, RedisUrl

_VAULT_PATH = r"^[A-Za-z0-9_-][A-Za-z0-9_./-]{0,200}$"


class Section(BaseModel):
    """What all sections share: nothing unknown, nothing changed later, no value in an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class ServeSection(Section):
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
    trusted_proxies: Networks = Field(
        default="",
        description="Addresses or networks, separated by commas, whose `X-Forwarded-*` headers are believed. Empty: "
        "nobody's.",
    )


class LedgerSection(Section):
    """The one source of truth."""

    path: Path = Field(default=Path("data/ledger.db"), description="The SQLite file. Its directory must exist.")
    url: DatabaseUrl | None = Field(
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


class KeptSection(Section):
    """Where checkpoints are kept outside of the ledger's store: a roll-back is noticed at the next start."""

    file: Path | None = Field(
        default=None, description="A file, best on another disk than the ledger's. Its directory must exist."
    )
    url: KeepingUrl | None = Field(
        default=None,
        description="An object: read with GET, replaced with PUT, as pre-authorised or internal object stores take it.",
    )
    authorization: SecretStr | None = Field(
        default=None, description="The `Authorization` header for `url`; meant for the environment."
    )
    witness_url: KeepingUrl | None = Field(
        default=None, description="Submission prefix of a C2SP witness: `/add-checkpoint` is added to it."
    )
    witness_key: str | None = Field(
        default=None, description="The witness's key for cosignatures, `name+hash+key`. Needed with `witness_url`."
    )
    every_s: int = Field(
        default=10,
        ge=1,
        le=3_600,
        description="How often the newest checkpoint is kept, in seconds: what was written since could be rolled back "
        "unnoticed.",
    )

    @model_validator(mode="after")
    def _witness(self) -> "KeptSection":
        if (self.witness_url is None) != (self.witness_key is None):
            raise ValueError("give witness_url and witness_key together")
        return self


class RetentionSection(Section):
    """How long events stay in the store."""

    archive_path: Path | None = Field(
        default=None,
        description="Directory of the archive, shared by all brokers. Events are moved there, and read from there.",
    )
    days: int | None = Field(
        default=None,
        ge=31,
        le=36_500,
        description="The audit period: older events are moved to the archive, and personal texts with them are erased. "
        "Empty: never by itself; `taskpass ledger archive` does it.",
    )

    @model_validator(mode="after")
    def _with_an_archive(self) -> "RetentionSection":
        if self.days is not None and self.archive_path is None:
            raise ValueError("days needs archive_path: nothing is removed that is not kept elsewhere")
        return self


class RegistrySection(Section):
    """Who and what is registered."""

    path: Path = Field(default=Path("registry"), description="Directory of the registry's YAML files.")


class PoliciesSection(Section):
    """What is allowed."""

    path: Path = Field(
        default=Path("policies"), description="Directory with `permits/`, `gates/`, `nevers/` and `cases.yaml`."
    )


class KeysSection(Section):
    """The broker's own signing keys."""

    seal: Literal["key", "transit"] = Field(
        default="key",
        description="What seals the signing keys in the ledger: the encryption key given here, or, under a key that "
        "stays in Vault or OpenBao, the engine of `[transit]`.",
    )
    encryption_key_file: Path | None = Field(
        default=None,
        description="File with the key that seals the signing keys in the ledger: 32 bytes in base64, readable by its "
        "owner only.",
    )
    encryption_key: SecretStr | None = Field(
        default=None,
        description="The same key itself; meant for the environment. Give at most one of the two.",
    )
    previous_encryption_key_file: Path | None = Field(
        default=None,
        description="File with the sealing key that was in use before: opens, and seals nothing. "
        "For the time until `taskpass keys reseal`.",
    )
    sign: Literal["here", "transit"] = Field(
        default="here",
        description="Where new signing keys of access tokens are made and sign: in the broker, or in the engine of "
        "`[transit]`, which they then never leave. Keys that there are go on where they are.",
    )
    rotate_every_hours: int = Field(
        default=720,
        ge=1,
        le=8_784,
        description="Age at which the token signing key is replaced by the next one, which is published ahead of that.",
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> "KeysSection":
        given = (self.encryption_key is not None) + (self.encryption_key_file is not None)
        if given > 1 or (given == 0 and self.seal == "key"):
            raise ValueError("give exactly one of encryption_key_file and encryption_key")
        return self


class TransitSection(Section):
    """The transit engine of Vault or OpenBao, for `keys.seal` and `keys.sign`."""

    address: PublicUrl | None = Field(default=None, description="URL of the server, `https://vault.example.com:8200`.")
    token_file: Path | None = Field(
        default=None,
        description="File with the token for it, readable by its owner only. Read for every call: whatever renews the "
        "token writes it there.",
    )
    token: SecretStr | None = Field(default=None, description="The token itself; meant for the environment.")
    mount: str = Field(default="transit", pattern=_VAULT_PATH, description="Where the engine is mounted.")
    key: str = Field(
        default="taskpass",
        pattern=r"^[A-Za-z0-9_.-]{1,100}$",
        description="Name of the key that seals, with `keys.seal`. It must exist there, of a type that encrypts.",
    )
    namespace: str | None = Field(default=None, pattern=_VAULT_PATH, description="Namespace of the engine, if any.")
    ca_file: Path | None = Field(
        default=None, description="Certificate authorities for the server, in PEM. Default: those of the HTTP client."
    )
    timeout_s: float = Field(
        default=3.0, ge=0.1, le=30, description="How long one call may take to connect, and between bytes, in seconds."
    )

    @model_validator(mode="after")
    def _one_token(self) -> "TransitSection":
        given = (self.token is not None) + (self.token_file is not None)
        if given != (self.address is not None):
            raise ValueError("give address with exactly one of token_file and token")
        return self


class TokensSection(Section):
    """Access tokens."""

    max_ttl_s: int = Field(
        default=300,
        ge=10,
        le=3_600,
        description="Longest lifetime of an access token, in seconds. An agent's own limit, its task's deadline and "
        "the policy can only shorten it.",
    )


class TasksSection(Section):
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


class LimitsSection(Section):
    """What a stranger can cost."""

    max_request_bytes: int = Field(
        default=65_536, ge=4_096, le=1 << 20, description="Largest request body that is read, in bytes."
    )
    connections: int = Field(
        default=2_000,
        ge=50,
        le=100_000,
        description="Open connections that one process takes; above that it answers 503 and closes. Of those of the "
        "control process verifiers' streams may be nine tenths, so that there is always room for a kill.",
    )
    request_head_bytes: int = Field(
        default=32_768, ge=8_192, le=1 << 20, description="Longest head (request line and headers) of a request."
    )
    slow_client_s: int = Field(
        default=15,
        ge=2,
        le=600,
        description="How long a client may take to send a request, from the first to the last byte, and to take its "
        "answer, before the connection is cut.",
    )
    refusals_interval_s: int = Field(
        default=60,
        ge=1,
        le=3_600,
        description="Refusals before authentication are written to the ledger as counts per reason, once per this many "
        "seconds.",
    )
    failures_per_minute: int = Field(
        default=1_200,
        ge=0,
        le=1_000_000,
        description="How many requests from one address (IPv6: one /64) may fail to prove an identity within a minute "
        "before the next are answered 429 until it is over. Kills never are, nor is loopback. 0: no limit. Behind a "
        "proxy set `serve.trusted_proxies`, or all clients share its address.",
    )


class SecretsSection(Section):
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


class SignalsSection(Section):
    """What brokers tell each other, and can do without."""

    url: RedisUrl | None = Field(
        default=None,
        description="The Redis that several brokers share: `rediss://user@host:6379/0`, or `redis://` without TLS. "
        "Without it every broker looks into the ledger by itself and counts for itself.",
    )
    password: SecretStr | None = Field(
        default=None, description="Its password, if it is not in the URL; meant for the environment."
    )
    password_file: Path | None = Field(
        default=None, description="File with that password, on one line, readable by its owner only."
    )
    ca_file: Path | None = Field(
        default=None,
        description="With `rediss://`: certificate authorities for it, in PEM. Default: the system's.",
    )

    @model_validator(mode="after")
    def _one_password(self) -> "SignalsSection":
        given = [name for name in ("password", "password_file") if getattr(self, name) is not None]
        if self.url is None:
            if given or self.ca_file is not None:
                raise ValueError("there is no url for what else is given")
        elif len(given) + (urlsplit(self.url.get_secret_value()).password is not None) > 1:
            raise ValueError("give the password once: in url, password or password_file")
        return self


class MetricsSection(Section):
    """Who may scrape."""

    token_file: Path | None = Field(
        default=None,
        description="File with the bearer token that `/metrics` of the control process asks for, on one line, readable "
        "by its owner only. Without it and `token` there are no metrics.",
    )
    token: SecretStr | None = Field(
        default=None, description="The same token itself; meant for the environment. Give at most one of the two."
    )

    @model_validator(mode="after")
    def _at_most_one(self) -> "MetricsSection":
        if self.token is not None and self.token_file is not None:
            raise ValueError("give token_file or token, not both")
        return self


class TracingSection(Section):
    """Spans for OpenTelemetry. Needs the extra `taskpass[otel]`."""

    endpoint: CollectorUrl | None = Field(
        default=None,
        description="Where spans go: the URL of an OTLP collector over HTTP, such as "
        "`http://127.0.0.1:4318/v1/traces`. Without it there are no spans; a request's `traceparent` is kept in its "
        "events all the same.",
    )


class LogSection(Section):
    """The log on standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe level logged."
    )
    format: Literal["json", "console"] = Field(default="json", description="`json` for machines, `console` for people.")
