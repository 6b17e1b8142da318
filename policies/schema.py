"""The Cedar schema and entities of a vocabulary, and a request in Cedar's form.

    Agent in [Owner]            owner, and the attributes that any agent has (optional where not all have it)
    Resource in [System, Owner] system, audience, owner, data_classes, leaves_boundary
    Action::"read", "write"     groups; each registered action is in one of them
    context                     trigger, delegated, on_behalf, depth, trust, workload, parameters

Facts about a request live in `context` only, flat: each nested value costs microseconds per decision.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import cedarpy
import orjson

from policies import INT_MAX, INT_MIN, Action, Parameter, PolicyInvalid, Problem, Request, Scalar, Vocabulary

ACCESS_GROUPS = ("read", "write")
MAX_ID = 256
MAX_TEXT = 4096  # characters of one string parameter; the registry may say less
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")  # no leading underscore: `__entity` and `__extn` are Cedar's own

_CEDAR_TYPE = {"string": "String", "integer": "Long", "boolean": "Boolean"}
_FACTS = {
    "trigger": "String",
    "delegated": "Boolean",
    "on_behalf": "Boolean",
    "depth": "Long",
    "trust": "String",
    "workload": "String",
}

Uid = tuple[str, str]
"""An entity: (type, id)."""


class RequestRefused(ValueError):
    """A request that the vocabulary has no words for. The sentence is fit for the caller and repeats none of its
    values.
    """


@dataclass(frozen=True, slots=True)
class Compiled:
    """A vocabulary that Cedar has accepted. `schema_json` is canonical: equal vocabularies give equal bytes."""

    vocabulary: Vocabulary
    schema_json: bytes
    schema: cedarpy.Schema
    entities: cedarpy.Entities

    def above(self, kind: str, id_: str) -> frozenset[Uid]:
        """An agent, action or resource with everything that it is `in`, itself included. KeyError if unknown."""
        vocabulary = self.vocabulary
        match kind:
            case "Agent":
                return frozenset({(kind, id_), ("Owner", vocabulary.agents[id_].owner)})
            case "Action":
                return frozenset({(kind, id_), (kind, vocabulary.actions[id_].access)})
            case _:
                entry = vocabulary.resources[id_]
                return frozenset({("Resource", id_), ("System", entry.system), ("Owner", entry.owner)})


def entity_ids(vocabulary: Vocabulary) -> dict[str, frozenset[str]]:
    """Every entity that a policy may name, by type."""
    owners = {agent.owner for agent in vocabulary.agents.values()}
    return {
        "Agent": frozenset(vocabulary.agents),
        "Resource": frozenset(vocabulary.resources),
        "Owner": frozenset(owners | {resource.owner for resource in vocabulary.resources.values()}),
        "System": frozenset(resource.system for resource in vocabulary.resources.values()),
        "Action": frozenset(vocabulary.actions) | frozenset(ACCESS_GROUPS),
    }


def compile_vocabulary(vocabulary: Vocabulary) -> Compiled:
    """Generate and parse schema and entities. Raises `PolicyInvalid` for a vocabulary that contradicts itself."""
    problems = [Problem(message) for message in _contradictions(vocabulary)]
    if problems:
        raise PolicyInvalid(problems)
    schema_json = orjson.dumps(_schema(vocabulary), option=orjson.OPT_SORT_KEYS)
    try:
        schema = cedarpy.Schema.from_json_str(schema_json.decode())
        entities = cedarpy.Entities.from_json_str(orjson.dumps(_entities(vocabulary)).decode(), schema)
    except ValueError as error:
        raise PolicyInvalid([Problem(f"the schema generated from the registry does not load: {error}")]) from error
    return Compiled(vocabulary=vocabulary, schema_json=schema_json, schema=schema, entities=entities)


def encode(request: Request, vocabulary: Vocabulary) -> dict[str, Any]:
    """The request in Cedar's form, after the check that it fits the vocabulary. Raises `RequestRefused`.

    What agents control reaches Cedar only as scalars under declared names, so no JSON of theirs is read as an entity
    or an extension value. Entities are given as dicts: no id is ever parsed as Cedar text.
    """
    if not all(type(id_) is str for id_ in (request.agent, request.action, request.resource, request.trigger)):
        raise RequestRefused("agent, action, resource and trigger must be strings")
    action = vocabulary.actions.get(request.action)
    if action is None:
        raise RequestRefused("the action is not registered")
    if request.agent not in vocabulary.agents:
        raise RequestRefused("the agent is not registered")
    if request.resource != action.resource or request.resource not in vocabulary.resources:
        raise RequestRefused("the resource has no such action")
    if request.trigger not in vocabulary.triggers:
        raise RequestRefused("the task's trigger is of no known kind")
    _check_parameters(request.parameters, action.parameters)
    context = {
        "trigger": request.trigger,
        "delegated": request.delegated,
        "on_behalf": request.on_behalf,
        "depth": request.depth,
        "trust": request.trust,
        "workload": request.workload,
        "parameters": dict(request.parameters),
    }
    try:
        context_json = orjson.dumps(context).decode()
    except (TypeError, ValueError) as error:  # lone surrogates, subclasses of dict keys, the like
        raise RequestRefused("the request cannot be written as JSON") from error
    return {
        "principal": {"type": "Agent", "id": request.agent},
        "action": {"type": "Action", "id": request.action},
        "resource": {"type": "Resource", "id": request.resource},
        "context": context_json,
    }


def sample_requests(vocabulary: Vocabulary) -> Iterator[Request]:
    """One well-formed request per action, by the first agent: what the self-test of a bundle asks."""
    for agent in sorted(vocabulary.agents)[:1]:
        for action_id, action in sorted(vocabulary.actions.items()):
            yield Request(
                agent=agent,
                resource=action.resource,
                action=action_id,
                parameters={name: _sample(parameter) for name, parameter in action.parameters.items()},
                trigger=min(vocabulary.triggers),
                trust="sample",
                workload="sample",
            )


def _sample(parameter: Parameter) -> Scalar:
    if parameter.values:
        return parameter.values[0]
    if parameter.type == "string":
        return ""
    return 0 if parameter.type == "integer" else False


# --- Requests ---------------------------------------------------------------------------------------------------------


def _check_parameters(given: Mapping[str, Scalar], declared: Mapping[str, Parameter]) -> None:
    if not given.keys() <= declared.keys():
        raise RequestRefused("a parameter is given that the action does not declare")
    for name, parameter in declared.items():
        if name in given:
            _check_value(name, given[name], parameter)
        elif parameter.required:
            raise RequestRefused(f"parameter {name} is missing")


def _check_value(name: str, value: Scalar, parameter: Parameter) -> None:
    if type(value) is not {"string": str, "integer": int, "boolean": bool}[parameter.type]:
        raise RequestRefused(f"parameter {name} must be of type {parameter.type}")
    if isinstance(value, int) and not INT_MIN <= value <= INT_MAX:
        raise RequestRefused(f"parameter {name} does not fit 64 bits")
    if isinstance(value, str) and len(value) > MAX_TEXT:
        raise RequestRefused(f"parameter {name} is longer than {MAX_TEXT} characters")
    if parameter.values and value not in parameter.values:
        raise RequestRefused(f"parameter {name} is none of its allowed values")


# --- Generation -------------------------------------------------------------------------------------------------------


def _contradictions(vocabulary: Vocabulary) -> Iterator[str]:
    for kind, ids in entity_ids(vocabulary).items():
        for bad in sorted(id_ for id_ in ids if not id_ or len(id_) > MAX_ID or not id_.isprintable()):
            yield f"{kind} id {bad[:80]!a} is empty, too long or not printable"
    if not vocabulary.triggers:
        yield "there must be at least one kind of trigger"
    kinds: dict[str, type] = {}
    for agent_id, agent in vocabulary.agents.items():
        for name, value in agent.attributes.items():
            if not NAME.fullmatch(name) or name == "owner":
                yield f"agent {agent_id}: {name!a} cannot be the name of an attribute"
            if type(value) not in (str, int, bool):
                yield f"agent {agent_id}: attribute {name!a} must be a string, an integer or a boolean"
            elif kinds.setdefault(name, type(value)) is not type(value):
                yield f"agent {agent_id}: attribute {name!a} has another type than that of another agent"
    for action_id, action in vocabulary.actions.items():
        for message in _action_contradictions(action_id, action, vocabulary):
            yield f"action {action_id}: {message}"


def _action_contradictions(action_id: str, action: Action, vocabulary: Vocabulary) -> Iterator[str]:
    if action_id in ACCESS_GROUPS:
        yield "the name belongs to a group of actions"
    if action.access not in ACCESS_GROUPS:
        yield "access must be read or write"
    if action.resource not in vocabulary.resources:
        yield f"its resource {action.resource!a} is not registered"
    for name, parameter in action.parameters.items():
        if not NAME.fullmatch(name):
            yield f"{name!a} cannot be the name of a parameter"
        if parameter.type not in _CEDAR_TYPE:
            yield f"parameter {name!a} has no type"
        if parameter.values and parameter.type != "string":
            yield f"parameter {name!a} lists values, which only strings can"


def _schema(vocabulary: Vocabulary) -> dict[str, Any]:
    owner, system = {"type": "Entity", "name": "Owner"}, {"type": "Entity", "name": "System"}
    actions: dict[str, Any] = {group: {} for group in ACCESS_GROUPS}
    for action_id, action in vocabulary.actions.items():
        parameters = {
            name: {"type": _CEDAR_TYPE[parameter.type], "required": parameter.required}
            for name, parameter in action.parameters.items()
        }
        context = {name: {"type": cedar} for name, cedar in _FACTS.items()} | {"parameters": _record(parameters)}
        actions[action_id] = {
            "memberOf": [{"id": action.access}],
            "appliesTo": {"principalTypes": ["Agent"], "resourceTypes": ["Resource"], "context": _record(context)},
        }
    resource = {
        "system": system,
        "owner": owner,
        "audience": {"type": "String"},
        "data_classes": {"type": "Set", "element": {"type": "String"}},
        "leaves_boundary": {"type": "Boolean"},
    }
    return {
        "": {
            "entityTypes": {
                "Owner": {},
                "System": {},
                "Agent": {"memberOfTypes": ["Owner"], "shape": _record({"owner": owner} | _agent_shape(vocabulary))},
                "Resource": {"memberOfTypes": ["Owner", "System"], "shape": _record(resource)},
            },
            "actions": actions,
        }
    }


def _agent_shape(vocabulary: Vocabulary) -> dict[str, Any]:
    kinds = {name: type(value) for agent in vocabulary.agents.values() for name, value in agent.attributes.items()}
    return {
        name: {
            "type": {str: "String", int: "Long", bool: "Boolean"}[kind],
            "required": all(name in agent.attributes for agent in vocabulary.agents.values()),
        }
        for name, kind in kinds.items()
    }


def _record(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "Record", "attributes": dict(attributes)}


def _entities(vocabulary: Vocabulary) -> list[dict[str, Any]]:
    agents = [
        {
            "uid": _uid("Agent", agent_id),
            "attrs": {**agent.attributes, "owner": _entity("Owner", agent.owner)},
            "parents": [_uid("Owner", agent.owner)],
        }
        for agent_id, agent in vocabulary.agents.items()
    ]
    resources = [
        {
            "uid": _uid("Resource", resource_id),
            "attrs": {
                "system": _entity("System", resource.system),
                "owner": _entity("Owner", resource.owner),
                "audience": resource.audience,
                "data_classes": sorted(resource.data_classes),
                "leaves_boundary": resource.leaves_boundary,
            },
            "parents": [_uid("System", resource.system), _uid("Owner", resource.owner)],
        }
        for resource_id, resource in vocabulary.resources.items()
    ]
    return agents + resources


def _uid(kind: str, id_: str) -> dict[str, str]:
    return {"type": kind, "id": id_}


def _entity(kind: str, id_: str) -> dict[str, Any]:
    return {"__entity": _uid(kind, id_)}
