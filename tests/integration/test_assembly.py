"""Providers are chosen from the installed plugins that the person trusts."""

from __future__ import annotations

import ssl
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from companion_core.config.reader import parse_config
from companion_core.config.sections import Config
from companion_core.decisions.signatures import KEY_PREFIX
from companion_core.egress.refusing import RefusingEgress
from companion_core.errors import CompanionError, Reason
from companion_core.plugin_host.inventory import find_plugins
from companion_core.plugin_host.rules import record_of
from companion_core.plugin_host.trust_store import TrustStore
from companion_core.serving.assembly import assemble

pytestmark = pytest.mark.integration

KEY = KEY_PREFIX + "A" * 42 + "8="
PLUGIN = """
from companion_core import hookimpl
from companion_core.providers import RuntimeBinary
from companion_core.testing import FakeHealthChecker, FakeSpawner

class Traps(list):
    def __iter__(self):
        raise SystemExit

class Spawner(FakeSpawner):
    def locate(self):
        return {found}

@hookimpl
def companion_spawn():
    return Spawner()

@hookimpl
def companion_health():
    return FakeHealthChecker()
"""


def config(**runtime: object) -> Config:
    return parse_config(
        {
            "manifest": {"url": "file:///manifest.json", "trusted_keys": [KEY]},
            "model": {"id": "tiny"},
            "runtime": {"name": "lamp", **runtime},
            "keychain": {"name": "memory"},
        }
    )


@pytest.fixture
def chosen(
    tmp_path: Path,
    install_distribution: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., str]:
    """Install and trust a runtime with this `locate`; return the binary that is chosen."""

    def choose(found: str, **runtime: object) -> str:
        text = PLUGIN.format(found=found)
        site = install_distribution(
            "zoo-lamp", {"zoo_lamp/__init__.py": text}, {"lamp": "zoo_lamp"}
        )
        monkeypatch.setattr(sys, "path", [str(site), *sys.path])
        store = TrustStore(tmp_path / "state" / "plugins.json")
        (plugin,) = find_plugins([str(site)])
        store.trust(record_of(plugin))
        context = ssl.create_default_context()
        _, providers = assemble(
            config(**runtime), RefusingEgress(), context, tmp_path / "state" / "plugins.json"
        )
        assert providers.chosen.spawn.plugin == providers.chosen.health.plugin == "lamp"
        return providers.binary

    return choose


def test_a_configured_program_needs_no_search(chosen):
    assert chosen("1 / 0", binary="/opt/lamp", binary_sha256="0" * 64) == "/opt/lamp"


def test_without_a_configured_program_the_embedded_one_is_used(chosen):
    assert chosen("[RuntimeBinary(path='embedded', label='Lamp')]") == "embedded"


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ("[]", Reason.RUNTIME_NOT_FOUND),
        ("[RuntimeBinary(path='/usr/bin/lamp', label='Lamp')]", Reason.RUNTIME_NOT_FOUND),
        ("Traps(['embedded'])", Reason.PLUGIN_RESULT_INVALID),
        ("['embedded']", Reason.PLUGIN_RESULT_INVALID),
        ("(x for x in ())", Reason.PLUGIN_RESULT_INVALID),
        ("1 / 0", Reason.PLUGIN_CALL_FAILED),
        ("exit()", Reason.PLUGIN_CALL_FAILED),
    ],
)
def test_no_program_comes_from_path_or_from_a_plugins_odd_answer(chosen, found: str, reason):
    with pytest.raises(CompanionError) as caught:
        chosen(found)
    assert caught.value.reason is reason


def test_an_unreadable_trust_store_is_not_taken_for_an_empty_one(chosen, tmp_path: Path):
    assert chosen("[RuntimeBinary(path='embedded', label='Lamp')]") == "embedded"
    store = tmp_path / "state" / "plugins.json"
    store.write_text("{")
    with pytest.raises(CompanionError) as caught:
        assemble(config(), RefusingEgress(), ssl.create_default_context(), store)
    assert caught.value.reason is Reason.PLUGIN_STORE_MALFORMED
