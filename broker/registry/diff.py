"""What changed between two registries, for the ledger's reload event and for a dry run."""

from dataclasses import dataclass
from typing import Any, Literal

from broker.registry.check import SINGULAR
from broker.registry.core import Registry
from broker.registry.schema import KINDS


@dataclass(frozen=True, slots=True)
class Change:
    """One entry that differs. `fields` names the members that changed; `blocked` stands for an agent's problems."""

    kind: str
    id: str
    change: Literal["added", "removed", "changed"]
    fields: tuple[str, ...] = ()

    def to_event(self) -> dict[str, Any]:
        """As recorded in the ledger."""
        return {"kind": self.kind, "id": self.id, "change": self.change, "fields": list(self.fields)}


def diff(old: Registry | None, new: Registry) -> list[Change]:
    """Every difference, sorted by kind and id. Without `old`, everything is added."""
    before, after = _entries(old), _entries(new)
    changes = []
    for key in sorted(before.keys() | after.keys()):
        if key not in before:
            changes.append(Change(*key, "added"))
        elif key not in after:
            changes.append(Change(*key, "removed"))
        elif before[key] != after[key]:
            one, other = before[key], after[key]
            fields = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
            changes.append(Change(*key, "changed", tuple(fields)))
    return changes


def _entries(registry: Registry | None) -> dict[tuple[str, str], dict[str, Any]]:
    if registry is None:
        return {}
    entries = {
        (SINGULAR[kind], entry_id): row.model_dump(mode="json")
        for kind in KINDS
        for entry_id, row in getattr(registry.rows, kind).items()
    }
    for agent_id, problems in registry.blocked.items():
        entries["agent", agent_id]["blocked"] = sorted(problem.message for problem in problems)
    return entries
