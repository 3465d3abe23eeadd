"""Rules for this file: whether the runtime's process tree is within its ceilings (I-12).

Limits are judged before the observation, RAM before VRAM before CPU; equal to a ceiling is
within it. Limits or numbers that are malformed deny; only VRAM may be without a ceiling.
"""

from __future__ import annotations

from typing import Final

from companion_core.decisions.numbers import is_finite
from companion_core.decisions.verdict import OK, Verdict, refuse
from companion_core.errors import Reason
from companion_core.providers import ResourceLimits, ResourceObservation

__all__ = ["check_limits", "check_memory", "evaluate_resources"]

_MAX_CPU_PERCENT: Final = 100


def check_limits(limits: object) -> Verdict:
    """Return whether `limits` is a `ResourceLimits` that can be enforced (I-12, I-16).

    RAM and VRAM are bytes above zero, CPU is a share of the whole machine in (0, 100].
    `max_vram_bytes` None means no ceiling, for machines without a GPU.
    """
    if (
        isinstance(limits, ResourceLimits)
        and is_finite(limits.max_ram_bytes)
        and limits.max_ram_bytes > 0
        and (
            limits.max_vram_bytes is None
            or (is_finite(limits.max_vram_bytes) and limits.max_vram_bytes > 0)
        )
        and is_finite(limits.max_cpu_percent)
        and 0 < limits.max_cpu_percent <= _MAX_CPU_PERCENT
    ):
        return OK
    return refuse(Reason.MALFORMED_LIMITS)


def check_memory(needed: object, free_ram: object, free_vram: object, limits: object) -> Verdict:
    """Return whether a model may be loaded now: within the ceilings, and within what is free.

    Args:
        needed: bytes of the model's files, which is the least that running it takes.
        free_ram: bytes that can be had without swapping.
        free_vram: bytes of the accelerators, 0 without any.
        limits: the ceilings.
    """
    checked = check_limits(limits)
    if not checked.ok or not isinstance(limits, ResourceLimits):
        return checked
    if not (is_finite(needed) and is_finite(free_ram) and is_finite(free_vram)):
        return refuse(Reason.MALFORMED_OBSERVATION)
    if min(needed, free_ram, free_vram) < 0:
        return refuse(Reason.MALFORMED_OBSERVATION)
    ceiling = limits.max_vram_bytes
    video = free_vram if ceiling is None else min(free_vram, ceiling)
    if needed > limits.max_ram_bytes + video:
        return refuse(Reason.RAM_OVER_LIMIT)
    return OK if needed <= free_ram + video else refuse(Reason.MEMORY_SHORT)


def evaluate_resources(observation: object, limits: object) -> Verdict:
    """Return whether what was observed is within `limits` (I-12).

    `observation` is a `ResourceObservation`: bytes, bytes, and a share of the whole machine.
    """
    checked = check_limits(limits)
    if not checked.ok or not isinstance(limits, ResourceLimits):
        return checked
    if not (
        isinstance(observation, ResourceObservation)
        and is_finite(observation.ram_bytes)
        and observation.ram_bytes >= 0
        and is_finite(observation.vram_bytes)
        and observation.vram_bytes >= 0
        and is_finite(observation.cpu_percent)
        and observation.cpu_percent >= 0
    ):
        return refuse(Reason.MALFORMED_OBSERVATION)
    if observation.ram_bytes > limits.max_ram_bytes:
        return refuse(Reason.RAM_OVER_LIMIT)
    if limits.max_vram_bytes is not None and observation.vram_bytes > limits.max_vram_bytes:
        return refuse(Reason.VRAM_OVER_LIMIT)
    if observation.cpu_percent > limits.max_cpu_percent:
        return refuse(Reason.CPU_OVER_LIMIT)
    return OK
