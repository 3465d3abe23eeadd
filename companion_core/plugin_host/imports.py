"""Import a trusted plugin from exactly the bytes that were hashed.

A byte-code cache may hold other code than the source beside it, and a file may change
between the check and the import. So each module of a trusted plugin is compiled from source,
and the source is compared with its digest whenever it is read, also by a later import.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, ModuleType

from companion_core.plugin_host.rules import FoundPlugin

__all__ = ["import_plugin"]


class _PinnedLoader(importlib.machinery.SourceFileLoader):
    """Compiles the source of one module, after comparing it with its digest."""

    def __init__(self, fullname: str, path: str, sha256: str) -> None:
        super().__init__(fullname, path)
        self._sha256 = sha256

    def get_code(self, fullname: str) -> CodeType | None:
        path = self.get_filename(fullname)
        source = self.get_data(path)
        if hashlib.sha256(source).hexdigest() != self._sha256:
            raise ImportError("the file is not the one that was trusted", name=fullname)
        return self.source_to_code(source, path)


class _PinnedFinder(importlib.abc.MetaPathFinder):
    """Finds the modules of trusted plugins in their hashed files only."""

    def __init__(self) -> None:
        self._loaders: dict[str, _PinnedLoader] = {}

    def pin(self, plugin: FoundPlugin) -> None:
        digests = {file.path: file.sha256 for file in plugin.files}
        for module, path in plugin.modules.items():
            if path.endswith(".py"):  # the system's loader takes extension modules
                file = str(Path(plugin.root) / path)
                self._loaders[module] = _PinnedLoader(module, file, digests[path])

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 - the finder's protocol
        target: ModuleType | None = None,  # noqa: ARG002 - the finder's protocol
    ) -> importlib.machinery.ModuleSpec | None:
        loader = self._loaders.get(fullname)
        if loader is None:
            return None
        return importlib.util.spec_from_file_location(fullname, loader.path, loader=loader)


_FINDER = _PinnedFinder()


def import_plugin(plugin: FoundPlugin) -> ModuleType:
    """Import `plugin.module` and return it. Executes the plugin's code.

    Raises:
        ImportError: the result is not a plain module from the plugin's own file.
        BaseException: whatever the plugin's code raises.
    """
    _FINDER.pin(plugin)
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
    module = importlib.import_module(plugin.module)
    own = os.path.realpath(Path(plugin.root) / plugin.modules[plugin.module])
    # A module can replace itself in sys.modules with any object; only a plain module counts.
    if type(module) is not ModuleType or os.path.realpath(module.__file__ or "") != own:
        raise ImportError("the plugin is not a plain module of its own file", name=plugin.module)
    return module
