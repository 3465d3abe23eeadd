"""The five seams. Read this first.

A plugin is a module named by an entry point in `companion.authority.v1` (keychain) or
`companion.runtime.v1` (the other four). Each hook is called once, when the plugin is
loaded, and returns one provider that satisfies the `Protocol` of the same name in
`companion_core.providers`. Nothing is decided in a hook: the core validates the provider,
selects it by name and performs every effect itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import pluggy

from companion_core.providers import (
    Downloader,
    HealthChecker,
    HostInfo,
    Keychain,
    OptionValue,
    ResourceProbe,
    Spawner,
)

__all__ = [
    "AUTHORITY_GROUP",
    "PROJECT_NAME",
    "RUNTIME_GROUP",
    "AuthorityHooks",
    "RuntimeHooks",
    "hookimpl",
    "hookspec",
]

PROJECT_NAME: Final = "companion"
AUTHORITY_GROUP: Final = "companion.authority.v1"
RUNTIME_GROUP: Final = "companion.runtime.v1"

hookspec = pluggy.HookspecMarker(PROJECT_NAME)
hookimpl = pluggy.HookimplMarker(PROJECT_NAME)


class AuthorityHooks:
    """Hooks of `companion.authority.v1`."""

    @hookspec
    def companion_keychain(  # type: ignore[empty-body] # a hook
        self, host: HostInfo, options: Mapping[str, OptionValue]
    ) -> Keychain:
        """Return the provider of this system's keychain.

        Args:
            host: what a plugin may know of its host.
            options: [keychain.options] if this keychain is configured, else nothing. Raise
                `OptionInvalid` for a value that it cannot use.
        """


class RuntimeHooks:
    """Hooks of `companion.runtime.v1`."""

    @hookspec
    def companion_spawn(self, host: HostInfo) -> Spawner:  # type: ignore[empty-body] # a hook
        """Return the provider that plans how a runtime is started."""

    @hookspec
    def companion_download(self, host: HostInfo) -> Downloader:  # type: ignore[empty-body] # a hook
        """Return the provider that pumps a model's bytes."""

    @hookspec
    def companion_health(self, host: HostInfo) -> HealthChecker:  # type: ignore[empty-body] # a hook
        """Return the provider that judges the runtime's health answer."""

    @hookspec
    def companion_probe(self, host: HostInfo) -> ResourceProbe:  # type: ignore[empty-body] # a hook
        """Return the provider that reads the runtime's resources."""
