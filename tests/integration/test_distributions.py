"""What is published: each sdist and wheel holds its own files, its licence, and nothing else."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
TREES = sorted(
    file.parent
    for pattern in ("pyproject.toml", "plugins/*/pyproject.toml", "examples/*/pyproject.toml")
    for file in ROOT.glob(pattern)
)
BUILD = """
import sys
from hatchling.build import build_sdist, build_wheel
build_sdist(sys.argv[1])
build_wheel(sys.argv[1])
"""
# What stands beside the package in an sdist; hatchling adds what the project's table names.
BESIDE = {"README.md", "LICENSE", "pyproject.toml", "PKG-INFO", ".gitignore"}


def build(tree: Path, folder: Path) -> tuple[set[str], set[str]]:
    """Return the paths in the sdist, below its own folder, and those in the wheel."""
    command = [sys.executable, "-c", BUILD, str(folder)]
    subprocess.run(command, cwd=tree, check=True, timeout=100, capture_output=True)
    (sdist,) = folder.glob("*.tar.gz")
    (wheel,) = folder.glob("*.whl")
    with tarfile.open(sdist) as archive:
        sources = {member.name.partition("/")[2] for member in archive if member.isfile()}
    with zipfile.ZipFile(wheel) as archive:
        return sources, {name for name in archive.namelist() if not name.endswith("/")}


def test_there_is_a_tree_for_every_distribution():
    assert len(TREES) == 8


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: "core" if tree == ROOT else tree.name)
def test_a_distribution_holds_its_own_files_and_its_licence(
    tree: Path, tmp_path: Path, require_real: Callable[[str, bool], None]
):
    require_real("hatchling", importlib.util.find_spec("hatchling") is not None)
    project = tomllib.loads((tree / "pyproject.toml").read_text(encoding="utf-8"))
    (package,) = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    own = {
        path.relative_to(tree).as_posix()
        for path in (tree / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    sources, wheel = build(tree, tmp_path)
    tests = {path for path in sources if PurePosixPath(path).parts[0] == "tests"}
    assert sources - own - tests <= BESIDE
    assert own <= sources
    metadata = {path for path in wheel if ".dist-info/" in path}
    assert wheel - metadata == own
    assert {PurePosixPath(path).name for path in metadata} >= {"LICENSE", "METADATA", "RECORD"}
    assert "LICENSE" in sources
