"""What is in force: one registry and one policy bundle, as the ledger's head names them, parsed once.

Files are read by whoever loads them (start-up, `reload`). Every process then works from the content that the ledger
keeps under the hash in its head, so all of them decide by the same rules, and none by a file that only it can see.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson

import policies
from broker.attest import AttesterPool, nearest_registration
from broker.attest.trust import KeySource, KeyTrust, TrustRow
from broker.errors import ConfigurationInvalid, Problem, Unavailable
from broker.ledger import Ledger, views
from broker.ledger.commands.issue import Verdict
from broker.model import Operator, Workload
from broker.registry import Registry
from policies.bundle import Bundle, load_files
from policies.engine import Engine
from policies.memo import Remembered

OPERATOR_TRUST = "operator."
"""Registered operators' keys are trust rows of their own, under this prefix, which no row in `trust.yaml` can have."""

IMPLICIT_TRIGGER = "implicit"


@dataclass(frozen=True, slots=True)
class Matched:
    """Whom a workload is. `kind` None: nobody registered, with the nearest registration to help."""

    kind: Literal["agent", "verifier", "operator"] | None
    id: str = ""
    sentence: str = ""
    nearest: str | None = None


@dataclass(frozen=True, slots=True)
class Rules:
    """One registry and one bundle, with everything derived from them. Immutable: a reload makes another."""

    registry: Registry
    bundle: Bundle
    engine: policies.PolicyEngine
    attesters: AttesterPool
    registry_hash: str
    policy_hash: str

    def match(self, workload: Workload) -> Matched:
        """The one registration that this workload is (DESIGN 5)."""
        if workload.trust.startswith(OPERATOR_TRUST):
            return Matched("operator", workload.trust.removeprefix(OPERATOR_TRUST))
        agents = self.registry.agents_for(workload)
        verifiers = self.registry.verifiers_for(workload)
        if len(agents) == 1 and not verifiers:
            return Matched("agent", agents[0].id)
        found = [*(("agent", agent.id) for agent in agents), *(("verifier", verifier.id) for verifier in verifiers)]
        if len(found) == 1:
            kind, name = found[0]
            return Matched("agent" if kind == "agent" else "verifier", name)
        if found:
            names = " and ".join(f"{kind} {name}" for kind, name in found)
            return Matched(None, sentence=f"This workload is registered more than once, as {names}.")
        identities = {f"agent {a.id}": a.identities for a in self.registry.agents.values() if not a.retired}
        identities |= {f"verifier {v.id}": v.identities for v in self.registry.verifiers.values()}
        nearest = nearest_registration(workload, identities)
        return Matched(
            None,
            sentence=f"The identity is genuine, but no agent is registered for it. {nearest or ''}".strip(),
            nearest=nearest,
        )

    def verdict(self, decision: policies.Decision) -> Verdict:
        """The decision as the ledger records it."""
        why = "; ".join((*decision.reasons, *decision.errors)) if isinstance(decision, policies.Never) else None
        return Verdict(decision.outcome, decision.policies, self.policy_hash, self.registry_hash, why)


