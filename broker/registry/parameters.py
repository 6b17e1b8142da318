"""Whether what a request gives as parameters is what the registered actions take. Nothing is coerced."""

import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

from broker.errors import InvalidDetails
from broker.model import Parameter, ParameterType, Resource
from broker.registry.text import shown, unsafe_character

_I64 = range(-(2**63), 2**63)


def narrow_parameters(
    resource: Resource, actions: Iterable[str], parameters: Mapping[str, Any]
) -> dict[str, str | int | bool]:
    """`parameters` as the named actions of `resource` take them, in the order of their names.

    Several actions in one request share their parameters: each value must suit every action that knows it, and what one
    of them requires must be there. Raises InvalidDetails with a sentence for the caller; it never repeats a value.
    """
    known: dict[str, list[Parameter]] = {}
    for action_id in actions:
        action = resource.actions.get(action_id)
        if action is None:
            raise InvalidDetails(f"Resource {resource.id} has no action {shown(action_id)}.")
        for parameter in action.parameters.values():
            known.setdefault(parameter.name, []).append(parameter)
    for name in parameters:
        if name.startswith("__"):
            raise InvalidDetails(f"Parameter {shown(name)}: names beginning with '__' are not allowed.")
        if name not in known:
            raise InvalidDetails(f"Parameter {shown(name)} is not one that the requested actions take.")
    for name, takers in known.items():
        if name not in parameters and any(parameter.required for parameter in takers):
            raise InvalidDetails(f"Parameter '{name}' is required.")
    return {name: _checked(name, parameters[name], known[name]) for name in sorted(parameters)}


def _checked(name: str, value: object, takers: Iterable[Parameter]) -> str | int | bool:
    for parameter in takers:
        wrong = _wrong(value, parameter)
        if wrong is not None:
            raise InvalidDetails(f"Parameter '{name}' {wrong}.")
    assert isinstance(value, str | int | bool)
    return value


def _wrong(value: object, parameter: Parameter) -> str | None:
    match parameter.type:
        case ParameterType.STRING:
            return _wrong_string(value, parameter)
        case ParameterType.INTEGER:
            return _wrong_integer(value, parameter)
        case ParameterType.BOOLEAN:
            return None if isinstance(value, bool) else "must be true or false"


def _wrong_string(value: object, parameter: Parameter) -> str | None:
    if not isinstance(value, str):
        return "must be a string"
    if len(value) > parameter.max_length:
        return f"must be at most {parameter.max_length} characters long"
    if "\n" in value or "\t" in value or unsafe_character(value) is not None:
        return "must not contain control, formatting or invisible characters"
    if not unicodedata.is_normalized("NFC", value):  # two spellings of one text would be two values to a policy
        return "must be in Unicode normal form C"
    if parameter.values and value not in parameter.values:
        return f"must be one of {', '.join(shown(choice) for choice in parameter.values)}"
    return None


def _wrong_integer(value: object, parameter: Parameter) -> str | None:
    if isinstance(value, float):
        return "must be a whole number: use the smallest unit, without a fraction"
    if isinstance(value, bool) or not isinstance(value, int):
        return "must be a whole number"
    if value not in _I64:
        return "must fit in 64 bits"
    if parameter.minimum is not None and value < parameter.minimum:
        return f"must be at least {parameter.minimum}"
    if parameter.maximum is not None and value > parameter.maximum:
        return f"must be at most {parameter.maximum}"
    return None
