"""The metrics: cumulative buckets that a collector can read, whatever was observed."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion_core.decisions.admission import create_admission
from companion_core.errors import Reason
from companion_core.gateway.metrics import BUCKETS, RequestMetrics

pytestmark = pytest.mark.unit

OBSERVED = st.tuples(
    st.sampled_from(["/v1/models", "other"]), st.sampled_from(list(Reason)), st.floats(0, 1000)
)


@given(st.lists(OBSERVED, max_size=20))
def test_buckets_are_cumulative_and_agree_with_count_and_sum(
    observed: list[tuple[str, Reason, float]],
) -> None:
    metrics = RequestMetrics(["/v1/models"])
    for one in observed:
        metrics.observe(*one)
    text = metrics.text(create_admission(2, 16), connections=3)
    for path, reason in {(path, reason) for path, reason, _ in observed}:
        seconds = [s for p, r, s in observed if (p, r) == (path, reason)]
        labels = f'path="{path}",reason="{reason.value}"'
        rows = re.findall(rf"_bucket\{{{labels},le=\"([^\"]+)\"\}} (\d+)", text)
        expected = [sum(s <= bound for s in seconds) for bound in BUCKETS] + [len(seconds)]
        assert [int(number) for _, number in rows] == expected
        assert [float(bound) for bound, _ in rows] == [*BUCKETS, float("inf")]
        assert f"companion_request_seconds_count{{{labels}}} {len(seconds)}\n" in text
        total = re.search(rf"_sum\{{{labels}\}} ([0-9.]+)", text)
        assert total is not None
        assert float(total[1]) == pytest.approx(sum(seconds), abs=1e-5)
    assert "companion_max_in_flight 2\n" in text
    assert "companion_connections 3\n" in text


def test_paths_that_are_not_listed_share_a_label() -> None:
    metrics = RequestMetrics(["/v1/models"])
    for path in ("/v1/models", "/secret", "", "other", "/secret"):
        metrics.observe(path, Reason.OK, 0.1)
    text = metrics.text(create_admission(2, 16), connections=0)
    assert "secret" not in text
    assert 'companion_request_seconds_count{path="/v1/models",reason="ok"} 1\n' in text
    assert 'companion_request_seconds_count{path="other",reason="ok"} 4\n' in text
