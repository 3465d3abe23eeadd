"""Rules for this file: after the guard, a request passes lifecycle, admission and resources.

`GATE_ORDER` is that order, as data; the first step that refuses is the answer (I-10), and a
missing part of the context refuses (I-16). It asks nobody and changes nothing.

The gateway calls `gate_request` with three verdicts. Only the known answers of `tests/vectors`
ask `evaluate_runtime_request`, which draws them from the raw state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from typing import Final

from companion_core.decisions.admission import evaluate_admission
from companion_core.decisions.lifecycle import can_serve_inference
from companion_core.decisions.resources import evaluate_resources
from companion_core.decisions.verdict import OK, Verdict, refuse
from companion_core.errors import Reason

__all__ = ["GATE_ORDER", "GateStep", "evaluate_runtime_request", "gate_request"]


@dataclass(frozen=True, slots=True)
class GateStep:
    """One step of the gate: its name, and the reasons it may refuse with."""

    name: str
    refusals: tuple[Reason, ...]


GATE_ORDER: Final[tuple[GateStep, ...]] = (
    GateStep("lifecycle", (Reason.NOT_READY,)),
    GateStep(
        "admission",
        (Reason.MALFORMED_ADMISSION_STATE, Reason.AT_CAPACITY, Reason.QUEUE_FULL),
    ),
    GateStep(
        "resources",
        (
            Reason.MALFORMED_LIMITS,
            Reason.PROBE_FAILED,
            Reason.MALFORMED_OBSERVATION,
            Reason.RAM_OVER_LIMIT,
            Reason.VRAM_OVER_LIMIT,
            Reason.CPU_OVER_LIMIT,
        ),
    ),
)
# Which argument of `gate_request` is judged first, second and third.
_ARGUMENTS = ("lifecycle", "admission", "resources")
_in_order: Callable[[tuple[Verdict, ...]], tuple[Verdict, ...]] = itemgetter(
    *(_ARGUMENTS.index(step.name) for step in GATE_ORDER)
)

_NOT_READY = refuse(Reason.NOT_READY)
_MISSING = refuse(Reason.MALFORMED_REQUEST_PARAMS)


def gate_request(lifecycle: Verdict, admission: Verdict, resources: Verdict) -> Verdict:
    """Return the first refusal in the order of `GATE_ORDER`, or OK."""
    first, second, third = _in_order((lifecycle, admission, resources))
    if not first.ok:
        return first
    if not second.ok:
        return second
    return third


def evaluate_runtime_request(
    *, lifecycle: object, admission: object, observation: object, limits: object
) -> Verdict:
    """Decide from the raw state whether a request may start model work now.

    Args:
        lifecycle: a `decisions.lifecycle.State`.
        admission: an `AdmissionSnapshot`.
        observation: a `providers.ResourceObservation`.
        limits: a `providers.ResourceLimits`.
    """
    if lifecycle is None or admission is None or observation is None or limits is None:
        return _MISSING
    return gate_request(
        OK if can_serve_inference(lifecycle) else _NOT_READY,
        evaluate_admission(admission),
        evaluate_resources(observation, limits),
    )
