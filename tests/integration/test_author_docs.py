"""The author's guide: every hook has a page, and what the pages show runs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from companion_core.cli import COMMANDS, plugins_command
from companion_core.hookspecs import AuthorityHooks, RuntimeHooks
from companion_core.plugin_host.selection import Role
from companion_core.plugin_host.snapshots import snapshot_provider

pytestmark = pytest.mark.integration

PAGES = Path(__file__).parents[2] / "docs" / "plugins"
HOOKS = sorted(
    name
    for hooks in (AuthorityHooks, RuntimeHooks)
    for name in vars(hooks)
    if name.startswith("companion_")
)


def blocks(page: Path, language: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_every_hook_has_a_page_that_the_tutorial_names():
    tutorial = (PAGES / "README.md").read_text(encoding="utf-8")
    assert sorted(page.stem for page in PAGES.glob("companion_*.md")) == HOOKS
    for hook in HOOKS:
        assert f"({hook}.md)" in tutorial


@pytest.mark.parametrize("hook", HOOKS)
def test_what_a_page_shows_is_a_provider_that_conforms(hook: str):
    shown = blocks(PAGES / f"{hook}.md", "python")
    namespace: dict = {}
    exec(compile("\n".join(shown), f"{hook}.md", "exec"), namespace)  # noqa: S102 - the page's own example
    role = Role(hook.removeprefix("companion_"))
    assert not isinstance(snapshot_provider(role, namespace[hook]()), str)
    assert any("check_" in block for block in shown)


def test_the_tutorial_shows_what_the_commands_do(tmp_path: Path, capsys: pytest.CaptureFixture):
    from companion_core.cli import main  # noqa: PLC0415 - the command line as a function

    (first, *_) = blocks(PAGES / "README.md", "console")
    command, *files = first.splitlines()
    assert main([*command.split()[2:], "--into", str(tmp_path)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed == [f"{tmp_path}/{files[0]}", *files[1:]]

    console = "".join(blocks(PAGES / "README.md", "console"))
    for verb in re.findall(r"companion plugins (\w+)", console):
        assert verb in plugins_command.command.commands
    for name in re.findall(r"^\$ companion (\w+)", console, re.MULTILINE):
        assert name in COMMANDS
    for text in blocks(PAGES / "README.md", "toml"):
        tomllib.loads(text)
