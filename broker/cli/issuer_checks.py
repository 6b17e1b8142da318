"""What `taskpass validate` says of issuers from the files alone, and `taskpass doctor` after asking their backends."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from broker.cli.findings import Finding
from broker.cli.text import plural

if TYPE_CHECKING:
    from broker.config import Config
    from broker.issuing import Issuers
    from broker.registry import Registry


def issuers_sound(config: "Config") -> Iterator[Finding]:
    """Whether the issuers open, and read the settings of their resources. Asks no backend."""
    from broker.errors import ConfigurationInvalid
    from broker.issuing import settings_problems

    if not config.issuers:
        return
    try:
        opened = _open(config)
    except ConfigurationInvalid as error:
        for problem in error.problems:
            yield Finding("issuers", "wrong", str(problem), "Correct [issuers] in the configuration.")
        return
    registry = _registry(config)
    if registry is None:
        yield Finding("issuers", "skipped", "their resources are in the registry, which does not load")
        return
    problems = settings_problems(opened, registry)
    for problem in problems:
        yield Finding("issuers", "wrong", str(problem), "Correct the resource in the registry, or [issuers].")
    if not problems:
        made = sum(resource.issuer in opened for resource in registry.resources.values())
        yield Finding("issuers", "ok", f"{plural(len(opened), 'issuer')}, {plural(made, 'resource')} with secrets")


def issuers_ready(config: "Config") -> Iterator[Finding]:
    """Whether the backends of sound issuers answer, let the broker in, and have what the resources need."""
    from broker.errors import ConfigurationInvalid
    from broker.stores import wall_clock
    from issuers import Examiner

    try:
        opened, registry = _open(config), _registry(config)
    except ConfigurationInvalid:  # said already
        return
    for name, each in opened.items() if registry is not None else ():
        assert registry is not None
        if not isinstance(each.issuer, Examiner):
            yield Finding(name, "skipped", "this backend tells only when a secret is asked for", "Try: taskpass secret")
            continue
        for seen in each.issuer.examine(_settings(registry, name), wall_clock()):
            yield Finding(name, seen.state, f"{seen.what}: {seen.sentence}", seen.advice)


def _settings(registry: "Registry", issuer: str) -> Mapping[str, Mapping[str, Any]]:
    return {name: each.settings for name, each in registry.resources.items() if each.issuer == issuer}


def _open(config: "Config") -> "Issuers":
    from broker.issuing import Surroundings, open_issuers
    from broker.stores import wall_clock

    return open_issuers(config, Surroundings(iss=config.issuer, sign=_no_key, now=wall_clock, ledger="doctor"))


def _no_key(*_: object) -> NoReturn:
    raise RuntimeError("nothing is signed for a check")


def _registry(config: "Config") -> "Registry | None":
    from broker.cli.offline import load_registry
    from broker.errors import ConfigurationInvalid

    try:
        return load_registry(config.registry.path)
    except ConfigurationInvalid:
        return None
