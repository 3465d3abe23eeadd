"""What `companion exec` says of files that come before the environment that it gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from companion_core.cli.exec_command import told_files

pytestmark = pytest.mark.unit


def test_files_that_are_there_are_named_and_none_is_opened(tmp_path: Path) -> None:
    folder, home = tmp_path / "project", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    assert told_files("aider", folder, home) == []
    (folder / ".env").touch(0o000)
    (home / ".aider.conf.yml").touch(0o000)
    assert told_files("/usr/bin/aider", folder, home) == [
        "aider reads .env first: an address that stands there wins; "
        "companion connect aider leads it here",
        "aider reads ~/.aider.conf.yml first: an address that stands there wins; "
        "companion connect aider leads it here",
    ]
    assert len(told_files("aider", folder, None)) == 1
    assert told_files("python", folder, home) == []


def test_a_program_of_settings_alone_is_told_the_way(tmp_path: Path) -> None:
    assert told_files("codex", tmp_path, tmp_path) == [
        "codex takes its address from its own settings alone; companion connect codex leads it here"
    ]
    assert told_files("crush", tmp_path, None) == [
        "crush takes its address from its own settings alone"
    ]
