"""`taskpass init`: a commented configuration, registry and policies that load as they are, and the keys they need."""

import base64
import os
import secrets
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import orjson
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

import policies
from broker.config import is_loopback, public_url
from broker.errors import ConfigurationInvalid, Problem
from broker.jose import public_jwk

_SKELETON = Path(__file__).parent / "skeleton"
_BASELINE = Path(policies.__file__).parent / "baseline"
_REVIEW_DAYS = 180
_PRIVATE, _PUBLIC = 0o600, 0o644


@dataclass(frozen=True, slots=True)
class _File:
    path: str
    content: bytes
    mode: int = _PUBLIC


def write_skeleton(
    directory: Path,
    *,
    issuer: str,
    demo: bool = False,
    idp_issuer: str = "https://idp.example.com",
    idp_jwks: Mapping[str, object] | None = None,
    operator_keys: bool = True,
    today: date | None = None,
) -> list[Path]:
    """Write a configuration directory and return the files in it, private keys with mode 0600.

    `idp_issuer` and `idp_jwks` (a key source as in trust.yaml, by default a URL below the issuer) are the identity
    provider of the one trust row. `demo` logs for people. Without `operator_keys` the operators are written commented
    out. Raises ConfigurationInvalid, having written nothing, when any of the files exists or the issuer is no
    public URL.
    """
    try:
        public_url(issuer)
    except ValueError as error:
        raise ConfigurationInvalid(f"The issuer {error}.") from None
    day = today or datetime.now(UTC).date()
    files: list[_File] = []
    values = {
        **_addresses(issuer),
        "issuer": issuer,
        "log_format": "console" if demo else "json",
        "idp_issuer": orjson.dumps(idp_issuer).decode(),
        "idp_jwks": orjson.dumps(idp_jwks or {"url": f"{idp_issuer}/jwks.json"}).decode(),
        "reviewed": day.isoformat(),
        "expires": (day + timedelta(days=_REVIEW_DAYS)).isoformat(),
    }
    for name in ("operator", "break-glass"):
        private, values[f"{name.replace('-', '_')}_jwk"] = _key_pair()
        if operator_keys:
            files.append(_File(f"keys/{name}.pem", private, _PRIVATE))
    files.append(_File("keys/encryption.key", base64.b64encode(secrets.token_bytes(32)) + b"\n", _PRIVATE))
    files += _rendered(values, operator_keys=operator_keys)
    files += (_File(f"policies/{name}", content) for name, content in _below(_BASELINE))
    return _write(directory, files)


def _addresses(issuer: str) -> dict[str, str]:
    """Where to listen: on the issuer's own port if it is loopback, else behind a proxy that terminates TLS."""
    parts = urlsplit(issuer)
    if not is_loopback(parts.hostname or ""):
        line = '# control_url = "https://taskpass-control.example.com"'
        return {"listen": "127.0.0.1:8700", "control_listen": "127.0.0.1:8701", "control_url_line": line}
    port = parts.port or 8700
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    control = f"{host}:{port + 1}"
    line = f'control_url = "{parts.scheme}://{control}"'
    return {"listen": f"{host}:{port}", "control_listen": control, "control_url_line": line}


def _key_pair() -> tuple[bytes, str]:
    """A new operator key: private as PKCS 8 PEM, public as a JWK."""
    private = ec.generate_private_key(ec.SECP256R1())
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem, orjson.dumps(public_jwk(private.public_key(), alg="ES256")).decode()


def _rendered(values: Mapping[str, str], *, operator_keys: bool) -> Iterator[_File]:
    for name, template in _below(_SKELETON):
        text = string.Template(template.decode()).substitute(values)
        if name == "registry/operators.yaml" and not operator_keys:
            text = "".join(line if line.startswith("#") else f"# {line}" for line in text.splitlines(keepends=True))
        yield _File(".gitignore" if name == "gitignore" else name, text.encode())


def _below(directory: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            yield path.relative_to(directory).as_posix(), path.read_bytes()


def _write(directory: Path, files: list[_File]) -> list[Path]:
    exist = [directory / file.path for file in files if os.path.lexists(directory / file.path)]
    if exist:
        problems = [Problem("exists already", str(path)) for path in exist]
        raise ConfigurationInvalid(
            "Nothing was written: remove these first, or name another directory.", problems=problems
        )
    for folder, mode in (("keys", 0o700), ("data", 0o700)):
        (directory / folder).mkdir(mode=mode, parents=True, exist_ok=True)
    written = []
    for file in files:
        path = directory / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, file.mode)
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(file.content)
        written.append(path)
    return sorted(written)
