"""Cedar files cut into single policies, each with its place: Cedar's own errors name neither file nor line.

Cutting needs to know comments and strings, and nothing else: in Cedar a `;` outside of them ends a policy. That this
reading and Cedar's agree is checked afterwards (`policies.bundle`), so a disagreement refuses the bundle.

Bounds come first. Cedar recurses on expressions, and a file that nests some thousand levels deep ends the process.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from policies import Problem

MAX_FILE = 256 * 1024
MAX_POLICY = 16 * 1024
MAX_OPERATORS = 400  # each can add at most one level of nesting; Cedar is safe with several times as many
MAX_POLICIES = 10_000  # in one bundle

_LEXEME = re.compile(
    r"""(?P<space>\s+|//[^\n]*)
      | (?P<string>"(?:[^"\\]|\\.)*")
      | (?P<end>;)
      | (?P<operator>[(\[{.&|+\-*<>=!]|\b(?:if|has|like|in|is)\b)
      | (?P<word>[A-Za-z0-9_]+)
      | (?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Statement:
    """One policy as written, without the comments before it. `line` is where it starts."""

    file: str
    line: int
    text: str


def bounds(file: str, text: str) -> Iterator[Problem]:
    """What is wrong with a file before anyone reads its meaning."""
    if len(text) > MAX_FILE:
        yield Problem(f"larger than {MAX_FILE} characters", file)
        return
    for number, line in enumerate(text.split("\n"), start=1):
        # Format characters can make a page show another order than the one that is executed; a bare carriage return
        # ends a comment for Cedar, and for hardly any editor.
        shown = line.removesuffix("\r").replace("\t", " ")
        if any(not character.isprintable() for character in shown):
            yield Problem("contains a character that cannot be seen", file, number)


def statements(file: str, text: str) -> Iterator[Statement | Problem]:
    """The policies of one file in order. Call after `bounds` found nothing."""
    line = 1
    start: tuple[int, int] | None = None  # offset and line of the policy being read
    operators = 0
    for lexeme in _LEXEME.finditer(text):
        kind = lexeme.lastgroup
        if kind != "space" and start is None:
            start, operators = (lexeme.start(), line), 0
        operators += kind == "operator"
        line += lexeme.group().count("\n")
        if kind == "end" and start is not None:
            yield _bounded(Statement(file, start[1], text[start[0] : lexeme.end()]), operators)
            start = None
    if start is not None:
        yield Problem("the last policy does not end: no `;` follows", file, start[1])


def _bounded(statement: Statement, operators: int) -> Statement | Problem:
    if len(statement.text) > MAX_POLICY:
        return Problem(f"the policy is longer than {MAX_POLICY} characters", statement.file, statement.line)
    if operators > MAX_OPERATORS:
        return Problem(f"the policy has more than {MAX_OPERATORS} operators", statement.file, statement.line)
    return statement
