from __future__ import annotations

import os

import pytest
import runtime_parts as parts

from companion_core.runtime.start.folder import new_start_folder, remove_start_folder

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(os.name != "posix", reason="descriptors as paths are POSIX"),
]


def test_each_start_has_a_folder_of_its_own(tmp_path) -> None:
    first, second = (new_start_folder(tmp_path / "run") for _ in range(2))
    assert first != second
    assert {parts.mode(path) for path in (first, second, tmp_path / "run")} == {0o700}
    (first / "left.txt").write_text("by the runtime")
    remove_start_folder(first)
    remove_start_folder(first)
    assert not first.exists()
    assert second.exists()


def test_removing_a_start_folder_follows_no_link(tmp_path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").write_text("x")
    folder = new_start_folder(tmp_path / "run")
    (folder / "link").symlink_to(other)
    remove_start_folder(folder)
    assert (other / "file").exists()
