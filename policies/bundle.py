"""Load a bundle, or name everything that is wrong with it.

Loading either returns a `Bundle` or raises `PolicyInvalid`; keeping the last good one meanwhile is the caller's part.
"""

import dataclasses
import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import cedarpy
import orjson
from cedarpy import pst

from policies import Cause, Gate, Never, PolicyInvalid, Problem, Vocabulary
from policies.engine import Engine
from policies.lint import Lexicon
from policies.model import Bundle, Difference, Folder, Policy, diff, read_only
from policies.schema import Compiled, compile_vocabulary, sample_requests
from policies.text import MAX_POLICIES, Statement, bounds, statements

__all__ = ["Bundle", "Difference", "diff", "load_directory", "load_files"]

MAX_FILES = 1000

_FILE = re.compile(r"(permits|gates|nevers)/[A-Za-z0-9][A-Za-z0-9_.-]{0,127}\.cedar")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_AGE = re.compile(r"([1-9][0-9]{0,6})([smh])")
_SECONDS = {"s": 1, "m": 60, "h": 3600}
_ANNOTATIONS = {
    Folder.PERMITS: frozenset({"id", "reason"}),
    Folder.GATES: frozenset({"id", "reason", "approvers", "quorum", "max_age"}),
    Folder.NEVERS: frozenset({"id", "reason"}),
}
MAX_QUORUM = 20
_QUORUMS = frozenset(str(number) for number in range(1, MAX_QUORUM + 1))
MAX_REASON = 500


def load_directory(directory: Path, vocabulary: Vocabulary) -> Bundle:
    """The bundle in a directory. A file that looks like policy and lies where none is read is a problem, not nothing:
    a never that is not loaded opens a door. Hidden files and other kinds of file beside the folders are left alone.
    """
    if not directory.is_dir():
        raise PolicyInvalid([Problem("no such directory", str(directory))])
    problems: list[Problem] = []
    files: dict[str, str] = {}
    for path in _visible(directory):
        name = path.relative_to(directory).as_posix()
        if _FILE.fullmatch(name):
            try:
                files[name] = path.read_bytes().decode("utf-8")
            except (OSError, UnicodeDecodeError) as error:
                problems.append(Problem(f"cannot be read as UTF-8 text: {type(error).__name__}", name))
        elif name.split("/")[0] in set(Folder) or "cedar" in path.suffix.lower():
            problems.append(Problem("is no permits/*.cedar, gates/*.cedar or nevers/*.cedar file", name))
    if not problems and not any((directory / folder).is_dir() for folder in Folder):
        problems.append(Problem("has none of the folders permits, gates and nevers", str(directory)))
    if problems:
        raise PolicyInvalid(problems)
    return load_files(files, vocabulary)


def load_files(files: Mapping[str, str], vocabulary: Vocabulary) -> Bundle:
    """The bundle of these files, by name relative to the bundle, as `Bundle.files` gives them."""
    compiled = compile_vocabulary(vocabulary)
    problems = [problem for name, text in files.items() for problem in _file_problems(name, text)]
    if len(files) > MAX_FILES:
        problems.append(Problem(f"a bundle has at most {MAX_FILES} files"))
    if problems:
        raise PolicyInvalid(problems)
    read = [item for name, text in sorted(files.items()) for item in _read_file(name, text)]
    problems = [item for item in read if isinstance(item, Problem)]
    policies = [item for item in read if isinstance(item, Policy)]
    problems += _duplicates(policies)
    problems += _validate(policies, compiled)
    if problems:
        raise PolicyInvalid(problems)
    bundle = Bundle(
        hash=_hash(files, compiled),
        files=read_only(files),
        policies=read_only({policy.id: policy for policy in policies}),
        compiled=compiled,
    )
    _self_test(bundle)
    return bundle


