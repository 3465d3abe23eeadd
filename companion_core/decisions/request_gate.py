"""Rules for this file: after the guard, a request passes lifecycle, admission and resources.

The first refusal in that order is the answer (I-10), and a part of the context that is
missing refuses (I-16). Imports decisions only; it asks nobody and changes nothing.
"""

from __future__ import annotations

from companion_core.decisions.admission import evaluate_admission
from companion_core.decisions.lifecycle import can_serve_inference
from companion_core.decisions.resources import evaluate_resources
from companion_core.decisions.verdict import OK, Verdict, refuse
from companion_core.errors import Reason

__all__ = ["evaluate_runtime_request", "gate_request"]

_NOT_READY = refuse(Reason.NOT_READY)
_MISSING = refuse(Reason.MALFORMED_REQUEST_PARAMS)


def gate_request(lifecycle: Verdict, admission: Verdict, resources: Verdict) -> Verdict:
    """Return the first refusal in the order of I-10, or OK."""
    if not lifecycle.ok:
        return lifecycle
    if not admission.ok:
        return admission
    return resources


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
