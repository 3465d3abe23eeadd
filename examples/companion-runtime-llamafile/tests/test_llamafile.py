from __future__ import annotations

import pytest
from companion_runtime_llamafile import plugin

from companion_core.providers import HealthResponse, SpawnPlan
from companion_core.testing import (
    TCP,
    SpawnerAbilities,
    accepted_plan,
    check_health_checker,
    check_spawner,
    spawn_request,
)

pytestmark = pytest.mark.unit


def test_both_providers_conform() -> None:
    check_spawner(plugin.companion_spawn(), SpawnerAbilities(forms=frozenset({"program"})))
    healthy = HealthResponse(status=200, body=b'{"status":"ok"}', served_model="tiny")
    check_health_checker(plugin.companion_health(), healthy)


def test_the_command_line_is_the_documented_one() -> None:
    spawner = plugin.companion_spawn()
    request = spawn_request(binary="/opt/llamafile", channel=TCP, options={"gpu_layers": 0})
    plan = accepted_plan(spawner, spawner.plan(request), request)
    assert isinstance(plan, SpawnPlan)
    assert " ".join(plan.argv) == (
        f"/opt/llamafile --server -m {request.model_path} --host 127.0.0.1 --port {TCP.port}"
        " --parallel 2 --threads 4 --ctx-size 8192 --n-gpu-layers 0"
    )
    assert plan.backend_key_env == "LLAMA_API_KEY"
    assert not plan.gpu


def test_health_waits_for_the_model() -> None:
    judge = plugin.companion_health().judge
    loading = b'{"error":{"code":503,"message":"Loading model"}}'
    assert not judge(HealthResponse(status=503, body=loading, served_model="tiny"))
    assert not judge(HealthResponse(status=200, body=b"[]", served_model="tiny"))


def test_locating_finds_the_installed_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/local/bin/{name}")
    found = plugin.companion_spawn().locate()
    assert [binary.path for binary in found] == ["/usr/local/bin/llamafile"]
    monkeypatch.setattr("shutil.which", lambda _name: None)
    assert plugin.companion_spawn().locate() == []
