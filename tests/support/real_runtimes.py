"""The two real runtimes behind the same gateway: embedded llama.cpp, and Ollama.

COMPANION_TEST_OLLAMA names the program of the second; `.ci/run` says where it comes from.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import serving_parts

from companion_core.decisions.isolation import Tier
from companion_core.egress.live import LiveEgress
from companion_core.runtime.isolation import probe_isolation
from companion_core.serving.serving import Serving

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "companion_core" / "demo" / "model" / "companion-tiny.gguf"
NAMES = ("llama.cpp", "Ollama")


def make_real(name: str, folder: Path, **changes: Any) -> Serving:
    """Return a gateway that would start the runtime in the best tier; `missing` says if it can."""
    made = _llama() if name == "llama.cpp" else _ollama()
    spawner, health, rest = made
    alter: Callable[[Any], Any] | None = changes.pop("alter", None)
    if alter is not None:
        spawner = Altered(spawner, alter)
    return serving_parts.make_serving(
        folder, spawner=spawner, health=health, **{"tier": Tier.BUBBLEWRAP, **rest, **changes}
    )


@functools.cache
def _working_tiers() -> frozenset[Tier]:
    return frozenset(state.tier for state in probe_isolation(LiveEgress()) if state.works)


def missing(name: str) -> str | None:
    """Return the name of the real part that is missing, or None."""
    if Tier.BUBBLEWRAP not in _working_tiers():
        return "bubblewrap"
    if name == "Ollama":
        return None if os.access(ollama_program(), os.X_OK) else "ollama (COMPANION_TEST_OLLAMA)"
    parts = ("companion_runtime_llamacpp", "xllamacpp")
    return next((part for part in parts if importlib.util.find_spec(part) is None), None)


class Altered:
    """A spawner whose plans are changed."""

    def __init__(self, spawner: Any, alter: Callable[[Any], Any]) -> None:
        self._spawner, self._alter = spawner, alter

    def __getattr__(self, name: str) -> Any:
        return getattr(self._spawner, name)

    def plan(self, request: Any) -> Any:
        return self._alter(self._spawner.plan(request))


def _llama() -> tuple[Any, Any, dict[str, Any]]:
    plugin = importlib.import_module("companion_runtime_llamacpp.plugin")
    modules = frozenset({"companion_runtime_llamacpp.embedded"})
    return plugin.companion_spawn(), plugin.companion_health(), {"modules": modules}


def _ollama() -> tuple[Any, Any, dict[str, Any]]:
    # The plugin is not installed where there is no Ollama.
    sources = str(ROOT / "plugins" / "runtime_ollama")
    sys.path.insert(0, sources)
    try:
        plugin = importlib.import_module("companion_runtime_ollama.plugin")
    finally:
        sys.path.remove(sources)
    program = ollama_program()
    with Path(program).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return (
        plugin.companion_spawn(),
        plugin.companion_health(),
        {"binary": program, "binary_sha256": digest},
    )


def ollama_program() -> str:
    return os.environ.get("COMPANION_TEST_OLLAMA") or shutil.which("ollama") or ""
