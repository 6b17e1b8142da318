"""Which issuers of secrets the configuration names, opened; with `app`, the only place that names them.

Each kind reads its own options and raises ValueError for what it does not know, so nothing is silently ignored.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from broker.config import Config
from broker.errors import ConfigurationInvalid, Problem
from broker.keys import Keyring
from broker.ledger import Ledger, Now
from broker.model import ACCESS_TOKEN
from broker.registry import Registry
from broker.service.calls import Calls
from broker.service.credentials import Backend
from issuers import ByAction, SecretIssuer

_SIGN_WITHIN_S = 10.0
_WAITING = 256
"""How many calls may stand in line for one backend before a request is refused at once."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What an issuer may be given beside its own options."""

    iss: str
    sign: Callable[[str, str, Mapping[str, Any]], str]  # (kid, typ, claims) -> compact JWS
    now: Now
    ledger: str  # its name in checkpoints: what we make at a backend says whose it is


@dataclass(frozen=True, slots=True)
class Opened:
    """An issuer, and what reads the settings that a resource has for it. Raises ValueError with a sentence."""

    issuer: SecretIssuer
    settings_of: Callable[[Mapping[str, Any]], Any] = dict


Issuers = Mapping[str, Opened]


def signs_in_threads(keyring: Keyring, ledger: Ledger) -> Callable[[str, str, Mapping[str, Any]], str]:
    """What signs for issuers, which run in threads, with the keys of the loop that is running now; where they are in a
    vault, there. Raises Unavailable, TimeoutError.
    """
    loop = asyncio.get_running_loop()

    def sign(kid: str, typ: str, claims: Mapping[str, Any]) -> str:
        signing = keyring.sign_all([(kid or ledger.head.active_kid, typ, claims)])
        (signed,) = asyncio.run_coroutine_threadsafe(signing, loop).result(_SIGN_WITHIN_S)
        if isinstance(signed, Exception):
            raise signed
        return signed

    return sign


def open_issuers(config: Config, around: Surroundings) -> dict[str, Opened]:
    """Every configured issuer, by name. Raises ConfigurationInvalid with every problem; asks no backend anything."""
    opened, problems = {}, []
    for name, section in config.issuers.items():
        try:
            if name == ACCESS_TOKEN:
                raise ValueError("this name is taken by the broker's own tokens")
            opened[name] = _KINDS[section.kind](section.options, around)
        except (ValueError, OSError) as error:
            problems.append(Problem(f"issuers.{name}: {error}"))
        except TypeError as error:  # an option that the kind does not have, or lacks
            problems.append(Problem(f"issuers.{name}: {str(error).partition(') ')[2] or error}"))
    if problems:
        raise ConfigurationInvalid("The issuers cannot be opened.", problems=problems)
    return opened


def backends_of(issuers: Issuers, config: Config) -> dict[str, Backend]:
    """The issuers with the threads that call them."""
    limits = config.secrets

    def calls(name: str, *, waiting: int) -> Calls:
        return Calls(name=name, workers=limits.workers, waiting=waiting, limit_s=limits.call_limit_s)

    return {
        name: Backend(each.issuer, calls(f"make-{name}", waiting=_WAITING), calls(f"end-{name}", waiting=_WAITING))
        for name, each in issuers.items()
    }


def settings_problems(issuers: Issuers, registry: Registry) -> Sequence[Problem]:
    """What is wrong with the settings that resources have for their issuers."""
    problems = []
    for resource in registry.resources.values():
        if resource.issuer == ACCESS_TOKEN:
            continue
        if resource.issuer not in issuers:
            problems.append(Problem(f"resource {resource.id}: no issuer {resource.issuer} is configured ([issuers])"))
            continue
        try:
            settings = issuers[resource.issuer].settings_of(resource.settings)
        except ValueError as error:
            problems.append(Problem(f"resource {resource.id}: settings: {error}"))
            continue
        if isinstance(settings, ByAction) and (unprovided := settings.unprovided(resource.actions)):
            problems.append(Problem(f"resource {resource.id}: settings: nothing is said for {', '.join(unprovided)}"))
    return problems


def _vault(options: dict[str, Any], around: Surroundings) -> Opened:
    from issuers.vault import issuer_of

    issuer = issuer_of(options, name=around.ledger, now=around.now)
    return Opened(issuer, issuer.settings_of)


def _postgres(options: dict[str, Any], around: Surroundings) -> Opened:
    from issuers.postgres import PostgresIssuer, server_of, settings_of

    return Opened(PostgresIssuer(server=server_of(options), ledger=around.ledger), settings_of)


def _x509(options: dict[str, Any], around: Surroundings) -> Opened:
    from issuers.x509 import X509Issuer, authority_of, settings_of

    return Opened(X509Issuer(authority=authority_of(options), now=around.now), settings_of)


def _github_app(options: dict[str, Any], around: Surroundings) -> Opened:
    from issuers.github_app import GitHubAppIssuer, settings_of

    return Opened(GitHubAppIssuer(**_files(options), now=around.now), settings_of)


def _aws_sts(options: dict[str, Any], around: Surroundings) -> Opened:
    from issuers.aws_sts import AwsStsIssuer, settings_of

    return Opened(AwsStsIssuer(**_files(options), iss=around.iss, sign=around.sign, now=around.now), settings_of)


def _files(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with paths where their names say so."""
    return {name: Path(value) if name.endswith("_file") else value for name, value in options.items()}


# Each is imported only where it is used: not every broker has every backend's library.
_KINDS: Mapping[str, Callable[[dict[str, Any], Surroundings], Opened]] = {
    "vault": _vault,
    "postgres": _postgres,
    "x509": _x509,
    "github_app": _github_app,
    "aws_sts": _aws_sts,
}
