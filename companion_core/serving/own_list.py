"""Open the person's own list of models with the key that they keep for it."""

from __future__ import annotations

import functools
import os
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final

from companion_core.authority.manifest_memory import ManifestMemory
from companion_core.authority.personal_manifest import PersonalManifest
from companion_core.authority.signing_key import (
    KeyInFile,
    KeyInKeychain,
    PersonalKeys,
    SigningKey,
)
from companion_core.config.paths import InstancePaths
from companion_core.config.sections import Config
from companion_core.egress.interface import Egress
from companion_core.plugin_host import (
    Chosen,
    KeychainOptions,
    LoadedPlugins,
    TrustStore,
    read_pins,
)
from companion_core.providers import Keychain
from companion_core.serving.assembly import load_every_plugin
from companion_core.system.clock import wall_now
from companion_core.system.secret import Secret

__all__ = ["open_own_list", "open_own_list_alone", "plugins_of_command"]

PASSPHRASE: Final = "COMPANION_KEY_PASSPHRASE"  # noqa: S105 - the variable's name
_FORGETS: Final = "memory"  # the keychain whose secrets end with the process


def open_own_list(
    config: Config,
    paths: InstancePaths,
    keychain: Chosen[Keychain],
    *,
    clock: Callable[[], float] = wall_now,
) -> PersonalManifest:
    """Return the list; neither it nor its key is read yet."""
    return PersonalManifest(
        paths.own_manifest,
        keys=_keys(config, keychain),
        memory=ManifestMemory.of(paths),
        clock=clock,
    )


def open_own_list_alone(
    config: Config, paths: InstancePaths, plugins: Callable[[], LoadedPlugins]
) -> PersonalManifest:
    """Return the list for a command; plugins are loaded when its key is asked for."""

    def choose() -> PersonalKeys:
        if config.models.key_file is not None:
            return _file_keys(config.models.key_file)
        return _keys(config, plugins().select_keychain(config.keychain.name))

    return PersonalManifest(
        paths.own_manifest,
        keys=_LaterChosen(choose),
        memory=ManifestMemory.of(paths),
        clock=wall_now,
    )


def plugins_of_command(
    config: Config, paths: InstancePaths, egress: Egress, context: Callable[[], ssl.SSLContext]
) -> Callable[[], LoadedPlugins]:
    """Return what loads the plugins, once, when they are first asked for."""

    @functools.cache
    def load() -> LoadedPlugins:
        return load_every_plugin(
            egress,
            context,
            TrustStore(paths.plugin_store).read().trusted,
            read_pins(config.plugins.pins_file),
            KeychainOptions(name=config.keychain.name, values=config.keychain.options),
        )

    return load


class _LaterChosen:
    """Keys whose place is chosen when the first one is asked for."""

    def __init__(self, choose: Callable[[], PersonalKeys]) -> None:
        self._choose = functools.cache(choose)

    def load(self, name: str | None) -> SigningKey | None:
        return self._choose().load(name)

    def make(self) -> SigningKey:
        return self._choose().make()


def _keys(config: Config, keychain: Chosen[Keychain]) -> PersonalKeys:
    if config.models.key_file is not None:
        return _file_keys(config.models.key_file)
    return KeyInKeychain(keychain.provider, keychain.plugin, keeps=keychain.plugin != _FORGETS)


def _file_keys(path: str) -> KeyInFile:
    passphrase = os.environ.get(PASSPHRASE)
    return KeyInFile(Path(path), Secret(passphrase) if passphrase else None)
