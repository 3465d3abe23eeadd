"""The side without secrets: it starts a runtime, watches it, and measures what it uses."""

from companion_core.runtime.inspect.readback import environment_names, listeners
from companion_core.runtime.isolation import (
    CeilingState,
    SandboxPolicy,
    TierState,
    probe_ceilings,
    probe_isolation,
)
from companion_core.runtime.liveness import computes_a_token
from companion_core.runtime.process.binary import (
    EMBEDDED,
    check_unreplaceable,
    digest_binary,
    prove_binary,
)
from companion_core.runtime.process.handle import describe_exit
from companion_core.runtime.process.output import quote
from companion_core.runtime.process.reclaim import left_behind, reclaim, start_folders
from companion_core.runtime.process.tree import descendants
from companion_core.runtime.resources import probe as process_probe
from companion_core.runtime.resources.free_memory import available_memory, require_memory
from companion_core.runtime.resources.monitor import ResourceMonitor
from companion_core.runtime.resources.probe import free_vram, has_driver
from companion_core.runtime.start.keep_awake import keep_awake
from companion_core.runtime.start.libraries import ProgramLibraries
from companion_core.runtime.start.listener import StartedBackend, StartListener
from companion_core.runtime.start.plan import StartSpec
from companion_core.runtime.start.polling import Polling
from companion_core.runtime.supervisor import Supervisor

__all__ = [
    "EMBEDDED",
    "CeilingState",
    "Polling",
    "ProgramLibraries",
    "ResourceMonitor",
    "SandboxPolicy",
    "StartListener",
    "StartSpec",
    "StartedBackend",
    "Supervisor",
    "TierState",
    "available_memory",
    "check_unreplaceable",
    "computes_a_token",
    "descendants",
    "describe_exit",
    "digest_binary",
    "environment_names",
    "free_vram",
    "has_driver",
    "keep_awake",
    "left_behind",
    "listeners",
    "probe_ceilings",
    "probe_isolation",
    "process_probe",
    "prove_binary",
    "quote",
    "reclaim",
    "require_memory",
    "start_folders",
]
