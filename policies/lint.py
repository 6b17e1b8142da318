"""Misspellings that Cedar's validator lets pass, and that would leave a policy silently without effect.

A policy about an agent, owner or system that does not exist never matches; so does a comparison with a string outside
of a closed set. In a `permit` that is a nuisance, in a `forbid` it is an open door. Both are refused.
"""

from collections.abc import Iterator
from typing import Any

from cedarpy import pst

from policies import Vocabulary
from policies.schema import entity_ids

_COMPARISONS = frozenset({"eq", "not_eq", "contains", "contains_all", "contains_any"})


class Lexicon:
    """The names and closed sets of one vocabulary."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._known = entity_ids(vocabulary)
        self._closed = _closed_sets(vocabulary)

    def misspelled(self, node: pst.Template) -> Iterator[str]:
        """What a policy names that is not here. Actions and attributes are left to Cedar's validator."""
        for uid in sorted(pst.entity_uids(node), key=str):
            kind = str(uid.type)
            if kind != "Action" and kind in self._known and uid.id not in self._known[kind]:
                yield f"{kind} {uid.id!a} is not registered"
        for comparison in _comparisons(node.clauses):
            for one, other in ((comparison.left, comparison.right), (comparison.right, comparison.left)):
                allowed = self._closed.get(path := _path(one))
                if allowed is not None:
                    for text in sorted(set(_strings(other)) - allowed):
                        yield f"{path} is never {text!a}: it is one of {', '.join(sorted(allowed)) or 'nothing'}"


def _closed_sets(vocabulary: Vocabulary) -> dict[str, frozenset[str]]:
    """Paths whose strings come from a closed set. A parameter is closed if it is so in every action that has it."""
    resources = vocabulary.resources.values()
    closed = {
        "context.trigger": vocabulary.triggers,
        "resource.data_classes": frozenset(name for resource in resources for name in resource.data_classes),
        "resource.audience": frozenset(resource.audience for resource in resources),
    }
    values: dict[str, list[tuple[str, ...]]] = {}
    for action in vocabulary.actions.values():
        for name, parameter in action.parameters.items():
            if parameter.type == "string":
                values.setdefault(f"context.parameters.{name}", []).append(parameter.values)
    return closed | {path: frozenset().union(*sets) for path, sets in values.items() if all(sets)}


def _comparisons(tree: Any) -> Iterator[pst.BinaryOp]:  # noqa: ANN401  (any node, or a tuple or mapping of nodes)
    if isinstance(tree, pst.BinaryOp) and tree.op in _COMPARISONS:
        yield tree
    if isinstance(tree, tuple):
        children: Any = tree
    elif isinstance(tree, dict):
        children = tree.values()
    else:
        children = (getattr(tree, name) for name in getattr(tree, "__dataclass_fields__", ()))
    for child in children:
        yield from _comparisons(child)


def _path(expression: pst.Expr) -> str:
    """`context.parameters.reason` for such an expression, and the empty string for any other."""
    match expression:
        case pst.Var(name):
            return name
        case pst.GetAttr(base, attr):
            parent = _path(base)
            return f"{parent}.{attr}" if parent else ""
        case _:
            return ""


def _strings(expression: pst.Expr) -> Iterator[str]:
    match expression:
        case pst.StringLit(value):
            yield value
        case pst.Set(elements):
            for element in elements:
                yield from _strings(element)
        case _:
            pass
