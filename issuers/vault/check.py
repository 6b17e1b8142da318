"""Whether Vault is ready for the broker: it answers and lets us in, with the least rights, token role and mounts."""

from collections.abc import Iterator, Mapping
from typing import Final

from issuers import IssuerError, Order, Seen, clock_seen
from issuers.vault.link import Refused
from issuers.vault.sessions import Session, Vault
from issuers.vault.settings import VaultSettings
from issuers.vault.setup import rights
from issuers.vault.sever import Severer

_SETUP: Final = "`taskpass vault-setup` prints what is missing, or applies it."
_TRIES_S: Final = 30
"""How long a session would live that was opened only to look, should it not be ended at once."""


def examine(
    vault: Vault, severers: Mapping[str, Severer], resources: Mapping[str, VaultSettings], *, role: str, now: int
) -> Iterator[Seen]:
    """Log in, compare our rights with the least, and open a session for each path, to see what is mounted there."""
    try:
        policies = vault.broker.call("get", "auth/token/lookup-self").data.get("policies")
    except IssuerError as error:
        yield Seen("login", "wrong", error.sentence, "Correct the address, or how the broker logs in.")
        return
    if isinstance(policies, list) and "root" in policies:
        yield Seen("login", "warning", "it answers, and the broker has the root policy: it needs far less", _SETUP)
    else:
        yield Seen("login", "ok", "it answers and lets us in")
        yield _rights(vault, list(resources.values()), role)
    for name, settings in resources.items():
        yield from _path(vault, name, settings, now)
    for admin in sorted({settings.admin for settings in resources.values() if settings.admin} & severers.keys()):
        yield severers[admin].seen(admin)


def _rights(vault: Vault, resources: list[VaultSettings], role: str) -> Seen:
    needed = {rule.path.replace("*", "x"): rule for rule in rights(resources, token_role=role)}
    try:
        told = vault.broker.call("post", "sys/capabilities-self", {"paths": list(needed)}).data
    except IssuerError as error:
        return Seen("rights", "warning", f"they cannot be told: {error.sentence}", _SETUP)
    lacking = [rule.path for path, rule in needed.items() if not set(rule.capabilities) <= set(told.get(path) or ())]
    if lacking:
        more = f", and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        return Seen("rights", "wrong", f"the broker's policy lacks {lacking[0]}{more}", _SETUP)
    return Seen("rights", "ok", f"the least policy is there: {len(needed)} rules")


def _path(vault: Vault, name: str, settings: VaultSettings, now: int) -> Iterator[Seen]:
    """A session as a task would have it, for as long as it takes to look."""
    now_s = vault.now() // 1000
    order = Order(
        seq=0, jti="", kid="", agent="doctor", task="doctor", audience=name, actions=(), limited=(), parameters={},
        iat=now_s, exp=now_s + _TRIES_S,
    )  # fmt: skip
    try:
        session = vault.sessions.open(order, settings)
    except IssuerError as error:
        advice = f"Has the token role the policy {settings.policy}? {_SETUP}"
        yield Seen("session", "wrong", f"none for {name}: {error.sentence}", advice)
        return
    try:
        yield _mount(vault, name, settings, session)
        found = vault.sessions.look(session.accessor)
        made = found.data.get("creation_time") if found is not None else None
        if isinstance(made, int):
            yield clock_seen(made, now)
        vault.sessions.end(session.accessor)
    except IssuerError as error:
        yield Seen("session", "wrong", f"of {name}: {error.sentence}", f"It ends by itself within {_TRIES_S} s.")


def _mount(vault: Vault, name: str, settings: VaultSettings, session: Session) -> Seen:
    try:
        engine = vault.link.call("get", f"sys/internal/ui/mounts/{settings.path}", token=session.token).data.get("type")
    except Refused:
        sentence = f"nothing is mounted at {settings.path}, or the policy {settings.policy} does not reach it"
        return Seen("mount", "wrong", f"{name}: {sentence}", f"Mount the engine, or correct `path`. {_SETUP}")
    return Seen("mount", "ok", f"{name}: {settings.path}, an engine of type {engine}")
