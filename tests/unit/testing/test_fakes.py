"""The fakes keep the promises of their seams, and break them as told."""

from __future__ import annotations

import pytest

from companion_core.errors import Reason
from companion_core.providers import (
    CannotPlan,
    DownloadFailed,
    DownloadRequest,
    HealthResponse,
    ProbeFailed,
    ProbeTarget,
    Redirect,
    ResumeRefused,
    SpawnPlan,
)
from companion_core.testing import (
    FakeDownloader,
    FakeHealthChecker,
    FakeProbe,
    FakeSpawner,
    accepted_plan,
    spawn_request,
)

pytestmark = pytest.mark.unit

URL = "https://models.example.org/tiny.bin"


def test_a_downloader_from_memory():
    fake = FakeDownloader({URL: b"0123456789"}, redirects={f"{URL}?old": URL})
    assert fake.open(DownloadRequest(url=URL)).read() == b"0123456789"
    assert fake.open(DownloadRequest(url=URL, offset=4)).read() == b"456789"
    fake.truncate = 3
    assert fake.open(DownloadRequest(url=URL)).read() == b"012"
    fake.resumable = False
    with pytest.raises(ResumeRefused):
        fake.open(DownloadRequest(url=URL, offset=4))
    with pytest.raises(Redirect) as caught:
        fake.open(DownloadRequest(url=f"{URL}?old"))
    assert caught.value.url == URL
    with pytest.raises(DownloadFailed):
        fake.open(DownloadRequest(url="https://elsewhere.example.org/"))
    assert len(fake.requests) == 6


def test_a_probe_and_a_health_checker_that_were_told():
    target = ProbeTarget(pids=(1,))
    probe = FakeProbe()
    assert probe.observe(target).ram_bytes == 1
    probe.observation = None
    with pytest.raises(ProbeFailed):
        probe.observe(target)
    assert probe.targets == [target, target]
    checker = FakeHealthChecker()
    good, bad = (HealthResponse(status=s, body=b"", served_model="tiny") for s in (200, 503))
    assert (checker.judge(good), checker.judge(bad)) == (True, False)
    assert checker.responses == [good, bad]


def test_a_spawner_plans_programs_only():
    spawner = FakeSpawner(program="/opt/fake")
    request = spawn_request()
    assert isinstance(accepted_plan(spawner, spawner.plan(request), request), SpawnPlan)
    assert [binary.path for binary in spawner.locate()] == ["/opt/fake"]
    with pytest.raises(CannotPlan) as caught:
        spawner.plan(spawn_request(embedded=True))
    assert caught.value.reason is Reason.PLAN_REFUSED
