"""The page for products: what it names exists, and its table of events is the code's."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from pathlib import Path

import pytest

import companion_core
from companion_core.companion import Companion
from companion_core.serving.events import BOUND, EVENTS, Event

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "embedding.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
CODE = " ".join(re.findall(r"`([^`\n]+)`", PAGE))


def test_every_event_has_its_row() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE, re.MULTILINE))
    told = {kind.value: text for kind, text in EVENTS.items()}
    assert {kind: rows[kind] for kind in told} == told
    assert f"It keeps {BOUND} events" in PAGE
    fields = {field.name for field in dataclasses.fields(Event)}
    assert all(f"`{name}`" in PAGE for name in fields)


def test_what_it_says_of_a_companion_exists() -> None:
    named = set(re.findall(r"companion\.(\w+)\b(?!\.toml)", " ".join(BLOCKS) + CODE)) - {"toml"}
    assert named
    assert all(hasattr(Companion, name) for name in named)
    arguments = re.findall(r"^\| `(\w+)` \| ", PAGE.split("## A client")[0], re.MULTILINE)
    known = {*inspect.signature(Companion.open).parameters} - {"egress"}
    assert set(arguments) == known


def test_what_it_says_of_the_status_and_of_errors_exists() -> None:
    status = {field.name for field in dataclasses.fields(companion_core.CompanionStatus)}
    part = PAGE.split("## What it says of itself")[1].split("##")[0]
    assert all(f"`{name}`" in part for name in status)
    for name in ("UsageError", "Refused", "PluginFault", "EnvironmentUnavailable"):
        assert f"| `{name}` |" in PAGE
        assert issubclass(getattr(companion_core, name), companion_core.CompanionError)


@pytest.mark.parametrize("block", BLOCKS)
def test_each_block_is_python(block: str) -> None:
    compile(block, "embedding.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
