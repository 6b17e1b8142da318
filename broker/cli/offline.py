"""`taskpass registry` and `taskpass policy`: what reviewers and CI ask of the files, without a broker."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from broker.cli.errors import DONE, FAILED, Failure
from broker.cli.options import group
from broker.cli.output import Output
from broker.cli.text import clean, plural

if TYPE_CHECKING:
    from broker.registry import Registry
    from policies.engine import Engine

_DIRECTORY = click.Path(file_okay=False, path_type=Path)
_REGISTRY = click.option(
    "--registry",
    "registry_dir",
    type=_DIRECTORY,
    default=Path("registry"),
    show_default=True,
    help="Directory of the registry that the policies speak about.",
)
_POLICIES = click.argument("directory", type=_DIRECTORY, default=Path("policies"))


@group(short_help="Check registry files.")
def registry() -> None:
    """The registry's files: who and what is registered."""


@registry.command()
@click.argument("directory", type=_DIRECTORY, default=Path("registry"))
def check(directory: Path) -> int:
    """Check the registry in DIRECTORY: every problem with its file and line.

    Exit code 1 when it is broken, and also when an agent is blocked (an expired review, a missing owner): a broken
    registry stops all issuance, a blocked agent only its own.
    """
    import time

    loaded = load_registry(directory)
    blocked = [str(problem) for problem in loaded.problems(int(time.time() * 1000))]
    counts = {kind: len(getattr(loaded, kind)) for kind in _SINGULAR}
    body = {"directory": str(directory), "hash": loaded.hash, **counts, "blocked_agents": blocked}
    Output.current().one(body, human=lambda: _checked(counts, loaded.hash, blocked), name=lambda: loaded.hash)
    return FAILED if blocked else DONE


_SINGULAR = {
    "agents": "agent",
    "resources": "resource",
    "owners": "owner",
    "operators": "operator",
    "verifiers": "verifier",
    "trust": "trust row",
}


def _checked(counts: Mapping[str, int], digest: str, blocked: Sequence[str]) -> str:
    told = ", ".join(plural(count, _SINGULAR[kind]) for kind, count in counts.items())
    lines = [f"{'The registry loads' if blocked else 'The registry is sound'}: {told}", f"hash {digest}"]
    return "\n".join([*lines, *(f"blocked: {clean(problem)}" for problem in blocked)])


@group(short_help="Check, test and tabulate policies.")
def policy() -> None:
    """The policies in permits/ (automatic), gates/ (a person approves) and nevers/ (never), beside their cases.yaml."""


@policy.command("check")
@_POLICIES
@_REGISTRY
def check_policies(directory: Path, registry_dir: Path) -> None:
    """Check the policies in DIRECTORY against the registry: syntax, types, ids, folders, misspelled names."""
    bundle = load_engine(directory, registry_dir).bundle
    found = [
        {"id": each.id, "folder": each.folder.value, "file": each.file, "line": each.line, "reason": each.reason}
        for each in bundle.policies.values()
    ]
    body = {"directory": str(directory), "hash": bundle.hash, "policies": found}
    Output.current().one(
        body,
        human=lambda: f"{plural(len(found), 'policy', 'policies')}, no problems\nhash {bundle.hash}",
        name=lambda: bundle.hash,
    )


@policy.command()
@_POLICIES
@_REGISTRY
@click.option(
    "--cases",
    "cases_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Default: cases.yaml in DIRECTORY.",
)
def test(directory: Path, registry_dir: Path, cases_file: Path | None) -> int:
    """Ask the policies every case, and compare. A policy that no case exercises fails the run too."""
    from policies import PolicyInvalid
    from policies.cases import read_cases, run_cases

    engine = load_engine(directory, registry_dir)
    file = cases_file or directory / "cases.yaml"
    try:
        cases = read_cases(file.read_text(), engine.bundle.compiled.vocabulary, file=str(file))
    except PolicyInvalid as error:
        raise _invalid("The cases do not load.", error) from error
    except UnicodeDecodeError as error:
        raise Failure("configuration_invalid", f"{file} is not UTF-8.") from error
    report = run_cases(engine, cases)
    body = report.as_dict()
    Output.current().one(body, human=lambda: _tested(body, str(file)), name=lambda: report.bundle)
    return DONE if report.passed else FAILED


def _tested(body: Mapping[str, Any], file: str) -> str:
    lines = []
    for case in body["cases"]:
        mark = click.style("pass", fg="green") if case["passed"] else click.style("FAIL", fg="red", bold=True)
        lines.append(f"{mark}  {clean(case['name'])}")
        lines += [f"      {file}:{case['line']}: {clean(failure)}" for failure in case["failures"]]
    lines += [
        f"{click.style('FAIL', fg='red', bold=True)}  no case exercises the policy {id_}" for id_ in body["unexercised"]
    ]
    failed = sum(not case["passed"] for case in body["cases"]) + len(body["unexercised"])
    lines.append(f"{plural(len(body['cases']), 'case')}, {plural(failed, 'failure')}")
    return "\n".join(lines)


@policy.command()
@_POLICIES
@_REGISTRY
@click.option("--agent", "agents", multiple=True, metavar="ID", help="This agent only; repeatable.")
@click.option("--action", "actions", multiple=True, metavar="ID", help="This action only; repeatable.")
def matrix(directory: Path, registry_dir: Path, agents: tuple[str, ...], actions: tuple[str, ...]) -> None:
    """Who may do what: agent by action, automatic, with approval or never, and under which conditions.

    An action outside an agent's reviewed boundary is never, whatever the policies say.
    """
    from policies.matrix import matrix as cells_of

    loaded = load_registry(registry_dir)
    engine = _engine(directory, loaded)
    try:
        cells = cells_of(engine, agents=agents or None, actions=actions or None)
    except KeyError as error:
        raise Failure("not_found", f"The registry has no {error.args[0]}.", exit_code=6) from None
    rows = []
    for cell in cells:
        row = cell.as_dict()
        if (
            cell.action not in loaded.agents[cell.agent].boundary.get(cell.resource, frozenset())
            and cell.outcome != "never"
        ):
            row |= {"outcome": "never", "text": f"never: outside the reviewed boundary (policies alone: {row['text']})"}
        rows.append({"id": f"{cell.agent}/{cell.action}", **row})
    Output.current().many(
        rows, [("AGENT", "agent"), ("ACTION", "action"), ("OUTCOME", "outcome"), ("CONDITIONS", "text")]
    )


# --- Loading ----------------------------------------------------------------------------------------------------------


def load_registry(directory: Path) -> "Registry":
    """The registry in a directory. Raises ConfigurationInvalid with every problem."""
    from broker.registry import load
    from broker.rules import trust_rows

    loaded = load(directory)
    trust_rows(loaded)  # refuses two vouchers for one subject
    return loaded


def load_engine(directory: Path, registry_dir: Path) -> "Engine":
    """The policies in a directory, checked against that registry. Raises Failure with every problem."""
    return _engine(directory, load_registry(registry_dir))


def _engine(directory: Path, loaded: "Registry") -> "Engine":
    from broker.rules import vocabulary
    from policies import PolicyInvalid
    from policies.bundle import load_directory
    from policies.engine import Engine

    try:
        return Engine(bundle=load_directory(directory, vocabulary(loaded)))
    except PolicyInvalid as error:
        raise _invalid("The policies do not load.", error) from error


def _invalid(sentence: str, error: Any) -> Failure:  # noqa: ANN401  (PolicyInvalid, imported late)
    return Failure("configuration_invalid", sentence, problems=[str(problem) for problem in error.problems])
