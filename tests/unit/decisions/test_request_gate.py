"""The gate: its order is the table, every step refuses, and a missing part refuses."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion_core.decisions.admission import AdmissionSnapshot, create_admission
from companion_core.decisions.lifecycle import State
from companion_core.decisions.request_gate import GATE_ORDER, evaluate_runtime_request, gate_request
from companion_core.decisions.verdict import OK, refuse
from companion_core.errors import Reason
from companion_core.providers import ResourceLimits, ResourceObservation

pytestmark = pytest.mark.unit

STEPS = [step.name for step in GATE_ORDER]
LIMITS = ResourceLimits(max_ram_bytes=8, max_vram_bytes=8, max_cpu_percent=80)
CALM = ResourceObservation(ram_bytes=1, vram_bytes=1, cpu_percent=1)
CONTEXT: dict[str, Any] = {
    "lifecycle": State.READY,
    "admission": create_admission(2, 2),
    "observation": CALM,
    "limits": LIMITS,
}


def _admission(in_flight: int, queued: int) -> AdmissionSnapshot:
    return AdmissionSnapshot(in_flight=in_flight, max_in_flight=2, queued=queued, queue_bound=2)


# One way to get each refusal of each step. That a probe failed is known to whoever asked it,
# and comes to the gate as the verdict of its resources.
FAILURES: dict[str, dict[Reason, dict[str, Any]]] = {
    "lifecycle": {Reason.NOT_READY: {"lifecycle": State.DRAINING}},
    "admission": {
        Reason.MALFORMED_ADMISSION_STATE: {"admission": _admission(3, 0)},
        Reason.AT_CAPACITY: {"admission": _admission(2, 0)},
        Reason.QUEUE_FULL: {"admission": _admission(2, 2)},
    },
    "resources": {
        Reason.MALFORMED_LIMITS: {"limits": dataclasses.replace(LIMITS, max_ram_bytes=0)},
        Reason.PROBE_FAILED: {},
        Reason.MALFORMED_OBSERVATION: {
            "observation": dataclasses.replace(CALM, ram_bytes=-1),
        },
        Reason.RAM_OVER_LIMIT: {"observation": dataclasses.replace(CALM, ram_bytes=9)},
        Reason.VRAM_OVER_LIMIT: {"observation": dataclasses.replace(CALM, vram_bytes=9)},
        Reason.CPU_OVER_LIMIT: {"observation": dataclasses.replace(CALM, cpu_percent=81)},
    },
}
STATES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(), st.sampled_from([*State, {}, [], 10**400])
)


def test_the_table_is_the_order_that_others_rely_on() -> None:
    assert STEPS == ["lifecycle", "admission", "resources"]
    for step in GATE_ORDER:
        assert step.refusals == tuple(FAILURES[step.name])


@pytest.mark.parametrize("step", STEPS)
def test_every_refusal_of_the_table_is_given(step: str) -> None:
    for reason, change in FAILURES[step].items():
        assert gate_request(**dict.fromkeys(STEPS, OK) | {step: refuse(reason)}).reason is reason
        if change:
            assert evaluate_runtime_request(**CONTEXT | change).reason is reason


def test_the_first_refusal_in_the_order_of_the_table_is_the_answer() -> None:
    refusals = {step.name: refuse(step.refusals[0]) for step in GATE_ORDER}
    for refused in itertools.product((False, True), repeat=len(STEPS)):
        verdicts = {
            name: refusals[name] if no else OK for name, no in zip(STEPS, refused, strict=True)
        }
        expected = next((verdict for verdict in verdicts.values() if not verdict.ok), OK)
        assert gate_request(**verdicts) is expected


def test_the_raw_state_is_judged_in_the_same_order() -> None:
    for first, second in itertools.combinations(STEPS, 2):
        for reason, change in FAILURES[first].items():
            for later in FAILURES[second].values():
                assert evaluate_runtime_request(**CONTEXT | later | change).reason is reason


@pytest.mark.parametrize("missing", list(CONTEXT))
def test_every_part_is_needed(missing: str) -> None:
    assert evaluate_runtime_request(**CONTEXT) is OK
    verdict = evaluate_runtime_request(**CONTEXT | {missing: None})
    assert verdict.reason is Reason.MALFORMED_REQUEST_PARAMS


@given(STATES, STATES, STATES, STATES)
def test_is_total_and_junk_is_refused(
    lifecycle: Any, admission: Any, observation: Any, limits: Any
) -> None:
    context = {
        "lifecycle": lifecycle,
        "admission": admission,
        "observation": observation,
        "limits": limits,
    }
    verdict = evaluate_runtime_request(**context)
    assert not verdict.ok
    assert verdict is evaluate_runtime_request(**context), "answers are made once"


@given(st.sampled_from(list(CONTEXT)), STATES)
def test_one_part_of_junk_is_enough(part: str, junk: Any) -> None:
    verdict = evaluate_runtime_request(**CONTEXT | {part: junk})
    assert verdict.ok == (part == "lifecycle" and junk == "ready")
