"""The hooks; the entry point in `companion.runtime.v1` names this module."""

from __future__ import annotations

from companion_core import hookimpl
from companion_runtime_llamacpp.health import LlamaHealth
from companion_runtime_llamacpp.spawner import LlamaSpawner

__all__ = ["companion_health", "companion_spawn"]


@hookimpl
def companion_spawn() -> LlamaSpawner:
    """Register the spawner."""
    return LlamaSpawner()


@hookimpl
def companion_health() -> LlamaHealth:
    """Register the health check."""
    return LlamaHealth()
