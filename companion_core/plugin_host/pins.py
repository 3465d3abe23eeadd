"""Plugins that a product pins: the person who installs the product trusts exactly this code.

A file, or a mapping of a plugin's name to the SHA-256 of its code. A pin is worth as much as the
person's own word on that code, and no more: COMPANION_PLUGINS narrows it, and any other code under
its name is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from companion_core.errors import Reason, UsageError
from companion_core.plugin_host.rules import PLUGIN_NAME, FoundPlugin, TrustRecord, record_of
from companion_core.system.state_files import check_owned, open_ordinary

__all__ = ["check_pins", "parse_digest", "parse_pins", "read_pins", "records_of_pinned"]

_MAX_BYTES: Final = 1024 * 1024
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


def parse_digest(text: str) -> str | None:
    """Return a SHA-256 in lower-case hex; None if `text` is none."""
    digest = text.lower()
    return digest if _SHA256.fullmatch(digest) else None


def parse_pins(text: str | bytes) -> Mapping[str, str]:
    """Read a JSON object of plugin names and lower-case SHA-256 digests.

    Raises:
        ValueError: it is anything else; a name may stand there once.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a name stands there twice")
        return dict(pairs)

    if len(text) > _MAX_BYTES:
        raise ValueError(f"larger than {_MAX_BYTES} bytes")
    try:
        document = json.loads(text, object_pairs_hook=once)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if type(document) is not dict or not _are_pins(document):
        raise ValueError('not an object of names and digests: {"name": "64 hex digits"}')
    return MappingProxyType(document)


def _are_pins(pins: Mapping[Any, Any]) -> bool:
    return all(
        type(name) is type(digest) is str
        and PLUGIN_NAME.fullmatch(name)
        and _SHA256.fullmatch(digest)
        for name, digest in pins.items()
    )


def check_pins(pins: Mapping[str, str] | Path | str) -> Mapping[str, str]:
    """Return what a product pins in a mapping, or in the file at a path.

    Raises:
        Refused: see `read_pins`.
        UsageError: `configuration_invalid`.
    """
    if not isinstance(pins, Mapping):
        return read_pins(pins)
    copy = dict(pins)
    if not _are_pins(copy):
        what = "trusted_plugins: names, and 64 lower-case hex digits of each"
        raise UsageError(Reason.CONFIGURATION_INVALID, what)
    return MappingProxyType(copy)


def read_pins(path: Path | str | None) -> Mapping[str, str]:
    """Return what the file at `path` pins; nothing without a path.

    Raises:
        Refused: `state_path_unsafe`, if others can change the file.
        UsageError: `configuration_invalid`; the detail names the file.
    """
    if path is None:
        return MappingProxyType({})
    path = Path(path)
    check_owned(path)
    try:
        with open_ordinary(path) as file:
            return parse_pins(file.read(_MAX_BYTES + 1))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else f"{error}"
        raise UsageError(Reason.CONFIGURATION_INVALID, f"{path}: {why}") from error


def records_of_pinned(
    plugins: Sequence[FoundPlugin], pins: Mapping[str, str]
) -> Mapping[str, TrustRecord]:
    """Return the record of each installed plugin that is what is pinned under its name.

    A link to a source tree is never: the tree may change at any time.
    """
    return {
        plugin.name: record_of(plugin)
        for plugin in plugins
        if plugin.digest is not None
        and plugin.digest == pins.get(plugin.name)
        and not plugin.editable
    }
