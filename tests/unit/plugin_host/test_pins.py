"""What a product pins: trust by digest alone, never wider than the person and the environment."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from companion_core.errors import CompanionError, Reason
from companion_core.plugin_host import State, load_plugins, read_pins, record_of, survey_plugins
from companion_core.plugin_host.inventory import find_plugins
from companion_core.plugin_host.pins import check_pins, parse_pins
from companion_core.providers import HostInfo

pytestmark = pytest.mark.unit

GOOD = """
from companion_core import hookimpl
from companion_core.testing import FakeHealthChecker

@hookimpl
def companion_health():
    return FakeHealthChecker()
"""
HOST = HostInfo(api="1.0", core_version="0.1.0", platform="linux")
DIGEST = "0" * 64


@pytest.fixture
def site(install_distribution: Callable[..., Path]) -> Path:
    return install_distribution(
        "companion-runtime-lamp", {"companion_lamp/__init__.py": GOOD}, {"lamp": "companion_lamp"}
    )


def survey(site: Path, **how: object) -> tuple[State, Reason, str, bool]:
    ((_, state),) = survey_plugins(path=[str(site)], **how)
    return state.state, state.reason, state.detail, state.pinned


def digest_of(site: Path) -> str:
    (found,) = find_plugins([str(site)])
    assert found.digest is not None
    return found.digest


def test_exactly_the_pinned_code_is_trusted(site: Path):
    pins = {"lamp": digest_of(site)}
    assert survey(site, pins=pins) == (State.TRUSTED, Reason.OK, "", True)
    assert survey(site)[:2] == (State.FOUND, Reason.PLUGIN_UNTRUSTED)
    assert survey(site, pins={"lantern": digest_of(site)})[:2] == (
        State.FOUND,
        Reason.PLUGIN_UNTRUSTED,
    )


def test_other_code_than_the_pinned_is_named_by_both_digests(site: Path):
    state, reason, detail, pinned = survey(site, pins={"lamp": DIGEST})
    assert (state, reason, pinned) == (State.FOUND, Reason.PLUGIN_CHANGED, False)
    assert DIGEST in detail
    assert digest_of(site) in detail


def test_a_pin_takes_nothing_from_what_the_person_trusts(site: Path):
    (found,) = find_plugins([str(site)])
    trusted = {"lamp": record_of(found)}
    assert survey(site, pins={"lamp": DIGEST}, trusted=trusted)[:2] == (State.TRUSTED, Reason.OK)


def test_a_pin_replaces_a_record_of_older_code(site: Path):
    (found,) = find_plugins([str(site)])
    trusted = {"lamp": record_of(found)}
    (site / "companion_lamp" / "__init__.py").write_text(GOOD + "#")
    pins = {"lamp": digest_of(site)}
    assert survey(site, trusted=trusted)[1] is Reason.PLUGIN_CHANGED
    assert survey(site, trusted=trusted, pins=pins)[1] is Reason.OK


def test_the_environment_narrows_what_is_pinned(site: Path):
    pins = {"lamp": digest_of(site)}
    assert survey(site, pins=pins, narrow=frozenset())[1] is Reason.PLUGIN_NARROWED


def test_a_pin_never_trusts_a_linked_tree_or_a_damaged_install(
    site: Path, install_distribution: Callable[..., Path], tmp_path: Path
):
    pins = {"lamp": digest_of(site)}
    (site / "companion_lamp" / "extra.py").write_text("")
    assert survey(site, pins=pins)[1] is Reason.PLUGIN_CHANGED

    tree = tmp_path / "tree" / "companion_lamp"
    tree.mkdir(parents=True)
    (tree / "__init__.py").write_text(GOOD)
    origin = {"url": tree.parent.as_uri(), "dir_info": {"editable": True}}
    linked = install_distribution(
        "companion-runtime-lamp",
        {},
        {"lamp": "companion_lamp"},
        extra={"direct_url.json": json.dumps(origin)},
        folder="linked",
    )
    assert survey(linked, pins={"lamp": digest_of(linked)})[1] is Reason.PLUGIN_EDITABLE


def test_a_pinned_plugin_is_loaded(site: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(site))
    loaded = load_plugins(HOST, pins={"lamp": digest_of(site)}, path=[str(site)])
    sys.modules.pop("companion_lamp")
    assert [plugin.state for plugin in loaded.plugins] == [State.REGISTERED]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "1",
        '{"lamp": 1}',
        '{"lamp": null}',
        f'{{"lamp": "{DIGEST.replace("0", "A")}"}}',
        f'{{"lamp": "{DIGEST}0"}}',
        f'{{"lamp": "{DIGEST}\\n"}}',
        f'{{"LAMP": "{DIGEST}"}}',
        f'{{"lamp": "{DIGEST}", "lamp": "{DIGEST}"}}',
        "[" * 100_000,
    ],
)
def test_a_malformed_file_pins_nothing_and_is_refused(text: str, tmp_path: Path):
    with pytest.raises(ValueError):
        parse_pins(text)
    file = tmp_path / "pins.json"
    file.write_text(text)
    with pytest.raises(CompanionError) as caught:
        read_pins(file)
    assert caught.value.reason is Reason.CONFIGURATION_INVALID
    assert str(file) in caught.value.detail


def test_a_file_is_read(tmp_path: Path):
    file = tmp_path / "pins.json"
    file.write_text(json.dumps({"lamp": DIGEST}))
    assert read_pins(file) == {"lamp": DIGEST}
    assert read_pins(None) == {}


@pytest.mark.skipif(os.name != "posix", reason="permission bits are POSIX")
def test_a_file_that_others_can_change_is_refused(tmp_path: Path):
    file = tmp_path / "pins.json"
    with pytest.raises(CompanionError) as caught:
        read_pins(file)
    assert caught.value.reason is Reason.CONFIGURATION_INVALID
    file.write_text("{}")
    file.chmod(0o666)
    with pytest.raises(CompanionError) as caught:
        read_pins(file)
    assert caught.value.reason is Reason.STATE_PATH_UNSAFE


@pytest.mark.parametrize(
    "pins",
    [
        {"lamp": "short"},
        {"lamp": DIGEST.replace("0", "A")},
        {"lamp": b"0" * 64},
        {"Lamp": DIGEST},
        {1: DIGEST},
    ],
)
def test_a_malformed_mapping_is_refused(pins):
    with pytest.raises(CompanionError) as caught:
        check_pins(pins)
    assert caught.value.reason is Reason.CONFIGURATION_INVALID


def test_a_mapping_is_copied_and_a_path_is_read(tmp_path: Path):
    pins = {"lamp": DIGEST}
    checked = check_pins(pins)
    pins["other"] = DIGEST
    assert checked == {"lamp": DIGEST}
    file = tmp_path / "pins.json"
    file.write_text(json.dumps(pins))
    assert check_pins(file) == check_pins(str(file)) == pins
