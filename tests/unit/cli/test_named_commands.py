"""Each command that the product names to a person exists, and so do the options beside it."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import click
import pytest

from companion_core.cli import COMMANDS, cli
from companion_core.cli.root_options import take_root_options

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / "companion_core"
NAMED = re.compile(
    r"(?:(?P<before>\w+) )?\bcompanion (?P<words>[a-z]+(?: [a-z]+)?)(?P<rest>[^`;,.:\n]*)"
)
QUOTED = re.compile(r"`companion (?P<words>[a-z]+(?: [a-z]+)?)(?P<rest>[^`\n]*)`")
# "the companion runs" speaks of the process.
PROSE = {"a", "another", "dead", "earlier", "running", "second", "the"}


def fault(words: str, rest: str) -> str | None:
    """Return what is wrong with a command as it is named, None if it can be typed so."""
    first, *more = words.split()
    if first not in COMMANDS:
        return f"there is no command {first}"
    command = import_module(f"companion_core.cli.{first}_command").command
    if isinstance(command, click.Group) and more:
        if more[0] not in command.commands:
            return f"{first} has no {more[0]}"
        command = command.commands[more[0]]
    known = {name for each in take_root_options(command).params for name in each.opts}
    named = re.findall(r"(?<= )--[a-z][a-z-]*", rest.partition(" -- ")[0])
    unknown = set(named) - known - {"--help"}
    return f"{words} has no {', '.join(sorted(unknown))}" if unknown else None


def texts_of(path: Path) -> Iterator[str]:
    """Yield the texts in a module that a person may read: all but docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    prose = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and isinstance(node.body[0] if node.body else None, ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node.value


def faults_of(text: str) -> Iterator[str]:
    for match in NAMED.finditer(text):
        if (match["before"] or "").lower() in PROSE:
            continue
        if found := fault(match["words"], match["rest"]):
            yield f"{found}: {match[0]!r}"


def test_every_advice_names_commands_that_exist() -> None:
    reasons = tomllib.loads((PACKAGE / "reasons.toml").read_text(encoding="utf-8"))
    wrong = {name: [*faults_of(row["advice"])] for name, row in reasons.items()}
    assert {name: found for name, found in wrong.items() if found} == {}


def test_every_message_of_the_code_names_commands_that_exist() -> None:
    paths = [*PACKAGE.rglob("*.py"), *(ROOT / "plugins").glob("*/companion_*/*.py")]
    wrong = {
        str(path.relative_to(ROOT)): [each for text in texts_of(path) for each in faults_of(text)]
        for path in paths
    }
    assert {name: found for name, found in wrong.items() if found} == {}


def test_every_help_names_commands_that_exist() -> None:
    with click.Context(cli) as context:
        helps = {"companion": cli.get_help(context)}
    for name in COMMANDS:
        command = import_module(f"companion_core.cli.{name}_command").command
        with click.Context(command) as context:
            helps[name] = command.get_help(context)
    wrong = {
        name: [*faults_of(" ".join(re.sub(r"Usage:.*", "", text).split()))]
        for name, text in helps.items()
    }
    assert {name: found for name, found in wrong.items() if found} == {}


def test_every_page_names_commands_that_exist() -> None:
    pages = [ROOT / "README.md", ROOT / "SECURITY.md", *(ROOT / "docs").rglob("*.md")]
    wrong = {
        str(page.relative_to(ROOT)): [
            f"{found}: {match[0]}"
            for match in QUOTED.finditer(page.read_text(encoding="utf-8"))
            if (found := fault(match["words"], match["rest"]))
        ]
        for page in pages
        if page.name != "rules.md"  # of docstrings
    }
    assert {name: found for name, found in wrong.items() if found} == {}


@pytest.mark.parametrize(
    "text", ["run companion nothing", "companion up --nothing", "companion models nothing"]
)
def test_a_command_that_does_not_exist_is_found(text: str) -> None:
    assert [*faults_of(text)]
    assert not [*faults_of("the companion nothing; companion up --detach; companion models list")]
