"""Open the person's own list of models with the key that they keep for it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from companion_core.authority.manifest_memory import ManifestMemory
from companion_core.authority.personal_manifest import PersonalManifest
from companion_core.authority.signing_key import KeyInFile, KeyInKeychain, PersonalKeys
from companion_core.config.paths import InstancePaths
from companion_core.config.sections import Config
from companion_core.plugin_host import Chosen
from companion_core.providers import Keychain
from companion_core.system.clock import wall_now
from companion_core.system.secret import Secret

__all__ = ["open_own_list"]

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


def _keys(config: Config, keychain: Chosen[Keychain]) -> PersonalKeys:
    file = config.models.key_file
    if file is None:
        return KeyInKeychain(keychain.provider, keychain.plugin, keeps=keychain.plugin != _FORGETS)
    passphrase = os.environ.get(PASSPHRASE)
    return KeyInFile(Path(file), Secret(passphrase) if passphrase else None)
