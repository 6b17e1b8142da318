"""The options of an issuer of kind `vault`, as configured: flat, strict, and checked before anything is sent."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from issuers.vault.issuer import VaultIssuer
from issuers.vault.login import SERVICE_ACCOUNT, Login, Now
from issuers.vault.sessions import Vault, connect

OPTIONS: Final[Mapping[str, tuple[type, str]]] = {
    "address": (str, "Where Vault or OpenBao answers, such as https://vault.example.com:8200."),
    "namespace": (str, "The namespace that everything is in. Default: the root's."),
    "ca_file": (Path, "Certificates that Vault's own is checked against. Default: the system's."),
    "timeout_s": (int, "The longest that one exchange may take, 1 to 30 seconds. Default: 10."),
    "login": (str, "How the broker logs in: jwt, kubernetes, approle or token."),
    "login_file": (Path, "The JWT, service account token, secret id or token. Default for kubernetes: the pod's own."),
    "login_role": (str, "The role of jwt or kubernetes; the role id of approle."),
    "login_mount": (str, "Where the method is mounted. Default: its name."),
    "token_role": (str, "The token role that opens sessions. Default: taskpass."),
    "admins": (dict, "Connections that end open PostgreSQL sessions: name = `env:NAME` or `file:PATH` of an address."),
    "sweep": (list, "Paths that nobody else leases from: leases there that no grant owns are ended."),
    "min_ttl_s": (int, "The shortest lifetime that is promised. Default: 10."),
    "max_ttl_s": (int, "The longest lifetime of one credential. Default: 3600."),
}


def issuer_of(options: Mapping[str, Any], *, name: str, now: Now) -> VaultIssuer:
    """The issuer; nothing is sent yet. `name` marks at Vault what is this broker's. Raises ValueError."""
    given = _checked(options)
    limits = {key: given[key] for key in ("min_ttl_s", "max_ttl_s", "admins", "sweep") if key in given}
    if not 1 <= given.get("min_ttl_s", 10) <= given.get("max_ttl_s", 3_600):
        raise ValueError("min_ttl_s must be at least 1, and at most max_ttl_s")
    return VaultIssuer(vault=vault_of(options, name=name, now=now), **limits)


def vault_of(options: Mapping[str, Any], *, name: str, now: Now) -> Vault:
    """The server that the options name. Raises ValueError."""
    given = _checked(options)
    method = given.get("login")
    if method not in {"jwt", "kubernetes", "approle", "token"}:
        raise ValueError("login must be jwt, kubernetes, approle or token")
    file = given.get("login_file", SERVICE_ACCOUNT if method == "kubernetes" else None)
    if "address" not in given or file is None:
        raise ValueError("address and login_file are needed")
    if not 1 <= given.get("timeout_s", 10) <= 30:
        raise ValueError("timeout_s must be from 1 to 30")
    login = Login(method, file, given.get("login_role", ""), given.get("login_mount", ""))
    more = {key: given[key] for key in ("namespace", "ca_file", "timeout_s", "token_role") if key in given}
    return connect(address=given["address"], login=login, now=now, name=name, **more)


def _checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """What is given, each of its type. Raises ValueError."""
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        raise ValueError(f"unknown option {unknown[0]!r}: known are {', '.join(OPTIONS)}")
    given = {key: Path(v) if OPTIONS[key][0] is Path and isinstance(v, str) else v for key, v in options.items()}
    for key, value in given.items():
        if not _fits(value, OPTIONS[key][0]):
            raise ValueError(f"{key} must be {_WORDS[OPTIONS[key][0]]}")
    return given


def _fits(value: object, wanted: type) -> bool:
    members = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return isinstance(value, wanted) and not isinstance(value, bool) and all(isinstance(each, str) for each in members)


_WORDS: Final = {str: "a text", Path: "a file", int: "a number", dict: "a table of texts", list: "a list of texts"}
