"""Attacker: a first-party plugin that reaches into the core past the seam.

A plugin of this repository uses no more of the core than a third party can rely on.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

pytestmark = pytest.mark.security

ROOT = Path(__file__).parents[2]
SEAM = frozenset(
    {
        "companion_core.hookimpl",
        "companion_core.errors",
        "companion_core.hookspecs",
        "companion_core.keyring_backend",  # made for plugins, and documented as theirs
        "companion_core.providers",
    }
)
PLUGINS = sorted(file.parent for file in (ROOT / "plugins").glob("*/pyproject.toml"))


def core_imports(source: str) -> set[str]:
    """Return what of the core `source` imports, each as module or `companion_core.name`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "companion_core":
            found |= {f"companion_core.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return {name for name in found if name.split(".")[0] == "companion_core"}


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.name)
def test_a_plugin_uses_the_seam_and_nothing_else_of_the_core(plugin: Path):
    used = {
        name
        for file in plugin.glob("companion_*/**/*.py")
        for name in core_imports(file.read_text(encoding="utf-8"))
    }
    assert used
    assert used <= SEAM


def test_there_are_plugins_to_check():
    assert len(PLUGINS) >= 3


@pytest.mark.parametrize(
    "source",
    [
        "import companion_core.authority.keychain",
        "from companion_core.egress import interface as egress",
        "from companion_core.runtime.process import launcher",
        "def f():\n    from companion_core.plugin_host.host import load_plugins",
    ],
)
def test_a_planted_import_past_the_seam_is_found(source: str):
    assert core_imports(source) - SEAM
