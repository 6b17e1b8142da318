"""What a resource says of its secrets in Vault, checked when it is read."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from issuers import IssuerError, Order

_PATH = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.@-]*(/[A-Za-z0-9_-][A-Za-z0-9_.@-]*)+")
_RESERVED: Final = frozenset({"sys", "auth", "identity", "cubbyhole"})
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,127}")
_BLANK = re.compile(r"\{([a-z]+)(?:\.([A-Za-z0-9_-]+))?\}")
_FILLING = re.compile(r"[A-Za-z0-9._:@/+-]{1,200}")
_KNOWN: Final = frozenset({"path", "method", "parameters", "policy", "wrap_ttl_s", "admin", "static", "kv"})
_MAX_WRAP_S: Final = 3_600


@dataclass(frozen=True, slots=True)
class VaultSettings:
    """The secrets at one path.

    `method` is read (database, RabbitMQ, AWS, GCP, Azure) or write (PKI, SSH, Kubernetes), with `parameters`, whose
    values may be `{agent}`, `{task}`, `{grant}`, `{ttl}` or `{parameters.NAME}`. `policy` is the Vault policy under
    which the task's session reads. `wrap_ttl_s` over 0 has Vault wrap the answer, so that the broker never sees it.
    `admin` names the connection by which open sessions are ended. `static`: it cannot be taken back (signed SSH and
    unleased X.509 certificates, cloud tokens, key-value entries); `kv` is the version of a key-value engine, else 0.
    """

    path: str
    method: Literal["read", "write"] = "read"
    parameters: Mapping[str, str] = field(default_factory=dict)
    policy: str = ""
    wrap_ttl_s: int = 0
    admin: str = ""
    static: bool = False
    kv: Literal[0, 1, 2] = 0

    def body(self, order: Order) -> dict[str, str]:
        """The parameters with their blanks filled in. Raises IssuerError for a value that could say more than one thing
        to an engine: a comma adds a name to a certificate.
        """
        return {name: self._filled(name, text, order) for name, text in self.parameters.items()}

    def _filled(self, name: str, text: str, order: Order) -> str:
        facts = {"agent": order.agent, "task": order.task, "grant": order.jti, "ttl": f"{order.exp - order.iat}s"}

        def fill(match: re.Match[str]) -> str:
            word, member = match.groups()
            value = str(order.parameters.get(member, "")) if word == "parameters" else facts[word]
            if not _FILLING.fullmatch(value):
                raise IssuerError(f"The parameter {name} cannot be filled in from this request.", happened=False)
            return value

        return _BLANK.sub(fill, text)


def settings_of(mapping: Mapping[str, Any]) -> VaultSettings:
    """The settings of a resource, as written in the registry. Raises ValueError, with a sentence."""
    unknown = sorted(set(mapping) - _KNOWN)
    if unknown:
        raise ValueError(f"unknown setting {unknown[0]!r}: known are {', '.join(sorted(_KNOWN))}")
    path = _path(mapping.get("path"))
    method, kv = mapping.get("method", "read"), mapping.get("kv", 0)
    if method not in {"read", "write"}:
        raise ValueError("method must be read or write")
    if isinstance(kv, bool) or kv not in {0, 1, 2}:
        raise ValueError("kv must be 1 or 2: the version of a key-value engine")
    if kv == 2 and path.split("/")[1:2] != ["data"]:
        raise ValueError("path must contain data/ after the mount: so does the API of a version 2 key-value engine")
    policy = mapping.get("policy") or policy_name(path)
    if not isinstance(policy, str) or not _NAME.fullmatch(policy) or policy in {"root", "default"}:
        raise ValueError("policy must be the name of a policy that permits this path alone")
    admin = mapping.get("admin", "")
    if not isinstance(admin, str) or (admin and not _NAME.fullmatch(admin)):
        raise ValueError("admin must be the name of a configured connection")
    wrap = mapping.get("wrap_ttl_s", 0)
    if not isinstance(wrap, int) or isinstance(wrap, bool) or not 0 <= wrap <= _MAX_WRAP_S:
        raise ValueError(f"wrap_ttl_s must be from 0 to {_MAX_WRAP_S}")
    if wrap and admin:
        raise ValueError("wrap_ttl_s and admin exclude each other: of a wrapped login not even the name is known")
    static = mapping.get("static", kv != 0)
    if not isinstance(static, bool) or (kv and not static):
        raise ValueError("static must be true or false, and true for a key-value engine")
    if static and (wrap or admin):
        raise ValueError("wrap_ttl_s and admin are for leased secrets: this one is static")
    return VaultSettings(path, method, _parameters(mapping.get("parameters", {})), policy, wrap, admin, static, kv)


def _path(path: object) -> str:
    if not isinstance(path, str) or not _PATH.fullmatch(path) or len(path) > 256:
        raise ValueError("path must be that of a secret, such as database/creds/readonly")
    if path.split("/", 1)[0] in _RESERVED:
        raise ValueError("path must be a secrets engine's: one of Vault's own could hand out power over Vault")
    return path


def _parameters(given: object) -> Mapping[str, str]:
    if not (isinstance(given, Mapping) and all(isinstance(each, str) for pair in given.items() for each in pair)):
        raise ValueError("parameters must be a table of strings")
    for name, text in given.items():
        for word, member in _BLANK.findall(text):
            if word not in {"agent", "task", "grant", "ttl", "parameters"} or (word == "parameters") != bool(member):
                raise ValueError(f"parameters.{name}: {{{word}}} is not known")
    return dict(given)


def policy_name(path: str) -> str:
    """The policy for the sessions that read `path`, when the resource names none."""
    return "taskpass-" + re.sub(r"[^a-z0-9_-]", "-", path.lower())


def checked(order: Order) -> VaultSettings:
    """Those of an order's resource. Raises IssuerError."""
    try:
        return settings_of(order.settings)
    except ValueError as error:
        raise IssuerError(f"The resource's settings for Vault are wrong: {error}.", happened=False) from None


def texts(data: Mapping[str, Any]) -> dict[str, str]:
    """The members of a secret as strings: what is none becomes JSON."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in data.items()}
