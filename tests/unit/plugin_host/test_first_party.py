from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from companion_core.errors import Reason
from companion_core.plugin_host.inventory import find_plugins
from companion_core.plugin_host.rules import judge_found, parse_first_party
from companion_core.plugin_host.survey import first_party_releases

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]


@pytest.fixture
def tool() -> ModuleType:
    path = ROOT / "tools" / "write_first_party.py"
    spec = importlib.util.spec_from_file_location("write_first_party", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def trees(tmp_path: Path) -> Path:
    package = tmp_path / "plugins" / "lamp" / "companion_lamp"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("x = 1\n")
    (package / "py.typed").write_text("")
    (package.parent / "pyproject.toml").write_text(
        '[project]\nname = "companion-runtime-lamp"\nversion = "0.1.0"\n'
        '[project.entry-points."companion.runtime.v1"]\nlamp = "companion_lamp"\n'
    )
    return tmp_path / "plugins"


def test_the_shipped_table_is_true_to_the_source_trees(tool: ModuleType):
    text = tool.TABLE.read_text(encoding="utf-8")
    recorded = json.loads(text)
    assert json.dumps(tool.table_of(ROOT / "plugins", recorded), indent=2) + "\n" == text, (
        "run tools/write_first_party.py"
    )
    assert parse_first_party(text) == first_party_releases()


def test_every_first_party_plugin_is_in_the_table():
    trees = {file.parent.name for file in (ROOT / "plugins").glob("*/pyproject.toml")}
    names = {name.removeprefix("companion-").replace("-", "_") for name in first_party_releases()}
    assert names == trees


def test_an_installed_copy_of_a_tree_is_recognised(
    tool: ModuleType, trees: Path, install_distribution
):
    table = parse_first_party(json.dumps(tool.table_of(trees, {})))
    site = install_distribution(
        "companion-runtime-lamp",
        {"companion_lamp/__init__.py": "x = 1\n", "companion_lamp/py.typed": ""},
        {"lamp": "companion_lamp"},
    )
    assert judge_found(find_plugins([str(site)]), first_party=table) == (Reason.OK,)
    (site / "companion_lamp" / "__init__.py").write_text("x = 2\n")
    assert judge_found(find_plugins([str(site)]), first_party=table) == (Reason.PLUGIN_CHANGED,)


def test_byte_code_beside_the_source_changes_nothing(tool: ModuleType, trees: Path):
    before = tool.table_of(trees, {})
    cache = trees / "lamp" / "companion_lamp" / "__pycache__"
    cache.mkdir()
    (cache / "__init__.cpython-311.pyc").write_bytes(b"")
    assert tool.table_of(trees, {}) == before


def test_a_source_layout_changes_nothing(tool: ModuleType, trees: Path):
    before = tool.table_of(trees, {})
    (trees / "lamp" / "src").mkdir()
    (trees / "lamp" / "companion_lamp").rename(trees / "lamp" / "src" / "companion_lamp")
    assert tool.table_of(trees, {}) == before


def test_versions_recorded_before_stay_and_trees_that_left_do_not(tool: ModuleType, trees: Path):
    old = {"digest": "00", "group": "companion.runtime.v1", "entry_points": {}}
    recorded = {
        "companion-runtime-lamp": {"versions": {"0.0.9": old, "0.1.0": old}},
        "companion-runtime-gone": {"versions": {"0.1.0": old}},
    }
    table = tool.table_of(trees, recorded)
    assert list(table) == ["companion-runtime-lamp"]
    versions = table["companion-runtime-lamp"]["versions"]
    assert versions["0.0.9"] == old
    assert versions["0.1.0"] != old


def test_a_tree_without_its_package_or_with_both_sides_is_an_error(tool: ModuleType, trees: Path):
    project = trees / "lamp" / "pyproject.toml"
    text = project.read_text()
    project.write_text(text.replace('= "companion_lamp"', '= "companion_missing"'))
    with pytest.raises(SystemExit):
        tool.table_of(trees, {})
    project.write_text(
        text + '[project.entry-points."companion.authority.v1"]\nlamp = "companion_lamp"\n'
    )
    with pytest.raises(SystemExit):
        tool.table_of(trees, {})