def _hash(files: Mapping[str, str], compiled: Compiled) -> str:
    content = orjson.dumps(dict(files), option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(b"%d\n%b%b" % (len(content), content, compiled.schema_json)).hexdigest()


# --- Files ------------------------------------------------------------------------------------------------------------


def _visible(directory: Path) -> Iterator[Path]:
    """Every file below, in order, that is not hidden. Links are followed: mounted volumes consist of them."""
    for path in sorted(directory.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _visible(path)
        else:
            yield path


def _file_problems(name: str, text: str) -> Iterator[Problem]:
    if not _FILE.fullmatch(name):
        yield Problem("is no permits/*.cedar, gates/*.cedar or nevers/*.cedar file", name)
    else:
        yield from bounds(name, text)


def _read_file(name: str, text: str) -> list[Policy | Problem]:
    """The policies of one file, and what is wrong with them."""
    items: list[Policy | Problem] = []
    for cut in statements(name, text):
        items += _read_policy(cut) if isinstance(cut, Statement) else [cut]
    policies = [item for item in items if isinstance(item, Policy)]
    if len(policies) == len(items) and not _agrees(text, policies):
        items.append(Problem("Cedar reads other policies in this file than the loader does", name))
    return items


def _agrees(text: str, policies: list[Policy]) -> bool:
    """Whether Cedar, given the whole file, sees the very policies that were cut out of it."""
    try:
        whole = cedarpy.policies_to_pst(text)
    except ValueError:
        return False
    expected = {f"policy{n}": dataclasses.replace(policy.node, id=f"policy{n}") for n, policy in enumerate(policies)}
    return not whole.templates and whole.static_policies == expected


# --- One policy -------------------------------------------------------------------------------------------------------


def _read_policy(statement: Statement) -> list[Policy | Problem]:
    """One policy of a file, or what is wrong with it."""
    folder = Folder(statement.file.split("/")[0])

    def problem(message: str) -> Problem:
        return Problem(message, statement.file, statement.line)

    try:
        parsed = cedarpy.policies_to_pst(statement.text)
    except ValueError as error:
        return [problem(f"Cedar cannot read the policy that starts here: {_first_line(error)}")]
    if parsed.templates or len(parsed.static_policies) != 1:
        return [problem("templates are not used here: write the policy out for each agent")]
    (node,) = parsed.static_policies.values()
    messages = list(_annotation_problems(node, folder))
    if node.effect != folder.effect:
        messages.append(f"{folder}/ holds only `{folder.effect}` policies, this is a `{node.effect}`")
    if messages:
        return [problem(message) for message in messages]
    return [
        Policy(
            id=node.annotations["id"],
            folder=folder,
            file=statement.file,
            line=statement.line,
            text=statement.text,
            node=node,
            reason=node.annotations.get("reason", ""),
            gate=_gate(node.annotations) if folder is Folder.GATES else None,
        )
    ]


def _annotation_problems(node: pst.Template, folder: Folder) -> Iterator[str]:
    given = node.annotations
    for name in sorted(given.keys() - _ANNOTATIONS[folder]):
        yield f"unknown annotation @{name} in {folder}/"
    if not _ID.fullmatch(given.get("id", "")):
        yield '@id("...") is missing, or not made of letters, digits, `.`, `_` and `-`'
    reason = given.get("reason", "")
    if len(reason) > MAX_REASON or not reason.isprintable():
        yield f"@reason is longer than {MAX_REASON} characters or not printable"
    if folder is not Folder.GATES:
        return
    if not _ID.fullmatch(given.get("approvers", "")):
        yield '@approvers("team") is missing or empty: a gate must name who approves'
    if given.get("quorum", "1") not in _QUORUMS:
        yield f"@quorum must be a number from 1 to {MAX_QUORUM}"
    if "max_age" in given and not _AGE.fullmatch(given["max_age"]):
        yield '@max_age must look like "30s", "15m" or "8h"'


def _gate(annotations: Mapping[str, str]) -> Gate:
    age = _AGE.fullmatch(annotations.get("max_age", ""))
    return Gate(
        id=annotations["id"],
        approvers=annotations["approvers"],
        quorum=int(annotations.get("quorum", "1")),
        max_age_s=int(age[1]) * _SECONDS[age[2]] if age else None,
        reason=annotations.get("reason", ""),
    )


# --- All policies -----------------------------------------------------------------------------------------------------


def _duplicates(policies: list[Policy]) -> Iterator[Problem]:
    first: dict[str, Policy] = {}
    for policy in policies:
        other = first.setdefault(policy.id, policy)
        if other is not policy:
            yield Problem(
                f'@id("{policy.id}") is taken by the policy at {other.file}:{other.line}', policy.file, policy.line
            )
    if len(policies) > MAX_POLICIES:
        yield Problem(f"a bundle has at most {MAX_POLICIES} policies")


def _validate(policies: list[Policy], compiled: Compiled) -> Iterator[Problem]:
    """Types and names, against the generated schema; then the names that a schema cannot check."""
    text = "\n".join(policy.text for policy in policies)
    for error in cedarpy.validate_policies(text, compiled.schema, release_gil=True).errors:
        position = error.policy_id.removeprefix("policy")
        policy = policies[int(position)] if position.isdigit() and int(position) < len(policies) else None
        message = _first_line(error.error).removeprefix(f"for policy `{error.policy_id}`, ")
        yield Problem(message, policy.file, policy.line) if policy else Problem(message)
    lexicon = Lexicon(compiled.vocabulary)
    for policy in policies:
        for message in lexicon.misspelled(policy.node):
            yield Problem(message, policy.file, policy.line)


def _self_test(bundle: Bundle) -> None:
    """Ask one plain request per action. Raises `PolicyInvalid` where that alone makes a policy or the engine fail."""
    requests = list(sample_requests(bundle.compiled.vocabulary))
    problems = [
        Problem(f"self-test of action {request.action}: {'; '.join(decision.errors or decision.reasons)}")
        for request, decision in zip(requests, Engine(bundle=bundle).decide_batch(requests), strict=True)
        if isinstance(decision, Never) and decision.cause in {Cause.ERROR, Cause.REQUEST}
    ]
    if problems:
        raise PolicyInvalid(problems)


def _first_line(error: object) -> str:
    return (str(error).splitlines() or ["no reason given"])[0][:300]
