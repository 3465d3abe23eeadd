"""Inventory, trust, sealed managers and selection of plugins."""

from __future__ import annotations

from companion_core.plugin_host.calls import call_provider, call_provider_sync
from companion_core.plugin_host.host import (
    Chosen,
    ChosenRuntime,
    CorePlugin,
    LoadedPlugins,
    load_plugins,
)
from companion_core.plugin_host.rules import parse_narrow
from companion_core.plugin_host.selection import Role
from companion_core.plugin_host.survey import PluginState, State, survey_plugins
from companion_core.plugin_host.trust_store import TrustStore

__all__ = [
    "Chosen",
    "ChosenRuntime",
    "CorePlugin",
    "LoadedPlugins",
    "PluginState",
    "Role",
    "State",
    "TrustStore",
    "call_provider",
    "call_provider_sync",
    "load_plugins",
    "parse_narrow",
    "survey_plugins",
]
