"""Confinement of runtimes: what they may reach, and the ways to hold them to it."""

from companion_core.runtime.isolation.confinement import (
    Confined,
    broker_command,
    confine,
    open_broker,
    with_fresh_bytecode,
)
from companion_core.runtime.isolation.control_group import ControlGroup, NoControlGroup
from companion_core.runtime.isolation.probing import (
    CeilingState,
    TierState,
    hold_ceilings,
    probe_ceilings,
    probe_isolation,
)
from companion_core.runtime.isolation.reach import Reach, reach_of

__all__ = [
    "CeilingState",
    "Confined",
    "ControlGroup",
    "NoControlGroup",
    "Reach",
    "TierState",
    "broker_command",
    "confine",
    "hold_ceilings",
    "open_broker",
    "probe_ceilings",
    "probe_isolation",
    "reach_of",
    "with_fresh_bytecode",
]
