"""Cases: requests with the answer that the author expects, as YAML, run against a bundle in tests and reviews.

    cases:
      - name: a small credit needs nobody
        request: {agent: dispute-bot, action: credits:propose, parameters: {invoice: INV-1, amount_cents: 4000}}
        expect: automatic            # or approval, or never
        policies: [propose-credits]  # exactly those that decide

A policy that no case exercises fails the run: nobody has seen what it does. `request` may also give `trigger`,
`delegated`, `on_behalf`, `depth`, `trust` and `workload`; `resource` is the action's own unless given.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from policies import Decision, PolicyInvalid, Problem, Request, Vocabulary, as_dict
from policies.engine import Engine

MAX_CASES_FILE = 1024 * 1024

_CASE_KEYS = {"name": str, "request": dict, "expect": str, "policies": list}
_REQUEST_TYPES: dict[str, type] = {
    "agent": str,
    "resource": str,
    "action": str,
    "parameters": dict,
    "trigger": str,
    "delegated": bool,
    "on_behalf": bool,
    "depth": int,
    "trust": str,
    "workload": str,
}
_DEFAULTS: dict[str, Any] = {"trust": "case", "workload": "case"}
_OUTCOMES = ("automatic", "approval", "never")


@dataclass(frozen=True, slots=True)
class Case:
    """One expectation, and the line where it stands."""

    name: str
    line: int
    request: Request
    expect: str
    policies: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CaseResult:
    """A case and the decision it got. `failures` is empty if that was the expected one."""

    case: Case
    decision: Decision
    failures: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The result as a JSON object."""
        return {
            "name": self.case.name,
            "line": self.case.line,
            "passed": not self.failures,
            "failures": list(self.failures),
            "expected": {"outcome": self.case.expect, "policies": list(self.case.policies)},
            "decision": as_dict(self.decision),
        }


@dataclass(frozen=True, slots=True)
class Report:
    """A whole run. `unexercised` are the policies that decided no case."""

    bundle: str
    results: tuple[CaseResult, ...]
    unexercised: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether every case was answered as expected, and every policy had a part in one."""
        return not self.unexercised and not any(result.failures for result in self.results)

    def as_dict(self) -> dict[str, Any]:
        """The run as a JSON object."""
        return {
            "bundle": self.bundle,
            "passed": self.passed,
            "cases": [result.as_dict() for result in self.results],
            "unexercised": list(self.unexercised),
        }


def run_cases(engine: Engine, cases: Sequence[Case]) -> Report:
    """Ask every case, and compare."""
    decisions = engine.decide_batch([case.request for case in cases])
    results = [CaseResult(case, got, tuple(_compare(case, got))) for case, got in zip(cases, decisions, strict=True)]
    seen = {policy for decision in decisions for policy in decision.policies}
    return Report(
        bundle=engine.bundle.hash,
        results=tuple(results),
        unexercised=tuple(sorted(engine.bundle.policies.keys() - seen)),
    )


def _compare(case: Case, decision: Decision) -> Iterator[str]:
    if decision.outcome != case.expect:
        yield f"expected {case.expect}, got {decision.outcome}"
    if set(decision.policies) != set(case.policies):
        yield f"expected the policies {list(case.policies)}, got {list(decision.policies)}"


# --- Reading ----------------------------------------------------------------------------------------------------------


def read_cases(text: str, vocabulary: Vocabulary, *, file: str = "cases.yaml") -> list[Case]:
    """The cases of one file. Raises `PolicyInvalid` for anything unknown, repeated, missing or of the wrong type."""
    if len(text) > MAX_CASES_FILE:
        raise PolicyInvalid([Problem(f"larger than {MAX_CASES_FILE} characters", file)])
    try:
        loader = _Loader(text)
        try:
            body = loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise PolicyInvalid([Problem(error.problem or "not YAML", file, line)]) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise PolicyInvalid([Problem("not YAML that can be read", file)]) from error
    if not isinstance(body, dict) or set(body) - {_LINE} != {"cases"} or not isinstance(body["cases"], list):
        raise PolicyInvalid([Problem("must be one mapping with the key `cases` and a list under it", file, 1)])
    cases: list[Case] = []
    problems: list[Problem] = []
    for number, entry in enumerate(body["cases"], start=1):
        line = entry.get(_LINE) if isinstance(entry, dict) else None
        found = list(_case_problems(entry))
        problems += [Problem(f"case {number}: {message}", file, line) for message in found]
        if not found:
            cases.append(_case(entry, vocabulary))
    if problems:
        raise PolicyInvalid(problems)
    return cases


def _case_problems(entry: Any) -> Iterator[str]:  # noqa: ANN401  (whatever stands in the file)
    if not isinstance(entry, dict):
        yield "must be a mapping"
        return
    yield from _mistyped(entry, _CASE_KEYS, required=set(_CASE_KEYS))
    if isinstance(entry.get("request"), dict):
        yield from (f"request: {each}" for each in _mistyped(entry["request"], _REQUEST_TYPES, {"agent", "action"}))
    if isinstance(entry.get("expect"), str) and entry["expect"] not in _OUTCOMES:
        yield f"expect must be one of {', '.join(_OUTCOMES)}"
    if isinstance(entry.get("policies"), list) and not all(isinstance(each, str) for each in entry["policies"]):
        yield "policies must be a list of policy ids"


def _mistyped(entry: dict[Any, Any], types: Mapping[str, type], required: set[str]) -> Iterator[str]:
    for key, value in entry.items():
        if key == _LINE:
            continue
        if key not in types:
            yield f"unknown key {str(key)[:80]!a}"
        elif type(value) is not types[key]:
            yield f"{key} must be of type {types[key].__name__}"
    yield from (f"{key} is missing" for key in sorted(required - entry.keys()))


def _case(entry: dict[str, Any], vocabulary: Vocabulary) -> Case:
    fields = {key: value for key, value in (_DEFAULTS | entry["request"]).items() if key != _LINE}
    action = vocabulary.actions.get(fields["action"])
    fields.setdefault("resource", action.resource if action else "")
    fields["parameters"] = {key: value for key, value in fields.get("parameters", {}).items() if key != _LINE}
    return Case(
        name=entry["name"],
        line=entry[_LINE],
        request=Request(**fields),
        expect=entry["expect"],
        policies=tuple(entry["policies"]),
    )


_LINE = "\0line"
"""Under this key, which no YAML text can contain, the loader keeps where a mapping starts."""


class _Loader(yaml.SafeLoader):
    """YAML as people expect it: a key given twice is a mistake, and nothing refers to anything else."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.get_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="aliases are not used here", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        mapping: dict[Any, Any] = {_LINE: node.start_mark.line + 1}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=deep)
            if not isinstance(key, str) or key in mapping:
                problem = f"the key {str(key)[:80]!a} is given twice, or is no string"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
            mapping[key] = self.construct_object(value_node, deep=True)
        return mapping
