"""The least that the broker needs at Vault: a policy for itself, one for each path's sessions, and a token role."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from issuers.vault.link import Link
from issuers.vault.settings import VaultSettings

BROKER_POLICY: Final = "taskpass-broker"


@dataclass(frozen=True, slots=True)
class Step:
    """One write to Vault: `what` says it to a person."""

    what: str
    path: str
    body: Mapping[str, Any]


def policy_for(settings: VaultSettings) -> str:
    """The policy of the sessions that read this path: they may do nothing else, not even renew themselves."""
    capability = "update" if settings.method == "write" else "read"
    lines = [f'path "{settings.path}" {{', f'  capabilities = ["{capability}"]']
    if settings.wrap_ttl_s:  # then nobody with this session can have the answer in the clear
        wrap = f'"{settings.wrap_ttl_s}s"'
        lines += [f"  min_wrapping_ttl = {wrap}", f"  max_wrapping_ttl = {wrap}"]
    return "\n".join([*lines, "}", ""])


@dataclass(frozen=True, slots=True)
class Rule:
    """One path of the broker's policy: what it may do there, and why."""

    path: str
    capabilities: tuple[str, ...]
    why: str = ""
    more: str = ""

    def __str__(self) -> str:
        listed = ", ".join(json.dumps(capability) for capability in self.capabilities)
        comment = f"# {self.why}\n" if self.why else ""
        return f'{comment}path "{self.path}" {{\n  capabilities = [{listed}]\n{self.more}}}\n'


def broker_policy(resources: Sequence[VaultSettings], *, token_role: str) -> str:
    """The policy of the broker itself: it opens and ends sessions, and ends, renews and finds leases of these paths.
    It cannot read a secret, nor end anybody else's lease.
    """
    return "\n".join(map(str, rights(resources, token_role=token_role)))


def rights(resources: Sequence[VaultSettings], *, token_role: str) -> list[Rule]:
    """What that policy permits."""
    leased = sorted({settings.path for settings in resources if not settings.kv})
    rules = [
        _rule(f"auth/token/create/{token_role}", "update", why="Open an orphan session for a task."),
        _rule("auth/token/lookup-accessor", "update", why="Look whether a session is gone."),
        _rule("auth/token/revoke-accessor", "update", why="End a session."),
        _rule("auth/token/renew-accessor", "update", why="Let a session last as long as its grants."),
        _rule("auth/token/accessors/", "list", "sudo", why="Find sessions of ours that nobody owns."),
        _rule("auth/token/lookup-self", "read", why="The broker's own token."),
        _rule("auth/token/renew-self", "update"),
        _rule("sys/capabilities-self", "update", why="Tell whether these rights are there (`taskpass doctor`)."),
    ]
    for path in leased:
        rules += [
            _rule(f"sys/leases/revoke/{path}/*", "update", why=f"End, renew and find the leases of {path}."),
            _rule(f"sys/leases/renew/{path}/*", "update"),
            _rule(f"sys/leases/lookup/{path}/", "list", "sudo"),
        ]
    if leased:
        ids = ", ".join(json.dumps(f"{path}/*") for path in leased)
        allowed = f'  allowed_parameters = {{\n    "lease_id" = [{ids}]\n  }}\n'
        rules.append(_rule("sys/leases/lookup", "update", why="Look whether a lease is gone.", more=allowed))
    return rules


def _rule(path: str, *capabilities: str, why: str = "", more: str = "") -> Rule:
    return Rule(path, capabilities, why, more)


class Setup:
    """What an operator does once, and again when a resource is added: every step may be repeated."""

    def __init__(self, *, resources: Sequence[VaultSettings], token_role: str, max_ttl_s: int) -> None:
        """`max_ttl_s` bounds a session, whatever the broker asks for: the longest task. Raises ValueError when two
        resources share a policy's name but not its content.
        """
        self._policies: dict[str, str] = {}
        for settings in resources:
            content = policy_for(settings)
            if self._policies.setdefault(settings.policy, content) != content:
                raise ValueError(
                    f"policy {settings.policy} would have to permit two things: name one of them otherwise"
                )
        if BROKER_POLICY in self._policies:
            raise ValueError(f"policy {BROKER_POLICY} is the broker's own: name that of the resource otherwise")
        self._broker = broker_policy(resources, token_role=token_role)
        self._token_role = token_role
        self._max_ttl_s = max_ttl_s

    def steps(self) -> list[Step]:
        """The writes, in order."""
        policies = {BROKER_POLICY: self._broker, **dict(sorted(self._policies.items()))}
        role = {
            "allowed_policies": sorted(self._policies),
            "orphan": True,
            "renewable": True,
            "token_type": "service",
            "token_no_default_policy": True,
            "token_explicit_max_ttl": f"{self._max_ttl_s}s",
        }
        written = [
            Step(f"policy {name}", f"sys/policies/acl/{name}", {"policy": text}) for name, text in policies.items()
        ]
        return [*written, Step(f"token role {self._token_role}", f"auth/token/roles/{self._token_role}", role)]

    def apply(self, link: Link, token: str) -> None:
        """Do them with an operator's token. Raises IssuerError at the first that fails; those before it are done."""
        for step in self.steps():
            link.call("post", step.path, token=token, body=step.body)


def commands(steps: Sequence[Step]) -> str:
    """The steps as a shell script for the `bao` or `vault` command."""
    lines = ['vault() { command "${VAULT_CLI:-bao}" "$@"; }']
    for step in steps:
        lines.append(f"\n# {step.what}")
        text = step.body.get("policy")
        if isinstance(text, str):
            lines.append(f"vault policy write {step.path.rsplit('/', 1)[1]} - <<'END'\n{text}END")
        else:
            lines.append(f"vault write {step.path} - <<'END'\n{json.dumps(step.body, indent=2)}\nEND")
    return "\n".join(lines) + "\n"
