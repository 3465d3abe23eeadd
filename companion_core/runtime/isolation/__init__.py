"""Confinement of runtimes: what they may reach, and the ways to hold them to it."""

from companion_core.runtime.isolation.confinement import (
    Confined,
    broker_command,
    confine,
    open_broker,
    with_fresh_bytecode,
)
from companion_core.runtime.isolation.control_group import ControlGroup, NoControlGroup
from companion_core.runtime.isolation.policy import (
    SandboxPolicy,
    sandbox_policy,
)
from companion_core.runtime.isolation.probing import (
    CeilingState,
    TierState,
    hold_ceilings,
    probe_ceilings,
    probe_isolation,
)

__all__ = [
    "CeilingState",
    "Confined",
    "ControlGroup",
    "NoControlGroup",
    "SandboxPolicy",
    "TierState",
    "broker_command",
    "confine",
    "hold_ceilings",
    "open_broker",
    "probe_ceilings",
    "probe_isolation",
    "sandbox_policy",
    "with_fresh_bytecode",
]
