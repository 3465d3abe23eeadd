"""The hooks; the entry point in `companion.runtime.v1` names this module."""

from __future__ import annotations

from companion_core import hookimpl
from companion_runtime_ollama.health import OllamaHealth
from companion_runtime_ollama.spawner import OllamaSpawner

__all__ = ["companion_health", "companion_spawn"]


@hookimpl
def companion_spawn() -> OllamaSpawner:
    """Register the spawner."""
    return OllamaSpawner()


@hookimpl
def companion_health() -> OllamaHealth:
    """Register the health check."""
    return OllamaHealth()
