"""Installed plugins: found, judged by trust, imported, registered, selected and called.

This is the folder's whole face. The core outside this folder imports from here alone; the
modules stay private to the folder and to its tests.
"""

from __future__ import annotations

from companion_core.plugin_host.calls import PLUGIN_REASONS, call_provider, call_provider_sync
from companion_core.plugin_host.embedded import (
    ask_interpreter,
    require_reachable,
    search_packages_of,
)
from companion_core.plugin_host.host import (
    Chosen,
    ChosenRuntime,
    CorePlugin,
    KeychainOptions,
    LoadedPlugins,
    load_plugins,
)
from companion_core.plugin_host.inventory import find_plugins
from companion_core.plugin_host.pins import check_pins, parse_digest, read_pins
from companion_core.plugin_host.rules import (
    FoundPlugin,
    TrustRecord,
    judge_found,
    parse_narrow,
    record_of,
)
from companion_core.plugin_host.runtime_code import PINNED_IMPORTS, RuntimeCode
from companion_core.plugin_host.selection import Role, choose_keychain
from companion_core.plugin_host.snapshots import EMBEDDED, rebuild_binaries, snapshot_provider
from companion_core.plugin_host.survey import (
    PluginState,
    State,
    first_party_releases,
    survey_plugins,
)
from companion_core.plugin_host.trust_store import CheckRecord, TrustBook, TrustStore

__all__ = [
    "EMBEDDED",
    "PINNED_IMPORTS",
    "PLUGIN_REASONS",
    "CheckRecord",
    "Chosen",
    "ChosenRuntime",
    "CorePlugin",
    "FoundPlugin",
    "KeychainOptions",
    "LoadedPlugins",
    "PluginState",
    "Role",
    "RuntimeCode",
    "State",
    "TrustBook",
    "TrustRecord",
    "TrustStore",
    "ask_interpreter",
    "call_provider",
    "call_provider_sync",
    "check_pins",
    "choose_keychain",
    "find_plugins",
    "first_party_releases",
    "judge_found",
    "load_plugins",
    "parse_digest",
    "parse_narrow",
    "read_pins",
    "rebuild_binaries",
    "record_of",
    "require_reachable",
    "search_packages_of",
    "snapshot_provider",
    "survey_plugins",
]
