"""The kit fails a probe that does not conform: one broken probe for each rule."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from kit_checks import assert_breaks

from companion_core.providers import ProbeTarget, ResourceObservation
from companion_core.runtime.resources import probe
from companion_core.testing import FakeProbe, check_probe
from companion_core.testing.probe_kit import PROBE_RULES

pytestmark = pytest.mark.unit


def observation(**changes: Any) -> ResourceObservation:
    return replace(ResourceObservation(ram_bytes=1, vram_bytes=0, cpu_percent=0.0), **changes)


class Counting(FakeProbe):
    """Believes in processes that are not there."""

    def observe(self, target: ProbeTarget) -> ResourceObservation:
        if target.pids == self.imagined:
            return observation()
        return probe.companion_probe().observe(target)


PROBES = [
    (1, object()),
    (2, FakeProbe(observation=None)),
    (2, FakeProbe(observation={"ram_bytes": 1})),
    (2, FakeProbe(observation=observation(cpu_percent=101))),
    (2, FakeProbe(observation=observation(vram_bytes=-1))),
    (2, FakeProbe(observation=observation(ram_bytes=float("nan")))),
    (3, FakeProbe(observation=observation(ram_bytes=0))),
    (4, FakeProbe()),
    (5, type("Ghosts", (Counting,), {"imagined": (2**22 + 1,)})()),
    (6, type("Ghosts", (Counting,), {"imagined": ()})()),
]


@pytest.mark.parametrize(("rule", "broken"), PROBES)
def test_a_probe_that_breaks_a_rule_is_named(rule: int, broken: Any):
    assert_breaks(rule, PROBE_RULES, "probe", lambda: check_probe(broken))


def test_the_cores_probe_conforms():
    check_probe(probe.companion_probe())
    assert {rule for rule, _ in PROBES} == set(PROBE_RULES)
