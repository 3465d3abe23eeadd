"""Copy the provider that a hook returned into a value of the core's own.

A provider is read once: its attributes are checked and copied, and its bound methods stored.
Later changes of it (a property that returns something else, an attribute that is replaced)
do not reach the core.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, BinaryIO, Final, cast

from companion_core.plugin_host.selection import Role
from companion_core.providers import (
    DownloadRequest,
    HealthResponse,
    KeychainStatus,
    ProbeTarget,
    ResourceObservation,
    RuntimeBinary,
    SpawnPlan,
    SpawnRequest,
)
from companion_core.system.muted_output import muted

__all__ = [
    "EMBEDDED",
    "DownloaderSnapshot",
    "HealthCheckerSnapshot",
    "KeychainSnapshot",
    "ProbeSnapshot",
    "Snapshot",
    "SpawnerSnapshot",
    "rebuild_binaries",
    "snapshot_provider",
]

EMBEDDED: Final = "embedded"
CHANNELS: Final = frozenset({"unix", "tcp"})
MAX_NAMES: Final = 256
MAX_HELP_ARGUMENTS: Final = 4

# A name of an environment variable, a format or an option: printable, no space, no "=".
_NAME: Final = re.compile(r"[!-<>-~]{1,128}")
# A flag or a subcommand, but no value and no path.
_HELP_ARGUMENT: Final = re.compile(r"-{0,2}[a-z][a-z-]{0,31}")
# The origin form of a request target without its query (RFC 9112, section 3.2.1).
_PATH: Final = re.compile(r"/[!-~]{0,255}")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeychainSnapshot:
    """A `providers.Keychain`."""

    status: Callable[[], KeychainStatus]
    get: Callable[[str], str | None]
    set: Callable[[str, str], None]
    delete: Callable[[str], None]
    option_names: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class SpawnerSnapshot:
    """A `providers.Spawner`."""

    channels: frozenset[str]
    formats: frozenset[str]
    env_names: frozenset[str]
    child_env_names: frozenset[str]
    option_names: frozenset[str]
    locate: Callable[[], Sequence[RuntimeBinary]]
    plan: Callable[[SpawnRequest], SpawnPlan]
    help_arguments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloaderSnapshot:
    """A `providers.Downloader`."""

    open: Callable[[DownloadRequest], BinaryIO]


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthCheckerSnapshot:
    """A `providers.HealthChecker`."""

    path: str
    judge: Callable[[HealthResponse], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSnapshot:
    """A `providers.ResourceProbe`."""

    observe: Callable[[ProbeTarget], ResourceObservation]


Snapshot = (
    KeychainSnapshot | SpawnerSnapshot | DownloaderSnapshot | HealthCheckerSnapshot | ProbeSnapshot
)


def snapshot_provider(role: Role, provider: object) -> Snapshot | str:
    """Return the core's own copy of `provider`, or the name of what does not fit the seam.

    Reading attributes may run the plugin's code, so call it through `calls`.
    """
    if isinstance(provider, type):
        return "a class in place of a provider"
    build, readers = _SEAMS[role]
    values = {}
    for name, read in readers.items():
        value = read(getattr(provider, name, None))
        if value is None:
            return name
        values[name] = value
    return build(**values)


def rebuild_binaries(found: object) -> tuple[RuntimeBinary, ...] | None:
    """Return a copy of what `Spawner.locate` found; None if any part does not fit.

    Only exact types are accepted, so no code of the plugin runs here.
    """
    if type(found) not in {list, tuple}:
        return None
    binaries = []
    for binary in cast("Sequence[object]", found):
        if type(binary) is not RuntimeBinary or type(binary.files) is not tuple:
            return None
        optional = () if binary.version is None else (binary.version,)
        texts = (binary.path, binary.label, *optional, *binary.files)
        if not all(type(text) is str for text in texts):
            return None
        paths = binary.files if binary.path == EMBEDDED else (binary.path, *binary.files)
        if not all(os.path.isabs(path) for path in paths):  # noqa: PTH117 - text of another program
            return None
        binaries.append(replace(binary))
    return tuple(binaries)


def _method(value: Any) -> Any:
    if not callable(value):
        return None
    for function in (value, getattr(value, "__call__", None)):  # noqa: B004 - an object's own method
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            return None
    return muted(value)  # not every caller of a provider goes through `calls`


def _names(value: Any) -> frozenset[str] | None:
    if type(value) is not frozenset or len(value) > MAX_NAMES:
        return None
    fits = all(type(name) is str and _NAME.fullmatch(name) for name in value)
    return value if fits else None


def _optional_names(value: Any) -> frozenset[str] | None:
    """Read names that a provider may lack."""
    return frozenset() if value is None else _names(value)


def _channels(value: Any) -> frozenset[str] | None:
    names = _names(value)
    return names if names and names <= CHANNELS else None


def _path(value: Any) -> str | None:
    return value if type(value) is str and _PATH.fullmatch(value) else None


def _help_arguments(value: Any) -> tuple[str, ...] | None:
    """Read an attribute that a spawner may lack."""
    if value is None:
        return ()
    if type(value) is not tuple or len(value) > MAX_HELP_ARGUMENTS:
        return None
    fits = all(type(text) is str and _HELP_ARGUMENT.fullmatch(text) for text in value)
    return value if fits else None


_SEAMS: Final[Mapping[Role, tuple[Callable[..., Snapshot], Mapping[str, Callable[[Any], Any]]]]] = (
    MappingProxyType(
        {
            Role.KEYCHAIN: (
                KeychainSnapshot,
                {
                    "status": _method,
                    "get": _method,
                    "set": _method,
                    "delete": _method,
                    "option_names": _optional_names,
                },
            ),
            Role.SPAWN: (
                SpawnerSnapshot,
                {
                    "channels": _channels,
                    "formats": _names,
                    "env_names": _names,
                    "child_env_names": _names,
                    "option_names": _names,
                    "locate": _method,
                    "plan": _method,
                    "help_arguments": _help_arguments,
                },
            ),
            Role.DOWNLOAD: (DownloaderSnapshot, {"open": _method}),
            Role.HEALTH: (HealthCheckerSnapshot, {"path": _path, "judge": _method}),
            Role.PROBE: (ProbeSnapshot, {"observe": _method}),
        }
    )
)
