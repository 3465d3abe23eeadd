"""Real wheels of the first-party plugins, built and installed by pip, through the host."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from companion_core.errors import CompanionError, Reason
from companion_core.hookspecs import AUTHORITY_GROUP
from companion_core.plugin_host import Role, State, load_plugins
from companion_core.plugin_host.inventory import find_plugins
from companion_core.plugin_host.rules import judge_found, normalized
from companion_core.plugin_host.survey import first_party_releases
from companion_core.providers import HostInfo, Keychain

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
TREES = sorted(file.parent for file in (ROOT / "plugins").glob("*/pyproject.toml"))
HOST = HostInfo(api="1.0", core_version="0.1.0", platform=sys.platform)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every first-party plugin, built to a wheel and installed without its dependencies."""
    wheels, site = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    offline = ["--no-deps", "--no-index"]
    trees = [str(tree) for tree in TREES]
    subprocess.run(
        [*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir", str(wheels), *trees],
        check=True,
        timeout=100,
    )
    subprocess.run(
        [*pip, "install", *offline, "--target", str(site), *map(str, wheels.glob("*.whl"))],
        check=True,
        timeout=100,
    )
    return site


@pytest.fixture(autouse=True)
def _parts(require_real: Callable[[str, bool], None]) -> None:
    for part in ("pip", "hatchling", "keyring"):
        require_real(part, importlib.util.find_spec(part) is not None)


def test_every_wheel_is_recognised_by_its_code(site: Path):
    found = find_plugins([str(site)])
    assert len(found) == len(TREES)
    reasons = judge_found(found, first_party=first_party_releases())
    assert {p.name: r for p, r in zip(found, reasons, strict=True)} == {
        plugin.name: Reason.OK for plugin in found
    }
    for plugin in found:
        release = first_party_releases()[normalized(plugin.distribution)][plugin.version]
        assert plugin.digest == release.digest


def _is_plugin_module(name: str) -> bool:
    return name.startswith(("companion_keychain_", "companion_runtime_"))


def test_every_wheel_registers_what_its_group_stands_for(
    site: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(str(site))
    for name in [name for name in sys.modules if _is_plugin_module(name)]:
        monkeypatch.delitem(sys.modules, name)  # another test may have imported it from elsewhere
    try:
        loaded = load_plugins(HOST, path=[str(site)])
    finally:
        for name in [name for name in sys.modules if _is_plugin_module(name)]:
            del sys.modules[name]
    for plugin in loaded.plugins:
        assert (plugin.name, plugin.state, plugin.reason) == (
            plugin.name,
            State.REGISTERED,
            Reason.OK,
        )
        side = {Role.KEYCHAIN} if plugin.group == AUTHORITY_GROUP else {Role.SPAWN, Role.HEALTH}
        assert side <= plugin.roles
    keychains = loaded.providers(Role.KEYCHAIN)
    assert {"linux", "macos", "windows"} <= set(keychains)
    assert all(isinstance(keychain, Keychain) for keychain in keychains.values())

    with pytest.raises(CompanionError) as caught:
        loaded.select_keychain(None)
    assert caught.value.reason is Reason.PROVIDER_AMBIGUOUS
    assert loaded.select_keychain("linux").plugin == "linux"
    states = {plugin.name: plugin.state for plugin in loaded.plugins}
    assert states["linux"] is State.SELECTED
    assert states["macos"] is State.REGISTERED


def test_one_changed_byte_in_an_installed_wheel_is_refused(site: Path):
    file = site / "companion_keychain_linux" / "__init__.py"
    text = file.read_bytes()
    file.write_bytes(text + b"#")
    try:
        found = find_plugins([str(site)])
        reasons = dict(
            zip(
                (plugin.name for plugin in found),
                judge_found(found, first_party=first_party_releases()),
                strict=True,
            )
        )
    finally:
        file.write_bytes(text)
    assert reasons["linux"] is Reason.PLUGIN_CHANGED
    assert reasons["macos"] is Reason.OK


def test_an_editable_install_is_refused(tmp_path: Path):
    tree = ROOT / "plugins" / "keychain_linux"
    subprocess.run(
        [
            *[sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install"],
            *["--no-deps", "--no-index", "--no-build-isolation", "--target", str(tmp_path)],
            *["--editable", str(tree)],
        ],
        check=True,
        timeout=100,
    )
    found = find_plugins([str(tmp_path)])
    assert judge_found(found, first_party=first_party_releases()) == (Reason.PLUGIN_EDITABLE,)
