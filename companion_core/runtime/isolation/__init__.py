"""Confinement of runtimes: what they may reach, and the ways to hold them to it."""

from companion_core.runtime.isolation.confinement import (
    Confined,
    broker_command,
    confine,
    open_broker,
    with_fresh_bytecode,
)
from companion_core.runtime.isolation.probing import TierState, probe_isolation
from companion_core.runtime.isolation.reach import Reach, reach_of

__all__ = [
    "Confined",
    "Reach",
    "TierState",
    "broker_command",
    "confine",
    "open_broker",
    "probe_isolation",
    "reach_of",
    "with_fresh_bytecode",
]
