"""The code that a runtime's plugin brings to each start, proved anew each time (I-05).

Trust is a digest of code, so it ends with the first changed byte: a start that comes after it is
refused, whatever was imported before. What an embedded runtime imports besides belongs to other
distributions, which nobody is asked to trust. They stay what they were when the plugin was loaded.
"""

from __future__ import annotations

import base64
import binascii
import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from companion_core.errors import PluginFault, Reason, Refused
from companion_core.plugin_host.embedded import needed_distributions
from companion_core.plugin_host.inventory import unlisted_code
from companion_core.plugin_host.rules import FoundPlugin, code_listing, may_be_loaded
from companion_core.system.known_file import KnownFile

__all__ = ["PINNED_IMPORTS", "RuntimeCode"]

PINNED_IMPORTS: Final = str(Path(__file__).with_name("pinned_imports.py"))
"""The program that imports a plugin from its listed files alone."""

_SHOWN_FILES: Final = 8


@dataclass(frozen=True, slots=True)
class RuntimeCode:
    """The files of one trusted plugin, and of what its embedded runtime needs.

    Attributes:
        plugin: its name.
        root: the folder that the files are relative to.
        digest: over its code, as it is trusted.
        listing: the files and their digests, of which `digest` is the SHA-256.
    """

    plugin: str
    root: str
    digest: str
    listing: bytes = field(repr=False)
    _paths: frozenset[str] = field(repr=False)
    _files: tuple[KnownFile, ...] = field(repr=False)
    _libraries: tuple[KnownFile, ...] = field(repr=False)

    @classmethod
    def of(cls, plugin: FoundPlugin, *, embedded: bool) -> RuntimeCode:
        """Return the code of a plugin that is trusted as it was found. Blocking.

        Args:
            plugin: as it was found, intact.
            embedded: its runtime is run by the running interpreter, which imports what it needs.
        """
        libraries = _libraries_of(plugin.distribution) if embedded else ()
        return cls(
            plugin.name,
            plugin.root,
            plugin.digest or "",
            code_listing(plugin.files),
            frozenset(file.path for file in plugin.files),
            tuple(KnownFile(f"{plugin.root}/{file.path}", file.sha256) for file in plugin.files),
            tuple(libraries),
        )

    def prove(self) -> None:
        """Require that nothing changed; to be asked right before each start. Blocking.

        Raises:
            PluginFault: `plugin_changed`, with the plugin's files that changed.
            Refused: `runtime_changed`, with the libraries' files that did.
        """
        changed = [
            *(f"changed: {self._short(file)}" for file in self._files if not file.is_unchanged),
            *(f"added: {path}" for path in unlisted_code(Path(self.root), set(self._paths))),
        ]
        if changed:
            raise PluginFault(Reason.PLUGIN_CHANGED, self.plugin, _shown(changed))
        others = [file.path for file in self._libraries if not file.is_unchanged]
        if others:
            raise Refused(Reason.RUNTIME_CHANGED, _shown(others))

    def _short(self, file: KnownFile) -> str:
        return file.path[len(self.root) + 1 :]


def _shown(names: Sequence[str]) -> str:
    shown = [name.encode("unicode_escape").decode("ascii") for name in names[:_SHOWN_FILES]]
    more = [f"and {len(names) - len(shown)} more"] if len(names) > len(shown) else []
    return "; ".join([*shown, *more])


def _libraries_of(distribution: str) -> Iterator[KnownFile]:
    """Yield each file that Python or the system's loader may load of what `distribution` needs.

    One that cannot be read now is left out: nothing can be loaded from it.
    """
    for needed in needed_distributions(distribution):
        root = os.path.realpath(str(needed.locate_file("")))
        for path, sha256 in _recorded(needed.read_text("RECORD") or ""):
            try:
                yield KnownFile.as_it_is(f"{root}/{path}", sha256)
            except OSError:
                continue


def _recorded(record: str) -> Iterable[tuple[str, str | None]]:
    """Yield path and SHA-256 of the code in an installer's RECORD; None where it gives none."""
    for row in csv.reader(record.splitlines()):
        path = PurePosixPath(row[0] if row else "")
        if not path.parts or path.is_absolute() or not may_be_loaded(path.name):
            continue
        if path.parts[0] != ".." and path.parent.name != "__pycache__":
            yield str(path), _sha256_of(row[1] if len(row) > 1 else "")


def _sha256_of(text: str) -> str | None:
    """Read `sha256=` and URL-safe base64 without its padding, as RECORD has it."""
    kind, _, digest = text.partition("=")
    if kind != "sha256":
        return None
    try:
        return base64.urlsafe_b64decode(f"{digest}=").hex()
    except (ValueError, binascii.Error):
        return None
