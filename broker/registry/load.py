"""From a directory of YAML files to a `Registry`, or to the list of everything that is wrong with them."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from pydantic import TypeAdapter, ValidationError

from broker.errors import ConfigurationInvalid, Problem
from broker.files import read_regular
from broker.registry.check import SINGULAR, check
from broker.registry.core import Place, Registry
from broker.registry.nodes import Node, NotReadable, parse, repeated_keys
from broker.registry.schema import KEYS, KINDS, AgentRow, Rows, id_problem
from broker.registry.text import shown
from broker.sentences import meant, sentence_of

MAX_FILE = 1 << 20
MAX_FILES = 1_000
_KEY_FILE_MAX = 64 << 10
_ADAPTERS: Mapping[str, TypeAdapter[Any]] = {kind: TypeAdapter(row) for kind, row in KINDS.items()}


def load(directory: Path) -> Registry:
    """Read every `*.yaml` below `directory`.

    What is wrong inside one agent's entry blocks that agent; anything else raises ConfigurationInvalid with every
    problem found, each with its file and line. Names that begin with a dot are passed over.
    """
    return _Loading(directory).registry()


@dataclass(frozen=True, slots=True)
class _Entry:
    file: str
    line: int
    node: Node


class _Loading:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._problems: list[Problem] = []
        self._blocked: dict[str, list[Problem]] = {}
        self._broken: dict[str, set[str]] = {}  # agent -> fields that do not make sense on their own
        self._entries: dict[str, dict[str, _Entry]] = {kind: {} for kind in KINDS}

    def registry(self) -> Registry:
        for file in self._files():
            self._read(file)
        valid: dict[str, Any] = {kind: dict(self._valid(kind)) for kind in KINDS}
        rows = Rows.model_construct(**valid)
        problems, blocked = check(rows, where=self._where, declared=self._entries, broken=self._broken)
        for agent_id, found in blocked.items():
            self._blocked.setdefault(agent_id, []).extend(found)
        problems += self._problems
        if problems:
            problems += (problem for found in self._blocked.values() for problem in found)
            raise ConfigurationInvalid(
                "The registry is broken; nothing of it is in force.", problems=_by_place(problems)
            )
        return Registry(
            rows=rows,
            blocked={key: tuple(_by_place(found)) for key, found in self._blocked.items()},
            places={key: self._where("agents", key, ("review", "expires")) for key in rows.agents},
        )

    # --- Files --------------------------------------------------------------------------------------------------------

    def _files(self) -> Iterator[Path]:
        if not self._directory.is_dir():
            raise ConfigurationInvalid(
                "There is no registry.", problems=[Problem("not a directory", str(self._directory))]
            )
        found: list[Path] = []
        for folder, folders, names in os.walk(self._directory):
            folders[:] = [name for name in folders if not name.startswith(".")]
            found += [Path(folder, name) for name in names if not name.startswith(".")]
        for path in found:
            if path.suffix == ".yml":
                self._problems.append(Problem("would be ignored: rename it to end in .yaml", self._shown(path)))
        files = sorted(path for path in found if path.suffix == ".yaml")
        if not files:
            self._problems.append(Problem("holds no *.yaml file", str(self._directory)))
        if len(files) > MAX_FILES:
            self._problems.append(Problem(f"holds more than {MAX_FILES} files", str(self._directory)))
        yield from files[:MAX_FILES]

    def _shown(self, path: Path) -> str:
        name = str(Path(self._directory.name, path.relative_to(self._directory)))
        return name if name.isprintable() else shown(name, 200)

    def _read(self, path: Path) -> None:
        file = self._shown(path)
        try:
            node = parse(read_regular(path, MAX_FILE), file)
        except NotReadable as error:
            self._problems.append(error.problem)
            return
        except (OSError, ValueError) as error:
            self._problems.append(Problem(_cause(error), file))
            return
        if node is None or node.value is None:
            return
        if not isinstance(node.value, dict):
            self._problems.append(Problem("must be a mapping of kinds: " + ", ".join(KINDS), file, node.line))
            return
        for key, line in node.repeated:
            self._problems.append(Problem(f"{key} is given twice, first in line {node.key_lines[key]}", file, line))
        for kind, section in node.value.items():
            self._section(kind, section, file, node.key_lines[kind])

    def _section(self, kind: str, section: Node, file: str, line: int) -> None:
        if kind not in KINDS:
            self._problems.append(Problem(f"unknown key {shown(kind)}{meant(kind, KINDS)}", file, line))
            return
        if section.value is not None and not isinstance(section.value, dict):
            self._problems.append(Problem(f"{kind} must be a mapping of ids", file, line))
            return
        for entry_id, line_again in section.repeated:
            first_line = section.key_lines[entry_id]
            sentence = f"{SINGULAR[kind]} {shown(entry_id)}: is given twice, first in {file}:{first_line}"
            self._problems.append(Problem(sentence, file, line_again))
        for entry_id, node in (section.value or {}).items():
            entry = _Entry(file, section.key_lines[entry_id], node)
            first = self._entries[kind].get(entry_id)
            wrong = id_problem(kind, entry_id)
            if wrong is not None:
                sentence = f"{SINGULAR[kind]} {shown(entry_id)}: {wrong}"
            elif first is not None:
                sentence = f"{SINGULAR[kind]} {entry_id}: is given twice, first in {first.file}:{first.line}"
            else:
                self._entries[kind][entry_id] = entry
                continue
            self._problems.append(Problem(sentence, file, entry.line))

    def _where(self, kind: str, entry_id: str, path: tuple[str | int, ...]) -> Place:
        entry = self._entries[kind][entry_id]
        return entry.file, entry.node.place(path, entry.line)[1]

    # --- Entries ------------------------------------------------------------------------------------------------------

    def _valid(self, kind: str) -> Iterator[tuple[str, Any]]:
        """The rows of one kind that make sense on their own. An agent always does: what is wrong is left out of it."""
        for entry_id, entry in self._entries[kind].items():
            data, problems = self._prepared(kind, entry_id, entry)
            broken: set[str] = set()
            try:
                row = _ADAPTERS[kind].validate_json(orjson.dumps(data), strict=True)
            except ValidationError as error:
                row = None
                problems += (self._problem(kind, entry_id, entry, found) for found in _told(error))
                broken = {str(step) for found in error.errors() for step in found["loc"][:1] or AgentRow.model_fields}
            if kind == "agents" and problems:
                row = row or AgentRow.model_validate_json(_without(data, broken))
                self._blocked[entry_id] = problems
                self._broken[entry_id] = broken
            elif problems:
                self._problems += problems
                continue
            yield entry_id, row

    def _prepared(self, kind: str, entry_id: str, entry: _Entry) -> tuple[Any, list[Problem]]:
        """The entry's data, with the contents of the files that it names, and what is wrong on this level already."""

        def problem(sentence: str, line: int) -> Problem:
            return Problem(f"{SINGULAR[kind]} {entry_id}: {sentence}", entry.file, line)

        data = entry.node.plain()
        problems = [problem(sentence, line) for sentence, line in repeated_keys(entry.node)]
        if kind == "trust" and isinstance(data, dict):
            if "id" in data:
                problems.append(problem("unknown key 'id'", entry.node.place(["id"], entry.line)[1]))
            data["id"] = entry_id
            self._absolute(data.get("jwks"))
        if kind == "operators" and isinstance(data, dict) and isinstance(data.get("keys"), list):
            for index, key in enumerate(data["keys"]):
                try:
                    data["keys"][index] = self._inlined(key)
                except (OSError, ValueError) as error:
                    line = entry.node.place(["keys", index], entry.line)[1]
                    problems.append(problem(f"keys.{index}: {_cause(error)}", line))
        return data, problems

    def _absolute(self, source: object) -> None:
        if isinstance(source, dict):
            for name in ("file", "ca_file"):
                if isinstance(source.get(name), str):
                    source[name] = os.path.normpath(self._directory.absolute() / source[name])

    def _inlined(self, key: object) -> object:
        if not isinstance(key, dict) or "file" not in key:
            return key
        if key.keys() != {"file"} or not isinstance(key["file"], str):
            raise ValueError("file must be the path of a JWK, and stand alone")
        data = read_regular(self._directory / key["file"], _KEY_FILE_MAX)
        try:
            return orjson.loads(data)
        except orjson.JSONDecodeError:
            raise ValueError("the file is not a JWK") from None

    def _problem(self, kind: str, entry_id: str, entry: _Entry, error: Mapping[str, Any]) -> Problem:
        """One pydantic error with its place: `loc` may name union branches that are not in the file."""
        steps, line = entry.node.place(error["loc"], entry.line)
        if error["type"] == "extra_forbidden":
            sentence = f"unknown key {shown(str(steps.pop()))}{meant(str(error['loc'][-1]), KEYS)}"
        else:
            sentence = sentence_of(error)
        if "[key]" in error["loc"]:  # the key itself is what the sentence quotes
            steps.pop()
        path = ".".join(str(step) for step in steps)
        return Problem(f"{SINGULAR[kind]} {entry_id}: {path + ': ' if path else ''}{sentence}", entry.file, line)


def _told(error: ValidationError) -> Iterator[Mapping[str, Any]]:
    """The errors worth telling: a list whose items are wrong is not empty besides."""
    found = error.errors()
    for one in found:
        depth = len(one["loc"])
        if one["type"] != "too_short" or not any(
            len(e["loc"]) > depth and e["loc"][:depth] == one["loc"] for e in found
        ):
            yield one


def _without(data: Any, fields: set[str]) -> bytes:  # noqa: ANN401  (YAML data)
    kept = {key: value for key, value in data.items() if key not in fields} if isinstance(data, dict) else {}
    return orjson.dumps(kept)


def _cause(error: OSError | ValueError) -> str:
    return f"cannot be read: {error.strerror}" if isinstance(error, OSError) else str(error)


def _by_place(problems: list[Problem]) -> list[Problem]:
    return sorted(problems, key=lambda problem: (problem.file or "", problem.line or 0, problem.message))
