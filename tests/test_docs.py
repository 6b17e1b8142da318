"""The documentation, held against the code: tables, commands, links, snippets, words."""

import ast
import importlib
import re
import shlex
from functools import cache
from pathlib import Path

import click
import pytest
import yaml
from pydantic import TypeAdapter

from broker.cli import taskpass
from broker.config import Config
from broker.errors import TaskpassError
from broker.ledger.event_types import EVENT_TYPES
from broker.registry.schema import KINDS, IdentityRow
from broker.web.guards import GUARDS
from docs.render import PARTS, rendered

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
BY_NAME = {str(page.relative_to(ROOT)): page for page in PAGES}

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_INLINE_CODE = re.compile(r"`[^`\n]+`")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
_ALTERNATIVES = {"COMMAND", "AUDIENCE", "DECISION", "TASK", "POSITION", "KID"}  # what a reader puts in

pages = pytest.mark.parametrize("page", PAGES, ids=BY_NAME)


@cache
def text_of(page: Path) -> str:
    return page.read_text()


def prose_of(page: Path) -> str:
    return _INLINE_CODE.sub("", _FENCE.sub("", text_of(page)))


def snippets(page: Path, language: str) -> list[str]:
    return [code for found, code in _FENCE.findall(text_of(page)) if found == language]


# --- What comes from the code -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [page for page in PAGES if "<!-- generated: " in text_of(page)], ids=lambda p: p.name)
def test_generated_parts_are_what_the_code_says(page):
    assert rendered(text_of(page)) == text_of(page), "run: python -m docs.render"


def test_every_generated_part_is_somewhere():
    shown = {name for page in PAGES for name in re.findall(r"<!-- generated: (\w+) -->", text_of(page))}
    assert shown == set(PARTS)


def test_the_tables_are_whole():
    api, configuration = text_of(BY_NAME["docs/http-api.md"]), text_of(BY_NAME["docs/configuration.md"])
    for method, path in GUARDS:
        assert f"| {method} | `{path}` |" in api
    for name in EVENT_TYPES:
        assert f"| `{name}` |" in api
    for kind in TaskpassError.__subclasses__():
        assert kind.__module__ != TaskpassError.__module__ or f"| `{kind.code}` | {kind.status} |" in api
    for section in Config.model_fields:
        assert f"| `{section}" in configuration


def test_every_registry_field_is_in_the_operator_guide():
    guide = text_of(BY_NAME["docs/operator-guide.md"])
    for kind in ("owners", "agents", "resources", "operators", "verifiers"):
        for name, field in KINDS[kind].model_fields.items():
            members = getattr(field.annotation, "model_fields", None) or {name: field}
            assert name in guide, f"{kind}.{name}"
            assert all(re.search(rf"`(?:\w+\.)?{member}`", guide) for member in members), f"{kind}.{name}"


# --- Commands ---------------------------------------------------------------------------------------------------------


def commands_in(page: Path) -> list[str]:
    """Every `taskpass ...` that a reader could type: in consoles, and inline."""
    lines = [line for code in snippets(page, "console") for line in code.replace("\\\n", " ").splitlines()]
    typed = [line[2:] for line in lines if line.startswith("$ ")]
    typed += [code.strip("`") for code in _INLINE_CODE.findall(_FENCE.sub("", text_of(page)))]
    parts = [part.strip() for line in typed for part in re.split(r"&&|\$\(|\)|;|\|(?= )", line)]
    return [part for part in parts if re.match(r"taskpass(?: |$)", part)]


@pages
def test_commands_exist_with_their_options(page):
    for typed in commands_in(page):
        words = shlex.split(typed.partition(" -- ")[0].partition(" > ")[0])[1:]
        command: click.Command = taskpass
        known = {name for param in taskpass.params for name in param.opts + param.secondary_opts}
        while words and isinstance(command, click.Group) and not words[0].startswith("-"):
            word = words.pop(0)
            if word in _ALTERNATIVES:
                break
            found = command.get_command(click.Context(command), word)
            assert found is not None, f"{typed!r}: there is no {word}"
            command = found
            known |= {name for param in command.params for name in param.opts + param.secondary_opts} | {"--help"}
        for option in (word.partition("=")[0] for word in words if re.fullmatch(r"--?[a-z][a-z-]*(=.*)?", word)):
            assert option in known | {"--help"}, f"{typed!r}: {option} is no option of it"


