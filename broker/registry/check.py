"""What must hold between entries: references, uniqueness, and that no workload could be two agents.

A problem inside one agent's entry blocks that agent; any other problem refuses the whole registry.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal

from broker.attest.trust import GitHubTrust, KeyTrust, SpiffeTrust, TrustRow
from broker.errors import Problem
from broker.jose import JoseError, load_jwks, thumbprint
from broker.model import ACCESS_TOKEN, Identity
from broker.registry.identity import overlap
from broker.registry.schema import ALL_OWNERS, AgentRow, IdentityRow, Rows
from broker.registry.text import shown

Path = tuple[str | int, ...]
Where = Callable[[str, str, Path], tuple[str, int]]
"""(kind, id, path within the entry) -> file and line."""

Declared = Mapping[str, Collection[str]]
"""kind -> the ids that the files give, whether or not their entries make sense."""

Found = tuple[Path, str]  # where inside the entry, and what is wrong there

SINGULAR = {
    "owners": "owner",
    "agents": "agent",
    "resources": "resource",
    "operators": "operator",
    "verifiers": "verifier",
    "trust": "trust",
}
_GITHUB_BINDING = ("repository_id", "repository_owner_id")


def check(
    rows: Rows, *, where: Where, declared: Declared, broken: Mapping[str, Collection[str]]
) -> tuple[list[Problem], dict[str, list[Problem]]]:
    """All problems of the registry, and of each agent by its id.

    What is already reported is not reported again: a reference to an entry that is `declared` but did not make sense on
    its own, and the fields of an agent that are `broken` and so were left out of its row.
    """

    def problem(kind: str, entry_id: str, found: Found) -> Problem:
        path, sentence = found
        return Problem(f"{SINGULAR[kind]} {entry_id}: {sentence}", *where(kind, entry_id, path))

    problems = [problem(kind, entry_id, found) for kind, entry_id, found in _outside_agents(rows, declared)]
    blocked: dict[str, list[Problem]] = defaultdict(list)
    for agent_id, agent in rows.agents.items():
        if not agent.retired:  # a retired agent gets nothing anyway, and what it refers to may be gone
            reported = broken.get(agent_id, ())
            unreported = (found for found in _inside_agent(agent, rows, declared) if found[0][0] not in reported)
            blocked[agent_id] += [problem("agents", agent_id, found) for found in unreported]
    for kind, holder, found in _ambiguous(rows):
        if kind == "agents":
            blocked[holder].append(problem(kind, holder, found))
        else:
            problems.append(problem(kind, holder, found))
    return problems, {agent_id: found for agent_id, found in blocked.items() if found}


def identity_of(row: IdentityRow, trust: TrustRow | None) -> Identity:
    """The noun of one identity. A registered key is one client, so its row fixes the subject."""
    subject = trust.subject if isinstance(trust, KeyTrust) else row.subject
    return Identity(row.trust, subject, row.subject_prefix, dict(row.claims))


def _outside_agents(rows: Rows, declared: Declared) -> Iterator[tuple[str, str, Found]]:
    for kind, checks in (
        ("resources", _resources(rows, declared)),
        ("operators", _operators(rows, declared)),
        ("verifiers", _verifiers(rows, declared)),
        ("trust", _trust(rows)),
    ):
        for entry_id, found in checks:
            yield kind, entry_id, found


def _resources(rows: Rows, declared: Declared) -> Iterator[tuple[str, Found]]:
    audiences: dict[str, str] = {}
    actions: dict[str, str] = {}
    for resource_id, resource in rows.resources.items():
        if resource.owner not in declared["owners"]:
            yield resource_id, (("owner",), f"there is no owner {shown(resource.owner)}")
        holder = audiences.setdefault(resource.audience.casefold(), resource_id)
        if holder != resource_id:
            yield resource_id, (("audience",), f"resource {holder} has this audience already")
        for action_id in resource.actions:
            holder = actions.setdefault(action_id.casefold(), resource_id)
            if holder != resource_id:
                yield resource_id, (("actions", action_id), f"resource {holder} has the action {action_id} already")
        if resource.issuer == ACCESS_TOKEN and resource.settings:
            yield resource_id, (("settings",), "settings are for an issuer of secrets; access tokens have none")
        folded = {action_id.casefold() for action_id in resource.actions}
        if len(folded) != len(resource.actions):
            yield resource_id, (("actions",), "two actions differ only in upper and lower case")


def _operators(rows: Rows, declared: Declared) -> Iterator[tuple[str, Found]]:
    keys: dict[str, str] = {}
    for operator_id, operator in rows.operators.items():
        for owner in operator.owners:
            if operator.owners != ALL_OWNERS and owner not in declared["owners"]:
                yield operator_id, (("owners",), f"there is no owner {shown(owner)}")
        for index, jwk in enumerate(operator.keys):
            holder = keys.setdefault(thumbprint(jwk), operator_id)
            if holder != operator_id:  # an act must name one person
                yield operator_id, (("keys", index), f"operator {holder} has this key already")


def _verifiers(rows: Rows, declared: Declared) -> Iterator[tuple[str, Found]]:
    audiences = {resource.audience for resource in rows.resources.values()}
    for verifier_id, verifier in rows.verifiers.items():
        if verifier.owner not in declared["owners"]:
            yield verifier_id, (("owner",), f"there is no owner {shown(verifier.owner)}")
        for audience in verifier.audiences:
            if audience not in audiences and len(rows.resources) == len(declared["resources"]):
                yield verifier_id, (("audiences",), f"no resource has the audience {shown(audience)}")
        for found in _identities(verifier.identities, rows, declared):
            yield verifier_id, found


def _trust(rows: Rows) -> Iterator[tuple[str, Found]]:
    vouched: dict[str, str] = {operator_id: f"operator {operator_id}" for operator_id in rows.operators}
    for trust_id, row in rows.trust.items():
        if isinstance(row, SpiffeTrust):
            path, name = "trust_domain", f"spiffe://{row.trust_domain}"
        elif isinstance(row, KeyTrust):
            path, name = "subject", row.subject
        else:
            path, name = "issuer", row.issuer
        holder = vouched.setdefault(name, f"trust {trust_id}")
        if holder != f"trust {trust_id}":  # one assertion must have one row that can vouch for it
            yield trust_id, ((path,), f"{holder} speaks for {shown(name)} already")
        if row.jwks.keys is not None:
            try:
                usable = load_jwks({"keys": row.jwks.keys}, algs=row.algs, use=_use(row)).keys
            except JoseError as error:
                yield trust_id, (("jwks", "keys"), f"jwks.keys: {error}")
            else:
                if not usable:
                    yield trust_id, (("jwks", "keys"), "jwks.keys: none of these can verify a token of this row")


def _use(row: TrustRow) -> Literal["sig", "jwt-svid"]:
    return "jwt-svid" if isinstance(row, SpiffeTrust) else "sig"


def _inside_agent(agent: AgentRow, rows: Rows, declared: Declared) -> Iterator[Found]:
    if not agent.owner:
        yield ("owner",), "'owner' is missing"
    elif agent.owner not in declared["owners"]:
        yield ("owner",), f"there is no owner {shown(agent.owner)}"
    for name in ("purpose", "workflow", "boundary", "identities"):
        if not getattr(agent, name):
            yield (name,), f"'{name}' is missing or empty"
    if agent.review is None:
        yield ("review",), "'review' is missing: who reviewed the boundary, and until when?"
    for resource_id, actions in agent.boundary.items():
        resource = rows.resources.get(resource_id)
        if resource is None:
            if resource_id not in declared["resources"]:
                yield ("boundary", resource_id), f"there is no resource {shown(resource_id)}"
            continue
        if not actions:
            yield ("boundary", resource_id), f"lists no action of {resource_id}"
        for action_id in actions:
            if action_id not in resource.actions:
                yield ("boundary", resource_id), f"resource {resource_id} has no action {shown(action_id)}"
    yield from _identities(agent.identities, rows, declared)


def _identities(identities: Sequence[IdentityRow], rows: Rows, declared: Declared) -> Iterator[Found]:
    for index, identity in enumerate(identities):
        trust = rows.trust.get(identity.trust)
        path: Path = ("identities", index)
        if trust is None:
            if identity.trust not in declared["trust"]:
                yield (*path, "trust"), f"there is no trust {shown(identity.trust)}"
        elif isinstance(trust, KeyTrust):
            if identity.subject not in (None, trust.subject) or identity.subject_prefix or identity.claims:
                yield path, f"trust {trust.id} is the key of one client: give only 'trust'"
        elif not (identity.subject or identity.subject_prefix or identity.claims):
            yield path, f"would match everything that trust {trust.id} vouches for: give a subject or claims"
        elif isinstance(trust, GitHubTrust) and not all(name in identity.claims for name in _GITHUB_BINDING):
            yield path, "bind GitHub on the claims repository_id and repository_owner_id: names can be taken over"
        else:
            yield from ((path, sentence) for sentence in _spiffe_paths(identity, trust))


def _spiffe_paths(identity: IdentityRow, trust: TrustRow) -> Iterator[str]:
    if not isinstance(trust, SpiffeTrust):
        if identity.subject_prefix is not None:
            yield "subject_prefix is for SPIFFE only: give the whole subject"
        return
    domain = f"spiffe://{trust.trust_domain}/"
    for name in ("subject", "subject_prefix"):
        value = getattr(identity, name)
        if value is not None and (not value.startswith(domain) or value == domain):
            yield f"{name} must begin with {domain} and name a path"
        elif value is not None and value.endswith("/"):
            yield f"{name} must not end in '/'"


@dataclass(frozen=True, slots=True, order=True)
class _Held:
    """One identity of one holder, ordered by whose it is."""

    kind: str
    id: str
    index: int
    identity: Identity = field(compare=False)

    @property
    def holder(self) -> tuple[str, str]:
        return self.kind, self.id


def _ambiguous(rows: Rows) -> Iterator[tuple[str, str, Found]]:
    """Every identity that could be another holder's workload too, blamed once. Blames both sides of a pair."""
    held: dict[str, list[_Held]] = defaultdict(list)
    for one in sorted(_held(rows)):  # so that which other side is named does not depend on the files
        held[one.identity.trust].append(one)
    blamed: set[_Held] = set()
    for peers in held.values():
        for pair in combinations(peers, 2):
            one, other = pair
            if one.holder == other.holder or blamed.issuperset(pair) or not overlap(one.identity, other.identity):
                continue
            for this, that in (pair, pair[::-1]):
                if this in blamed or (this.kind, that.kind) == ("verifiers", "agents"):  # blocking the agent settles it
                    continue
                blamed.add(this)
                named = f"{SINGULAR[that.kind]} {that.id}"
                sentence = f"a workload could be this and {named}: name a subject or claim that differs"
                yield this.kind, this.id, (("identities", this.index), sentence)


def _held(rows: Rows) -> Iterator[_Held]:
    for kind, holders in (("agents", rows.agents), ("verifiers", rows.verifiers)):
        for holder_id, holder in holders.items():
            if isinstance(holder, AgentRow) and holder.retired:
                continue  # a successor may take over its identities
            for index, row in enumerate(holder.identities):
                identity = identity_of(row, rows.trust.get(row.trust))
                if identity.subject or identity.subject_prefix or identity.claims:  # else it is refused for that
                    yield _Held(kind, holder_id, index, identity)
