"""YAML with line numbers, and only the part of YAML that cannot surprise a reviewer.

Built from the parser's events instead of its object constructor, so that every value knows its line and so that the
following never get further: anchors and aliases (which can expand without bound), tags, several documents, repeated
keys, keys that are not text, floats. Plain scalars mean what YAML 1.2 says: `true`, `false`, `null`, whole numbers in
decimal; everything else, `no` and `2026-01-01` and `1_000` included, is text.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from broker.errors import Problem
from broker.registry.text import shown, unsafe_character, unsafe_offset

MAX_DEPTH = 12
MAX_NODES = 200_000

_WHOLE = re.compile(r"-?(?:0|[1-9][0-9]{0,18})")
_FRACTION = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+")
_WORDS: dict[str, bool | None] = {"true": True, "false": False, "null": None, "~": None, "": None}
_I64 = range(-(2**63), 2**63)
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C parser where PyYAML was built with it: ten times faster


@dataclass(slots=True)
class Node:
    """A value and the line it starts on. `value` is a scalar, a list of nodes, or a dict of nodes by key."""

    line: int
    value: Any
    key_lines: dict[str, int] = field(default_factory=dict)
    repeated: list[tuple[str, int]] = field(default_factory=list)  # keys given again, and the line of that

    def plain(self) -> Any:  # noqa: ANN401  (YAML data)
        """The value without its lines."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def place(self, path: Iterable[str | int], line: int) -> tuple[list[str | int], int]:
        """How much of `path` exists below this node, and the line of its last step, or `line` where none does.

        Steps that do not exist are passed over.
        """
        node, steps = self, []
        for step in path:
            if isinstance(node.value, dict) and isinstance(step, str) and step in node.value:
                node, line = node.value[step], node.key_lines[step]
            elif isinstance(node.value, list) and isinstance(step, int) and step < len(node.value):
                node = node.value[step]
                line = node.line
            else:
                continue
            steps.append(step)
        return steps, line


def repeated_keys(node: Node) -> Iterator[tuple[str, int]]:
    """Every key at or below `node` that its mapping has already, in words, with the line of the repetition."""
    for key, line in node.repeated:
        yield f"key {shown(key)} is given twice", line
    if isinstance(node.value, dict | list):
        for member in node.value.values() if isinstance(node.value, dict) else node.value:
            yield from repeated_keys(member)


class _Refused(Exception):
    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


class NotReadable(Exception):
    """A file that is not YAML, or more of YAML than is allowed here. `problem` says what and where."""

    def __init__(self, message: str, file: str, line: int | None) -> None:
        self.problem = Problem(message, file, line)
        super().__init__(str(self.problem))


def parse(data: bytes, file: str) -> Node | None:
    """Read one file; None where it holds nothing but comments. Raises NotReadable.

    Repeated keys are noted in their node instead (`repeated_keys`): whose problem they are depends on where they are.
    """
    try:
        text = data.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise NotReadable("not UTF-8", file, line) from None
    offset = unsafe_offset(text)
    if offset is not None:
        character = unsafe_character(text[offset])
        raise NotReadable(f"the character {character} is not allowed", file, text.count("\n", 0, offset) + 1)
    builder = _Builder()
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            builder.take(event)
    except _Refused as refusal:
        raise NotReadable(str(refusal), file, refusal.line) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise NotReadable(f"not YAML: {error.problem}", file, mark.line + 1 if mark else None) from None
    except yaml.YAMLError:
        raise NotReadable("not YAML", file, None) from None
    return builder.root


class _Builder:
    """Puts parser events together. Iterative, so that nesting is bounded by us and not by the stack."""

    def __init__(self) -> None:
        self.root: Node | None = None
        self._open: list[Node] = []
        self._keys: list[tuple[str, int] | None] = []  # per open node, the key that waits for its value
        self._nodes = 0
        self._documents = 0

    def take(self, event: yaml.Event) -> None:
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                raise _Refused(line, "one file holds one document: remove the '---'")
        elif isinstance(event, yaml.CollectionEndEvent):
            self._open.pop()
            self._keys.pop()
        elif isinstance(event, yaml.NodeEvent):
            self._check(event, line)
            if isinstance(event, yaml.ScalarEvent):
                self._place(Node(line, _scalar(event, line)), line)
            else:
                self._start(Node(line, {} if isinstance(event, yaml.MappingStartEvent) else []), line)

    def _check(self, event: yaml.NodeEvent, line: int) -> None:
        if event.anchor is not None:
            raise _Refused(line, "anchors and aliases are not allowed: write the value out")
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise _Refused(line, f"tags are not allowed: remove {shown(tag)}")
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise _Refused(line, f"more than {MAX_NODES} values in one file")

    def _start(self, node: Node, line: int) -> None:
        self._place(node, line)
        if len(self._open) >= MAX_DEPTH:
            raise _Refused(line, f"nested more than {MAX_DEPTH} levels deep")
        self._open.append(node)
        self._keys.append(None)

    def _place(self, node: Node, line: int) -> None:
        if not self._open:
            self.root = node
            return
        parent = self._open[-1]
        if isinstance(parent.value, list):
            parent.value.append(node)
            return
        pending = self._keys[-1]
        if pending is None:
            if not isinstance(node.value, str):
                raise _Refused(line, "a key must be text: write it in quotes")
            self._keys[-1] = (node.value, line)
            return
        self._keys[-1] = None
        key, key_line = pending
        if key in parent.value:
            parent.repeated.append((key, key_line))
            return
        parent.value[key] = node
        parent.key_lines[key] = key_line


def _scalar(event: yaml.ScalarEvent, line: int) -> str | int | bool | None:
    text: str = event.value
    character = unsafe_character(text)
    if character is not None:
        raise _Refused(line, f"the character {character} is not allowed")
    if event.style:  # quoted or block text is text
        return text
    if text in _WORDS:
        return _WORDS[text]
    if _WHOLE.fullmatch(text):
        number = int(text)
        if number not in _I64:
            raise _Refused(line, "the number does not fit in 64 bits")
        return number
    if _FRACTION.fullmatch(text):
        raise _Refused(line, "numbers with a fraction are not allowed: use whole units, or quotes for text")
    return text
