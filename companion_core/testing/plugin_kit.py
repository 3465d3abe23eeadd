"""Checks every provider of one installed plugin."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from companion_core.egress.refusing import RefusingEgress
from companion_core.egress.tls_context import build_tls_context
from companion_core.errors import Reason
from companion_core.plugin_host import LoadedPlugins, PluginState, Role, find_plugins, record_of
from companion_core.serving.assembly import load_every_plugin
from companion_core.testing.downloader_kit import check_downloader
from companion_core.testing.health_kit import check_health_checker
from companion_core.testing.keychain_kit import check_keychain
from companion_core.testing.probe_kit import check_probe
from companion_core.testing.rulebook import Untried
from companion_core.testing.runtime_kit import check_runtime
from companion_core.testing.spawner_kit import SpawnerAbilities, check_spawner

__all__ = ["KitResult", "check_installed", "check_plugin"]

Check = Callable[[Any, PluginState], tuple[Untried, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class KitResult:
    """What the kit says of a plugin that breaks no rule.

    Attributes:
        passed: the roles of which at least the main rules could be tried.
        untried: what could not be tried on this machine, with its role in front.
        reason: `ok`, or why nothing can be said of a role here, such as a locked store.
    """

    passed: tuple[str, ...]
    untried: tuple[str, ...] = ()
    reason: Reason = Reason.OK


def _spawner(provider: Any, plugin: PluginState) -> tuple[Untried, ...]:
    # The author's declared abilities are unknown here, so only the common rules are checked.
    abilities = SpawnerAbilities(
        chat_template=False, open_backend=True, embedded_modules=plugin.modules
    )
    return check_spawner(provider, abilities)


def _downloader(provider: Any, _plugin: PluginState) -> tuple[Untried, ...]:
    def make(ca_file: Path) -> Any:
        # OpenSSL reads this variable, and so does every client that uses OpenSSL's defaults.
        os.environ["SSL_CERT_FILE"] = str(ca_file)
        return provider

    before = os.environ.get("SSL_CERT_FILE")
    try:
        check_downloader(make)
    finally:
        os.environ.pop("SSL_CERT_FILE", None)
        if before is not None:
            os.environ["SSL_CERT_FILE"] = before
    return ()


def _health(provider: Any, _plugin: PluginState) -> tuple[Untried, ...]:
    check_health_checker(provider)
    return ()


def _probe(provider: Any, _plugin: PluginState) -> tuple[Untried, ...]:
    check_probe(provider)
    return ()


_CHECKS: Final[Mapping[Role, Check]] = {
    Role.KEYCHAIN: lambda provider, _plugin: check_keychain(provider),
    Role.SPAWN: _spawner,
    Role.DOWNLOAD: _downloader,
    Role.HEALTH: _health,
    Role.PROBE: _probe,
}


def check_installed(name: str) -> tuple[str, ...]:
    """Load the installed plugin `name` in this process and check it; return its roles.

    Its code is trusted as it is installed now, for this call alone.

    Raises:
        AssertionError: the plugin does not register, or breaks a rule; names the first one.
    """
    found = [plugin for plugin in find_plugins() if plugin.name == name]
    loaded = load_every_plugin(
        RefusingEgress(),
        lambda: build_tls_context(None),
        {plugin.name: record_of(plugin) for plugin in found},
    )
    states = [plugin for plugin in loaded.plugins if plugin.name == name and not plugin.core]
    if not states:
        raise AssertionError(f"no installed distribution declares the plugin {name}")
    if states[0].reason is not Reason.OK:
        raise AssertionError(f"{name}: {states[0].reason} {states[0].detail}".rstrip())
    return check_plugin(loaded, name).passed


def check_plugin(loaded: LoadedPlugins, name: str) -> KitResult:
    """Run the kit for each role that the registered plugin `name` fills.

    A plugin that spawns and judges health is started as well, if its runtime is installed here.

    Raises:
        AssertionError: the plugin breaks a rule; names the first one.
    """
    (plugin,) = [p for p in loaded.plugins if p.name == name and not p.core]
    passed: list[str] = []
    untried: list[str] = []
    reason = Reason.OK
    for role in sorted(plugin.roles):
        left = _CHECKS[Role(role)](loaded.providers(Role(role))[name], plugin)
        untried += [f"{role}: {each.what}" for each in left]
        unusable = next((each.reason for each in left if each.reason is not Reason.OK), None)
        if unusable is None:
            passed.append(role)
        else:
            reason = unusable
    if {Role.SPAWN, Role.HEALTH} <= plugin.roles:
        untried += [f"runtime: {each.what}" for each in _runtime(loaded, plugin)]
    return KitResult(passed=tuple(passed), untried=tuple(untried), reason=reason)


def _runtime(loaded: LoadedPlugins, plugin: PluginState) -> tuple[Untried, ...]:
    return check_runtime(
        loaded.providers(Role.SPAWN)[plugin.name],
        loaded.providers(Role.HEALTH)[plugin.name],
        modules=plugin.modules,
        folders=plugin.folders,
        open_backend=True,
    )