def test_every_command_is_shown_somewhere():
    shown = " ".join(text_of(page) for page in PAGES)
    missing = [name for name in taskpass.list_commands(click.Context(taskpass)) if f"taskpass {name}" not in shown]
    assert missing == []


# --- Links ------------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    headings = _HEADING.findall(_FENCE.sub("", text_of(page)))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pages
def test_links_resolve(page):
    for target in _LINK.findall(_FENCE.sub("", text_of(page))):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        aim = (page.parent / path).resolve() if path else page
        assert aim.exists(), f"{target}: no such file"
        assert not anchor or anchor in anchors(aim), f"{target}: no such heading"


@pages
def test_files_of_the_project_that_are_named_exist(page):
    for code in _INLINE_CODE.findall(_FENCE.sub("", text_of(page))):
        path = code.strip("`")
        if re.fullmatch(r"(?:broker|issuers|policies|tests|docs|demo|bench)/[\w/]*(?:\.\w+)?", path):
            assert (ROOT / path).exists(), f"{path} does not exist"


# --- Snippets ---------------------------------------------------------------------------------------------------------


@pages
def test_python_compiles_and_imports_what_exists(page):
    for code in snippets(page, "python"):
        tree = compile(code, page.name, "exec", flags=ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("broker."):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


@pages
def test_yaml_and_json_parse(page):
    for code in [*snippets(page, "yaml"), *snippets(page, "json")]:
        assert yaml.safe_load(code)


@pages
def test_registry_examples_use_fields_that_exist(page):
    for code in snippets(page, "yaml"):
        for kind, entries in yaml.safe_load(code).items():
            for name, entry in entries.items() if kind in KINDS else ():
                if kind == "trust":
                    TypeAdapter(KINDS[kind]).validate_python({"id": name, **entry})
                    continue
                assert entry.keys() <= KINDS[kind].model_fields.keys(), f"{kind}.{name}"
                for identity in entry.get("identities", ()):
                    IdentityRow.model_validate(identity)


def test_the_picture_is_an_svg_that_names_itself():
    picture = (ROOT / "docs" / "how-it-works.svg").read_text()
    assert picture.startswith("<svg ")
    assert "<title" in picture
    assert "prefers-color-scheme: dark" in picture
    assert not re.search(r"<script|href=|https?://(?!www\.w3\.org/2000/svg)", picture)


# --- Words ------------------------------------------------------------------------------------------------------------

_FLUFF = re.compile(
    r"\b(?:seamless|blazing|cutting.edge|state.of.the.art|world.class|robust|leverag\w+|empower\w*|game.changing"
    r"|next.generation|effortless\w*|revolutionary|simply|delightful|supercharge\w*)\b",
    re.IGNORECASE,
)
_OF_A_MACHINE = re.compile(r"/(?:work|tmp|home|root|Users)/|(?<![\w.])localhost:\d|pypi\.|npmjs|docker\.io")


@pages
def test_no_fluff_no_emoji_and_no_place_of_its_making(page):
    assert not _FLUFF.search(prose_of(page)), _FLUFF.search(prose_of(page))
    assert not re.search("[\U0001f000-\U0001faff\u2600-\u27bf\ufe0f]", text_of(page))
    assert not _OF_A_MACHINE.search(text_of(page)), _OF_A_MACHINE.search(text_of(page))


@pages
def test_lines_of_prose_fit(page):
    for number, line in enumerate(_FENCE.sub(lambda found: "\n" * found[0].count("\n"), text_of(page)).splitlines(), 1):
        assert len(line) <= 126 or line.startswith(("|", "![", "<")), f"{page.name}:{number}"
