"""What addresses in the configuration may look like."""

import ipaddress
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, SecretStr


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


def _kept_at(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("https", "http") or not parts.hostname or "@" in parts.netloc:
        raise ValueError("must be a URL without user information")
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


def _redis(value: SecretStr) -> SecretStr:
    parts = urlsplit(value.get_secret_value())
    if parts.scheme not in ("redis", "rediss") or not parts.hostname or parts.query:
        raise ValueError("must be a URL such as rediss://user@host:6379/0")
    return value


def _collector(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise ValueError("must be a URL such as http://127.0.0.1:4318/v1/traces")
    return value


Listen = Annotated[str, AfterValidator(_listen)]
"""Where a process listens."""
PublicUrl = Annotated[str, AfterValidator(public_url)]
"""A URL by which others reach us, or we them, without a path."""
KeepingUrl = Annotated[str, AfterValidator(_kept_at)]
"""Where something is kept outside of the broker."""
Networks = Annotated[str, AfterValidator(_networks)]
"""Addresses and networks, separated by commas."""
DatabaseUrl = Annotated[SecretStr, AfterValidator(_database)]
"""A PostgreSQL database. May hold a password."""
RedisUrl = Annotated[SecretStr, AfterValidator(_redis)]
"""A Redis server. May hold a password."""
CollectorUrl = Annotated[str, AfterValidator(_collector)]
"""An OpenTelemetry collector."""
