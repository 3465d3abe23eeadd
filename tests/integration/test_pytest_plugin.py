"""The fixtures that pytest finds where the core is installed."""

from __future__ import annotations

import importlib.util
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from companion_core.testing import FakeKeychain, ModelHost, check_keychain

pytestmark = pytest.mark.integration


def test_the_fake_keychain_conforms(fake_keychain: FakeKeychain):
    check_keychain(fake_keychain)


def test_the_model_host_is_up(model_host: ModelHost):
    assert model_host.url("/x").startswith("https://127.0.0.1:")


def test_the_fake_runtime_is_a_program(fake_runtime: Path):
    assert fake_runtime.stat().st_mode & 0o100
    done = subprocess.run([fake_runtime], capture_output=True, check=False, timeout=60)
    assert done.returncode != 0  # it needs a model and an address


def test_an_installed_plugin_passes_its_check(
    check_installed_plugin: Callable[[str], tuple[str, ...]],
    require_real: Callable[[str, bool], None],
):
    present = importlib.util.find_spec("companion_runtime_llamacpp") is not None
    require_real("companion_runtime_llamacpp", present)
    assert check_installed_plugin("llamacpp") == ("health", "spawn")


@pytest.mark.parametrize("name", ["nobody", "https"])
def test_a_plugin_that_is_not_installed_fails_its_check(check_installed_plugin, name: str):
    with pytest.raises(AssertionError, match="no installed distribution"):
        check_installed_plugin(name)


def test_a_broken_installed_plugin_fails_its_check(
    check_installed_plugin, install_distribution, monkeypatch: pytest.MonkeyPatch
):
    site = install_distribution(
        "zoo-broken", {"zoo_broken/__init__.py": "raise SystemExit"}, {"broken": "zoo_broken"}
    )
    monkeypatch.syspath_prepend(str(site))
    with pytest.raises(AssertionError, match="broken: plugin_import_failed"):
        check_installed_plugin("broken")
