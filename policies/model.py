"""What a loaded bundle is made of: the policies of three folders, checked against one vocabulary, under one hash."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from cedarpy import pst

from policies import Gate
from policies.schema import Compiled


class Folder(StrEnum):
    """Where a policy lies is what it may do: the folder is its kind."""

    PERMITS = "permits"
    GATES = "gates"
    NEVERS = "nevers"

    @property
    def effect(self) -> pst.Effect:
        """The only effect that policies in this folder may have."""
        return "permit" if self is Folder.PERMITS else "forbid"


@dataclass(frozen=True, slots=True)
class Policy:
    """One policy. `node` is its syntax tree, `gate` what a gate's annotations say."""

    id: str
    folder: Folder
    file: str
    line: int
    text: str
    node: pst.Template
    reason: str = ""
    gate: Gate | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Bundle:
    """Policies that passed every check of `policies.bundle`, which alone makes one.

    `hash` is the SHA-256 of the files' text and of the schema that the vocabulary implies: the same text over other
    actions is another bundle. `files` gives back what was loaded, by name relative to the bundle (`gates/x.cedar`),
    and loading that again under the same vocabulary gives the same hash.
    """

    hash: str
    files: Mapping[str, str]
    policies: Mapping[str, Policy]
    compiled: Compiled


def read_only(mapping: Mapping[str, Any]) -> Mapping[str, Any]:
    """A sorted copy that nobody can change."""
    return MappingProxyType(dict(sorted(mapping.items())))


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What a reload changes: policy ids, sorted. `changed` are those whose folder, annotations or meaning differ;
    moving a policy or rewriting a comment is no change.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)

    def as_dict(self) -> dict[str, list[str]]:
        """The difference as a JSON object."""
        return {"added": list(self.added), "removed": list(self.removed), "changed": list(self.changed)}


def diff(old: Bundle | None, new: Bundle) -> Difference:
    """From `old` (None: from nothing) to `new`."""
    before = old.policies if old is not None else {}
    return Difference(
        added=tuple(sorted(new.policies.keys() - before.keys())),
        removed=tuple(sorted(before.keys() - new.policies.keys())),
        changed=tuple(
            sorted(
                id_
                for id_ in new.policies.keys() & before.keys()
                if _meaning(before[id_]) != _meaning(new.policies[id_])
            )
        ),
    )


def _meaning(policy: Policy) -> tuple[Any, ...]:
    return (policy.folder, policy.node)
