"""The document of `companion status --json`, key by key: other programs read it."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from companion_core import __version__
from companion_core.decisions.admission import AdmissionSnapshot
from companion_core.decisions.isolation import Tier
from companion_core.decisions.lifecycle import State
from companion_core.decisions.placement import Placement
from companion_core.errors import Reason
from companion_core.providers import ResourceObservation
from companion_core.serving.status import (
    CompanionStatus,
    GatewayStatus,
    ManifestStatus,
    ModelStatus,
    RuntimeStatus,
    SwapStatus,
)
from companion_core.serving.step import Step

pytestmark = pytest.mark.unit

STARTED_AT = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)


def test_a_companion_that_serves_says_all_of_it() -> None:
    status = CompanionStatus(
        available=True,
        reason=Reason.OK,
        pid=1,
        started_at=STARTED_AT,
        model=ModelStatus(id="tiny", verified=True, vouched_by="you", held="lease"),
        manifest=ManifestStatus(version=7, source="stored", fetched_at=STARTED_AT),
        lifecycle=State.READY,
        gateway=GatewayStatus(url="http://127.0.0.1:1/v1"),
        runtime=RuntimeStatus(
            name="llamacpp",
            pid=2,
            channel="unix",
            isolation=Tier.BUBBLEWRAP,
            ceilings="hard",
            ceilings_detail="a control group",
            placement=Placement.PARTLY_GPU,
            context_length=4096,
            model_context_length=8192,
        ),
        admission=AdmissionSnapshot(in_flight=1, max_in_flight=2, queued=3, queue_bound=4),
        resources=ResourceObservation(ram_bytes=5, vram_bytes=6, cpu_percent=7.5),
        gave_up=Reason.RAM_OVER_LIMIT,
        last_health_ok_seconds_ago=0.25,
        swap=SwapStatus(model="new", step=Step("download", "new", 1, 2)),
        step=Step("model", "proved"),
        version="7.5",
        plugins={"spawn": "llamacpp"},
    )
    document = {
        "available": True,
        "reason": "ok",
        "pid": 1,
        "started_at": "2026-01-02T03:04:05Z",
        "model": {"id": "tiny", "verified": True, "vouched_by": "you", "held": "lease"},
        "manifest": {"version": 7, "source": "stored", "fetched_at": "2026-01-02T03:04:05Z"},
        "lifecycle": "ready",
        "gateway": {"url": "http://127.0.0.1:1/v1"},
        "runtime": {
            "name": "llamacpp",
            "pid": 2,
            "channel": "unix",
            "isolation": "bubblewrap",
            "ceilings": "hard",
            "ceilings_detail": "a control group",
            "placement": "partly_gpu",
            "context_length": 4096,
            "model_context_length": 8192,
        },
        "admission": {"in_flight": 1, "max_in_flight": 2, "queued": 3, "queue_bound": 4},
        "resources": {"ram_bytes": 5, "vram_bytes": 6, "cpu_percent": 7.5},
        "gave_up": "ram_over_limit",
        "last_health_ok_seconds_ago": 0.25,
        "swap": {
            "model": "new",
            "step": {"name": "download", "text": "new", "done": 1, "total": 2},
        },
        "step": {"name": "model", "text": "proved", "done": 0, "total": 0},
        "version": "7.5",
        "plugins": {"spawn": "llamacpp"},
    }
    assert json.dumps(status.to_json()) == json.dumps(document)


def test_a_companion_that_has_nothing_yet_says_so_and_of_no_swap_and_no_step() -> None:
    status = CompanionStatus(
        available=False,
        reason=Reason.NOT_VERIFIED,
        pid=1,
        started_at=STARTED_AT,
        model=ModelStatus(id="tiny", verified=False),
    )
    assert status.to_json() == {
        "available": False,
        "reason": "not_verified",
        "pid": 1,
        "started_at": "2026-01-02T03:04:05Z",
        "model": {"id": "tiny", "verified": False, "vouched_by": None, "held": None},
        "manifest": None,
        "lifecycle": "stopped",
        "gateway": None,
        "runtime": None,
        "admission": None,
        "resources": None,
        "gave_up": None,
        "last_health_ok_seconds_ago": None,
        "version": __version__,
        "plugins": {},
    }


def test_a_swap_that_has_just_begun_has_no_step() -> None:
    assert SwapStatus(model="new", step=None).to_json() == {"model": "new", "step": None}
