"""Import a trusted plugin from exactly the bytes that were hashed.

A byte-code cache may hold other code than the source beside it, and a file may change
between the check and the import. So each module of a trusted plugin is compiled from source,
and the source is compared with its digest whenever it is read, also by a later import.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Final

from companion_core.plugin_host.pinned_imports import PinnedFinder
from companion_core.plugin_host.rules import FoundPlugin

__all__ = ["import_plugin"]


_FINDER: Final = PinnedFinder()


def import_plugin(plugin: FoundPlugin) -> ModuleType:
    """Import `plugin.module` and return it. Executes the plugin's code.

    Raises:
        ImportError: the result is not a plain module from the plugin's own file.
        BaseException: whatever the plugin's code raises.
    """
    _FINDER.pin(plugin.root, {file.path: file.sha256 for file in plugin.files})
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
    module = importlib.import_module(plugin.module)
    own = os.path.realpath(Path(plugin.root) / plugin.modules[plugin.module])
    # A module can replace itself in sys.modules with any object; only a plain module counts.
    if type(module) is not ModuleType or os.path.realpath(module.__file__ or "") != own:
        raise ImportError("the plugin is not a plain module of its own file", name=plugin.module)
    return module
