"""The page that leads a newcomer through the house: every path on it exists."""

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PACKAGE = ROOT / "companion_core"
FEWEST_QUESTIONS = 20

# In code marks and in the boxes of the diagrams; with or without the package's name in front.
PATHS = set(
    re.findall(r"(?<![\w/.-])((?:[\w.]+/)*[\w.-]+\.(?:py|toml)|(?:[\w.]+/)+)(?=[`\]\s),])", PAGE)
)
QUESTIONS = re.findall(r"^\| ([^|]+\?) \| ([^|]+) \|$", PAGE, re.MULTILINE)


def test_a_path_that_the_page_names_exists() -> None:
    missing = {
        path
        for path in PATHS
        if not any((folder / path).exists() for folder in (ROOT, PACKAGE, PACKAGE / "runtime"))
        and not list(PACKAGE.glob(f"*/{path}"))
    }
    assert not missing


def test_the_tree_names_each_folder_of_the_package() -> None:
    tree = PAGE.split("```")[1]
    folders = {file.parent for file in PACKAGE.rglob("__init__.py")} - {PACKAGE}
    named = set(re.findall(r"^ +(\w+)/ ", tree, re.MULTILINE))
    assert {folder.name for folder in folders} == named


def test_each_question_has_an_answer_that_exists() -> None:
    assert len(QUESTIONS) >= FEWEST_QUESTIONS
    for question, answer in QUESTIONS:
        paths = re.findall(r"`(companion_core/[\w./]+)`", answer)
        assert paths, question
        assert all((ROOT / path).is_file() for path in paths), question
