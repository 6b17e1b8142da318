"""Conditions of a policy, in Cedar's JSON form, as text for people.

`context.` and `context.parameters.` are left out, constants are folded, a negated comparison is turned round. The text
is for reading: it is not Cedar, and nothing parses it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

ALWAYS = "always"
IMPOSSIBLE = "never"

Json = Any
"""An expression in Cedar's JSON form: an object with one member, named for the operator."""

_BINARY = {
    "==": "==",
    "!=": "!=",
    "<": "<",
    "<=": "<=",
    ">": ">",
    ">=": ">=",
    "+": "+",
    "-": "-",
    "*": "*",
    "in": "in",
    "contains": "contains",
    "containsAll": "contains all of",
    "containsAny": "contains any of",
    "getTag": "tag",
    "hasTag": "has tag",
}
_OPPOSITE = {"==": "!=", "!=": "==", "<": ">=", "<=": ">", ">": "<=", ">=": "<"}
_TRUE: Json = {"Value": True}
_FALSE: Json = {"Value": False}


def conditions_text(conditions: Sequence[Mapping[str, Json]]) -> str:
    """The clauses of one policy as one condition: `ALWAYS`, `IMPOSSIBLE`, or the text of what must hold."""
    whole = _TRUE
    for condition in conditions:
        body = condition["body"]
        clause = {"!": {"arg": body}} if condition["kind"] == "unless" else body
        whole = {"&&": {"left": whole, "right": clause}}
    simple = _fold(whole)
    if simple == _TRUE:
        return ALWAYS
    return IMPOSSIBLE if simple == _FALSE else _text(simple)


def _fold(expression: Json) -> Json:
    """The same condition without constants in conjunctions, disjunctions, negations and choices."""
    operator, body = _only(expression)
    match operator:
        case "&&" | "||":
            absorbing, neutral = (_FALSE, _TRUE) if operator == "&&" else (_TRUE, _FALSE)
            sides = [_fold(body["left"]), _fold(body["right"])]
            if absorbing in sides:
                return absorbing
            left = [side for side in sides if side != neutral]
            return {operator: {"left": left[0], "right": left[1]}} if len(left) == 2 else (left or [neutral])[0]
        case "!":
            return _negated(_fold(body["arg"]))
        case "if-then-else":
            test, then, other = (_fold(body[part]) for part in ("if", "then", "else"))
            if test in (_TRUE, _FALSE):
                return then if test == _TRUE else other
            if other == _FALSE:
                return _fold({"&&": {"left": test, "right": then}})
            return {operator: {"if": test, "then": then, "else": other}}
        case _:
            return expression


def _negated(expression: Json) -> Json:
    operator, body = _only(expression)
    if operator == "Value" and isinstance(body, bool):
        return {"Value": not body}
    if operator == "!":
        return body["arg"]
    if operator in _OPPOSITE:
        return {_OPPOSITE[operator]: body}
    return {"!": {"arg": expression}}


def _text(expression: Json, *, nested: bool = False) -> str:
    """The expression as text, in brackets if it is `nested` in one that could be misread without."""
    operator, body = _only(expression)
    if operator in _BINARY:
        return _bracket(f"{_operand(body['left'])} {_BINARY[operator]} {_operand(body['right'])}", nested=nested)
    if operator in {"&&", "||"}:
        plain = {operator, *_BINARY}  # sides that need no brackets
        sides = (_text(body[side], nested=_only(body[side])[0] not in plain) for side in ("left", "right"))
        return _bracket((" and " if operator == "&&" else " or ").join(sides), nested=nested)
    write = _WRITERS.get(operator)
    return write(body) if write else f"{operator}({', '.join(_text(argument) for argument in _arguments(body))})"


def _operand(expression: Json) -> str:
    return _text(expression, nested=True)


def _bracket(text: str, *, nested: bool) -> str:
    return f"({text})" if nested else text


def _only(expression: Json) -> tuple[str, Json]:
    ((operator, body),) = expression.items()
    return operator, body


def _arguments(body: Json) -> list[Json]:
    return body if isinstance(body, list) else list(body.values())


def _value(value: Json) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return f'"{value}"'
        case {"__entity": {"type": kind, "id": id_}}:
            return f'{kind}::"{id_}"'
        case list():
            return f"[{', '.join(_value(each) for each in value)}]"
        case _:
            return str(value)


def _attribute(body: Json) -> str:
    base = _operand(body["left"])
    return body["attr"] if base in {"context", "parameters"} else f"{base}.{body['attr']}"


def _has(body: Json) -> str:
    path = ".".join([body["attr"]] if isinstance(body["attr"], str) else body["attr"])
    base = _operand(body["left"])
    return f"{path} is given" if base in {"context", "parameters"} else f"{base} has {path}"


def _like(body: Json) -> str:
    pattern = "".join("*" if part == "Wildcard" else part["Literal"].replace("*", "\\*") for part in body["pattern"])
    return f'{_operand(body["left"])} is like "{pattern}"'


def _is(body: Json) -> str:
    inside = f" in {_operand(body['in'])}" if "in" in body else ""
    return f"{_operand(body['left'])} is {body['entity_type']}{inside}"


def _choice(body: Json) -> str:
    return f"(if {_text(body['if'])} then {_text(body['then'])} else {_text(body['else'])})"


_WRITERS: dict[str, Callable[[Json], str]] = {
    "Value": _value,
    "Var": str,
    "unknown": lambda body: str(body[0]["Value"]),
    ".": _attribute,
    "has": _has,
    "like": _like,
    "is": _is,
    "if-then-else": _choice,
    "!": lambda body: f"not {_operand(body['arg'])}",
    "neg": lambda body: f"-{_operand(body['arg'])}",
    "isEmpty": lambda body: f"{_operand(body['arg'])} is empty",
    "Set": lambda body: f"[{', '.join(_text(each) for each in body)}]",
    "Record": lambda body: f"{{{', '.join(f'{name}: {_text(each)}' for name, each in body.items())}}}",
}
