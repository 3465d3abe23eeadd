"""The scan is cheap: counted, not timed (`benchmarks/plugins.py` times it)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from companion_core.plugin_host import scan
from companion_core.plugin_host.scan import declaring_distributions

pytestmark = pytest.mark.performance

LONG_AGO = 1_600_000_000


@pytest.fixture(autouse=True)
def _nothing_remembered() -> Iterator[None]:
    scan.forget()
    yield
    scan.forget()


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The files that the scan opened."""
    names: list[str] = []

    def count(name, *args, **kwargs):
        names.append(str(name))
        return open(name, *args, **kwargs)  # noqa: PTH123 - as the scan does

    # The scan opens files by the built-in alone; it takes no opener, which every command would pay.
    monkeypatch.setattr(scan, "open", count, raising=False)
    return names


def fill(site: Path, count: int) -> None:
    for number in range(count):
        info = site / f"other_{number}-1.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Name: other-{number}\nVersion: 1\n")
        (info / "entry_points.txt").write_text("[console_scripts]\nx = y\n")
    os.utime(site, (LONG_AGO, LONG_AGO))


def names(site: Path) -> list[str]:
    return [d.metadata["Name"] for d in declaring_distributions([str(site)])]


def test_one_file_for_each_distribution_and_none_the_second_time(tmp_path: Path, opened):
    fill(tmp_path, 150)
    assert names(tmp_path) == []
    assert len(opened) == 150
    assert names(tmp_path) == []
    assert len(opened) == 150


def test_a_changed_folder_is_read_again(tmp_path: Path, opened, install_distribution):
    fill(tmp_path / "site", 3)
    names(tmp_path / "site")
    site = install_distribution("zoo-lamp", {"lamp/__init__.py": ""}, {"lamp": "lamp"})
    assert names(site) == ["zoo-lamp"]
    assert len(opened) > 3


def test_a_folder_that_has_just_changed_is_not_remembered(tmp_path: Path, opened):
    fill(tmp_path, 3)
    os.utime(tmp_path)
    names(tmp_path)
    names(tmp_path)
    assert len(opened) == 6


def test_a_path_that_is_no_folder_has_none(tmp_path: Path):
    assert list(declaring_distributions([str(tmp_path / "missing"), str(Path(__file__))])) == []
