"""Rules for this file: counters in, Prometheus text out (exposition format 0.0.4).

Labels come from closed lists: served paths and reasons. Nothing a client sent is a label.
"""

from __future__ import annotations

from collections.abc import Mapping

from companion_core.decisions.admission import AdmissionSnapshot
from companion_core.errors import Reason

__all__ = ["metrics_text"]


def metrics_text(
    counts: Mapping[tuple[str, Reason], int], admission: AdmissionSnapshot, connections: int
) -> str:
    """Return the text that `companion metrics` prints."""
    lines = [
        "# HELP companion_requests_total Requests answered, by path and reason.",
        "# TYPE companion_requests_total counter",
    ]
    lines += [
        f'companion_requests_total{{path="{path}",reason="{reason.value}"}} {number}'
        for (path, reason), number in sorted(counts.items())
    ]
    gauges = {
        "in_flight": ("Requests that the runtime works on.", admission.in_flight),
        "max_in_flight": ("Requests that it may work on at once.", admission.max_in_flight),
        "queued": ("Requests that wait for a place.", admission.queued),
        "queue_bound": ("Requests that may wait.", admission.queue_bound),
        "connections": ("Client connections that are open.", connections),
    }
    for name, (text, value) in gauges.items():
        lines.append(f"# HELP companion_{name} {text}")
        lines.append(f"# TYPE companion_{name} gauge")
        lines.append(f"companion_{name} {value}")
    return "\n".join(lines) + "\n"
