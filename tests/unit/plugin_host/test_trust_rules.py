"""What a trust record changes, and what it does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from companion_core.errors import Reason
from companion_core.plugin_host.inventory import find_plugins
from companion_core.plugin_host.rules import (
    FoundPlugin,
    TrustRecord,
    changes_since,
    judge_found,
    record_of,
)
from companion_core.plugin_host.survey import State, survey_plugins

pytestmark = pytest.mark.unit

Install = Callable[..., Path]
FILES = {"companion_lamp/__init__.py": "x = 1\n", "companion_lamp/server.py": "y = 1\n"}


@pytest.fixture
def site(install_distribution: Install) -> Path:
    return install_distribution("companion-runtime-lamp", FILES, {"lamp": "companion_lamp"})


def found(site: Path) -> FoundPlugin:
    (plugin,) = find_plugins([str(site)])
    return plugin


def judge(site: Path, *records: TrustRecord, **how: object) -> Reason:
    trusted = {record.name: record for record in records}
    (reason,) = judge_found(find_plugins([str(site)]), first_party={}, trusted=trusted, **how)
    return reason


def test_trusted_is_exactly_what_was_recorded(site: Path):
    record = record_of(found(site))
    assert judge(site) is Reason.PLUGIN_UNTRUSTED
    assert judge(site, record) is Reason.OK
    for field in ("group", "module", "distribution", "version", "digest"):
        assert judge(site, replace(record, **{field: "other"})) is Reason.PLUGIN_CHANGED, field


def test_another_plugins_record_is_no_trust(site: Path):
    record = replace(record_of(found(site)), name="other")
    assert judge(site, record) is Reason.PLUGIN_UNTRUSTED


def test_trust_lifts_no_other_refusal(site: Path, install_distribution: Install):
    record = record_of(found(site))
    assert judge(site, record, reserved={"lamp"}) is Reason.PLUGIN_DUPLICATE
    assert judge(site, record, narrow=set()) is Reason.PLUGIN_NARROWED
    (site / "companion_lamp" / "stray.py").write_text("")
    assert judge(site, record) is Reason.PLUGIN_CHANGED


def test_a_changed_release_names_what_changed(site: Path, install_distribution: Install):
    record = record_of(found(site))
    assert changes_since(record, found(site)) == ()
    install_distribution(
        "companion-runtime-lamp",
        {"companion_lamp/__init__.py": "x = 2\n", "companion_lamp/new.py": ""},
        {"lamp": "companion_lamp"},
    )
    (site / "companion_lamp" / "server.py").unlink()
    assert changes_since(record, found(site)) == (
        "changed: companion_lamp/__init__.py",
        "added: companion_lamp/new.py",
        "removed: companion_lamp/server.py",
    )
    ((_, state),) = survey_plugins(trusted={"lamp": record}, first_party={}, path=[str(site)])
    assert (state.state, state.reason) == (State.FOUND, Reason.PLUGIN_CHANGED)
    assert state.changes == changes_since(record, found(site))
    assert "changed: companion_lamp/__init__.py" in state.detail


def test_a_new_version_is_told(site: Path, install_distribution: Install):
    record = replace(record_of(found(site)), version="0.0.9")
    assert changes_since(record, found(site)) == ("version: 0.0.9 -> 0.1.0",)


def test_an_equal_rebuild_is_still_trusted(site: Path):
    record = record_of(found(site))
    info = site / "companion_runtime_lamp-0.1.0.dist-info"
    (info / "METADATA").write_text((info / "METADATA").read_text() + "Summary: built again\n")
    assert judge(site, record) is Reason.OK


def editable(install: Install, tree: Path) -> Path:
    (tree / "companion_lamp").mkdir(parents=True)
    (tree / "companion_lamp" / "__init__.py").write_text("x = 1\n")
    origin = f'{{"url": "file://{tree}", "dir_info": {{"editable": true}}}}'
    return install(
        "companion-runtime-lamp",
        {"link.pth": str(tree)},
        {"lamp": "companion_lamp"},
        extra={"direct_url.json": origin},
    )


@pytest.mark.parametrize("folder", ["tree", "tree/src"])
def test_an_editable_install_is_trusted_only_explicitly(
    install_distribution: Install, tmp_path: Path, folder: str
):
    tree = tmp_path / folder
    site = editable(install_distribution, tree)
    if folder.endswith("src"):
        info = site / "companion_runtime_lamp-0.1.0.dist-info" / "direct_url.json"
        info.write_text(info.read_text().replace("/src", ""))
    path = [str(site), str(tree)]
    (plugin,) = find_plugins(path)
    record = record_of(plugin)
    assert plugin.editable
    assert [file.path for file in plugin.files] == ["companion_lamp/__init__.py"]

    def reason(record: TrustRecord) -> Reason:
        return judge_found(find_plugins(path), first_party={}, trusted={"lamp": record})[0]

    assert reason(record) is Reason.OK
    assert reason(replace(record, editable=False)) is Reason.PLUGIN_EDITABLE
    (tree / "companion_lamp" / "__init__.py").write_text("x = 2\n")
    assert reason(record) is Reason.PLUGIN_CHANGED


def test_an_editable_install_of_nowhere_cannot_be_trusted(
    install_distribution: Install, tmp_path: Path
):
    site = editable(install_distribution, tmp_path / "tree")
    (tmp_path / "tree" / "companion_lamp" / "__init__.py").unlink()
    plugin = found(site)
    assert plugin.digest is not None or not plugin.modules
    assert judge(site, record_of(plugin)) is not Reason.OK
