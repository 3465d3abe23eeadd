"""Find out which tiers work on this machine, by confining a program as a runtime will be."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from companion_core.decisions.isolation import TIERS, Tier
from companion_core.egress.interface import Egress, EgressRefused
from companion_core.providers import ResourceLimits
from companion_core.runtime.isolation import bubblewrap, sandbox_exec
from companion_core.runtime.isolation.call_filter import MACHINES
from companion_core.runtime.isolation.control_group import (
    ControlGroup,
    NoControlGroup,
    find_delegated_group,
)
from companion_core.runtime.isolation.policy import SandboxPolicy
from companion_core.runtime.process import job_object
from companion_core.runtime.standalone import locks

__all__ = ["CeilingState", "TierState", "probe_ceilings", "probe_isolation", "set_ceilings"]

_PROBE_SECONDS: Final = 5.0
_ENVIRONMENT: Final = {"LANG": "C.UTF-8"}
# What every bubblewrap knows.
_PLAIN: Final = ("--unshare-all", "--ro-bind", "/", "/")


@dataclass(frozen=True, slots=True)
class TierState:
    """Whether a tier works here; `detail` is for a person and names what is missing."""

    tier: Tier
    works: bool
    detail: str


@dataclass(frozen=True, slots=True)
class CeilingState:
    """Whether the system itself enforces the ceilings (I-12); `detail` is for a person.

    Attributes:
        hard: the system enforces them; else they are observed, and a runtime above them is ended.
    """

    hard: bool
    detail: str


_IN_A_GROUP: Final = CeilingState(hard=True, detail="a control group of the runtime's own")


def probe_ceilings(platform: str = sys.platform) -> CeilingState:
    """Return whether a runtime would get hard ceilings here. Changes nothing."""
    if platform == "win32":
        return CeilingState(hard=True, detail="a job object; not tried on this system yet")
    if platform != "linux":
        return CeilingState(hard=False, detail="this system has none for a whole process tree")
    try:
        find_delegated_group()
    except NoControlGroup as error:
        return CeilingState(hard=False, detail=str(error))
    return _IN_A_GROUP


def set_ceilings(
    limits: ResourceLimits, platform: str = sys.platform
) -> tuple[ControlGroup | None, CeilingState]:
    """Make the control group that keeps a runtime below its ceilings, where that is possible.

    Returns:
        the group, which the caller closes, or None; and how the ceilings are enforced.
    """
    if platform != "linux":
        return None, probe_ceilings(platform)
    try:
        group = ControlGroup.make(limits)
    except NoControlGroup as error:
        return None, CeilingState(hard=False, detail=str(error))
    return group, _IN_A_GROUP


def probe_isolation(egress: Egress, platform: str = sys.platform) -> tuple[TierState, ...]:
    """Return the state of each tier of this system, the best first. Blocking, milliseconds."""
    probes = {
        Tier.BUBBLEWRAP: _probe_bubblewrap,
        Tier.LANDLOCK: _probe_landlock,
        Tier.SANDBOX_EXEC: _probe_sandbox_exec,
        Tier.JOB_OBJECT: _probe_job_object,
    }
    return tuple(probes[tier](egress) for tier in TIERS.get(platform, ()))


def _probe_bubblewrap(egress: Egress) -> TierState:
    program = bubblewrap.find_bubblewrap()
    if program is None:
        return TierState(Tier.BUBBLEWRAP, works=False, detail="bubblewrap is not installed")
    policy = SandboxPolicy.of_program(program)
    descriptor = os.open(os.devnull, os.O_RDONLY)
    calls = bubblewrap.open_filter(policy)
    inherited = (descriptor,) if calls is None else (descriptor, calls)
    try:  # mount a file by its descriptor, as a model is mounted
        mounting = replace(policy, models=(("/probe", descriptor),))
        asked = (program, "--version")
        command = bubblewrap.wrap(program, asked, mounting, folder="/", calls=calls)
        if _succeeds(egress, command, pass_fds=inherited):
            detail = "no network, an empty file system, an allow-list of system calls"
            if calls is None:
                detail = "no network, an empty file system; no list of this machine's system calls"
            return TierState(Tier.BUBBLEWRAP, works=True, detail=detail)
    finally:
        for each in inherited:
            os.close(each)
    detail = "this system allows no user namespaces"
    if _succeeds(egress, (program, *_PLAIN, "--", program, "--version")):
        detail = (
            "this bubblewrap knows no --ro-bind-fd or no --size; update it (version 0.10 is new"
            " enough)"
        )
    return TierState(Tier.BUBBLEWRAP, works=False, detail=detail)


def _probe_landlock(_egress: Egress) -> TierState:
    version = locks.landlock_version()
    if not version:
        return TierState(Tier.LANDLOCK, works=False, detail="the kernel has no Landlock")
    if not locks.seccomp_works():
        return TierState(Tier.LANDLOCK, works=False, detail="no seccomp filters")
    if sys.platform != "win32" and os.uname().machine not in MACHINES:
        detail = "no list of this machine's system calls"
        return TierState(Tier.LANDLOCK, works=False, detail=detail)
    return TierState(Tier.LANDLOCK, works=True, detail=f"Landlock version {version}, seccomp")


def _probe_sandbox_exec(egress: Egress) -> TierState:
    program = "/usr/bin/true"
    works = _succeeds(egress, sandbox_exec.wrap((program,), SandboxPolicy.of_program(program)))
    return TierState(Tier.SANDBOX_EXEC, works=works, detail="sandbox-exec")


def _probe_job_object(_egress: Egress) -> TierState:
    works = job_object.job_objects_work()
    return TierState(Tier.JOB_OBJECT, works=works, detail="job object; not tried here yet")


def _succeeds(egress: Egress, command: tuple[str, ...], pass_fds: Sequence[int] = ()) -> bool:
    try:
        process = egress.start_process(command, env=_ENVIRONMENT, pass_fds=pass_fds)
    except (OSError, EgressRefused):
        return False
    with process:
        try:
            return process.wait(_PROBE_SECONDS) == 0
        except subprocess.TimeoutExpired:
            process.kill()
            return False
