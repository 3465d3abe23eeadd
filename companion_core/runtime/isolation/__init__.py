"""Confinement of a runtime: what it may reach, and the tiers that enforce it."""

from companion_core.runtime.isolation.confinement import (
    Confined,
    broker_command,
    confine,
    open_broker,
    with_fresh_bytecode,
)
from companion_core.runtime.isolation.control_group import ControlGroup, NoControlGroup
from companion_core.runtime.isolation.policy import SandboxPolicy, sandbox_policy
from companion_core.runtime.isolation.probing import (
    CeilingState,
    TierState,
    probe_ceilings,
    probe_isolation,
    set_ceilings,
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
    "open_broker",
    "probe_ceilings",
    "probe_isolation",
    "sandbox_policy",
    "set_ceilings",
    "with_fresh_bytecode",
]