class RulesInForce:
    """The rules of the ledger's head, kept up to date in this process."""

    def __init__(self, *, ledger: Ledger, make_attesters: Callable[..., AttesterPool] = AttesterPool) -> None:
        self._ledger = ledger
        self._make_attesters = make_attesters
        self._rules: Rules | None = None
        self._lock = asyncio.Lock()

    @property
    def current(self) -> Rules:
        """The rules this process decides by. A commit refuses decisions made by others than the head's."""
        if self._rules is None:
            raise Unavailable("No rules are loaded yet.")
        return self._rules

    @property
    def loaded(self) -> Rules | None:
        """The rules this process has, or None before the first were loaded."""
        return self._rules

    async def catch_up(self) -> Rules:
        """Load what the head names now, if it is not what we have. Parsing blocks, so it runs in a thread."""
        async with self._lock:
            return await asyncio.to_thread(self.load)

    def load(self) -> Rules:
        """Load what the head names now. Raises Unavailable when the ledger has no rules, or this version cannot read
        them.
        """
        with self._ledger.read() as r:
            head = r.head()
            known = self._rules
            if known and (known.registry_hash, known.policy_hash) == (head.registry_hash, head.policy_hash):
                return known
            contents = [views.bundle(r, head.registry_hash), views.bundle(r, head.policy_hash)]
        if contents[0] is None or contents[1] is None:
            raise Unavailable("This ledger has no registry and policy bundle yet.")
        try:
            registry = Registry.from_content(contents[0])
            bundle = bundle_from_content(contents[1], registry)
        except (ConfigurationInvalid, policies.PolicyInvalid) as error:
            raise Unavailable("The rules in force cannot be read by this version.", internal=str(error)) from error
        self._rules = self.build(registry, bundle, head.registry_hash, head.policy_hash)
        return self._rules

    def build(self, registry: Registry, bundle: Bundle, registry_hash: str, policy_hash: str) -> Rules:
        """Parse everything once."""
        return Rules(
            registry=registry,
            bundle=bundle,
            engine=Remembered(Engine(bundle=bundle)),
            attesters=self._make_attesters(
                trust_rows(registry), previous=self._rules.attesters if self._rules else None
            ),
            registry_hash=registry_hash,
            policy_hash=policy_hash,
        )


def trust_rows(registry: Registry) -> list[TrustRow]:
    """The registry's trust rows and one for each operator. Raises ConfigurationInvalid when a workload's registered key
    has an operator's id for its subject: no workload may look like an operator.
    """
    problems = [
        Problem(f"trust {row.id}: the subject {row.subject!r} is an operator's id: give the workload its own")
        for row in registry.trust.values()
        if isinstance(row, KeyTrust) and row.subject in registry.operators
    ]
    if problems:
        raise ConfigurationInvalid("A workload and an operator share a name.", problems=problems)
    return [*registry.trust.values(), *(_operator_row(operator) for operator in registry.operators.values())]


def _operator_row(operator: Operator) -> KeyTrust:
    return KeyTrust.model_construct(
        id=OPERATOR_TRUST + operator.id,
        kind="key",
        subject=operator.id,
        jwks=KeySource(keys=[dict(key) for key in operator.keys]),
        algs=("ES256",),
        replay="single_use",
        max_lifetime_s=300,
    )


def vocabulary(registry: Registry) -> policies.Vocabulary:
    """What policies may name, from the registry."""
    return policies.Vocabulary(
        # Every registered id, blocked and retired ones too: a policy that names one must go on loading.
        agents={agent.id: policies.Agent(owner=agent.owner or "unowned") for agent in registry.agents.values()},
        resources={
            resource.id: policies.Resource(
                system=resource.system,
                audience=resource.audience,
                owner=resource.owner,
                data_classes=frozenset(resource.data_classes),
                leaves_boundary=resource.leaves_boundary,
            )
            for resource in registry.resources.values()
        },
        actions={
            action.id: policies.Action(
                resource=resource.id,
                access="read" if action.access == "read" else "write",
                parameters={
                    name: policies.Parameter(
                        type=parameter.type.value, required=parameter.required, values=parameter.values
                    )
                    for name, parameter in action.parameters.items()
                },
            )
            for resource in registry.resources.values()
            for action in resource.actions.values()
        },
        triggers=policies.TRIGGERS | {IMPLICIT_TRIGGER},
    )


def bundle_content(bundle: Bundle) -> bytes:
    """The bundle's files as the ledger keeps them."""
    return orjson.dumps({"format": 1, "files": dict(bundle.files)}, option=orjson.OPT_SORT_KEYS)


def bundle_from_content(content: bytes, registry: Registry) -> Bundle:
    """The bundle whose files `bundle_content` kept, checked against this registry's vocabulary."""
    body: Mapping[str, Any] = orjson.loads(content)
    return load_files(body["files"], vocabulary(registry))
