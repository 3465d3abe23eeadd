"""The gate: the first refusal in the order is the answer, and a missing part refuses."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from companion_core.decisions.admission import create_admission
from companion_core.decisions.lifecycle import State
from companion_core.decisions.request_gate import evaluate_runtime_request, gate_request
from companion_core.decisions.verdict import OK, refuse
from companion_core.errors import Reason
from companion_core.providers import ResourceLimits, ResourceObservation

pytestmark = pytest.mark.unit

REASONS = (Reason.NOT_READY, Reason.QUEUE_FULL, Reason.RAM_OVER_LIMIT)


def test_the_first_refusal_is_the_answer() -> None:
    for refused in itertools.product((False, True), repeat=3):
        verdicts = [refuse(r) if no else OK for r, no in zip(REASONS, refused, strict=True)]
        expected = next((verdict for verdict in verdicts if not verdict.ok), OK)
        assert gate_request(*verdicts) is expected


@pytest.mark.parametrize("missing", [None, "lifecycle", "admission", "observation", "limits"])
def test_every_part_is_needed(missing: str | None) -> None:
    context: dict[str, Any] = {
        "lifecycle": State.READY,
        "admission": create_admission(2, 2),
        "observation": ResourceObservation(ram_bytes=1, vram_bytes=0, cpu_percent=0.0),
        "limits": ResourceLimits(max_ram_bytes=2, max_vram_bytes=None, max_cpu_percent=100.0),
    }
    if missing is None:
        assert evaluate_runtime_request(**context) == OK
    else:
        context[missing] = None
        assert evaluate_runtime_request(**context).reason is Reason.MALFORMED_REQUEST_PARAMS
