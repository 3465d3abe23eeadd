from __future__ import annotations

import itertools
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from companion_core.errors import Reason
from companion_core.providers import CannotPlan, HealthResponse, SpawnPlan, SpawnRequest
from companion_core.testing import (
    TCP,
    UNIX,
    SpawnerAbilities,
    accepted_plan,
    check_health_checker,
    check_spawner,
    spawn_request,
)

plugin = pytest.importorskip("companion_runtime_llamacpp.plugin", reason="not installed")
spawner_module = pytest.importorskip("companion_runtime_llamacpp.spawner")

pytestmark = pytest.mark.unit

REQUEST = spawn_request(
    embedded=True, binary="/opt/python", parallel=2, threads=3, context_length=512
)
SERVER = replace(REQUEST, binary="/opt/llama-server", embedded=False)
MODEL = REQUEST.model_path


def planned(request: SpawnRequest) -> SpawnPlan:
    """The core's own copy of the plan."""
    spawner = plugin.companion_spawn()
    modules = frozenset({spawner_module.EMBEDDED_MODULE})
    plan = accepted_plan(spawner, spawner.plan(request), request, embedded_modules=modules)
    assert isinstance(plan, SpawnPlan), plan
    return plan


@pytest.mark.parametrize("request_", [REQUEST, SERVER], ids=["embedded", "stand-alone"])
@pytest.mark.parametrize("channel", [UNIX, TCP], ids=["unix", "tcp"])
def test_every_form_passes_the_cores_rules(request_, channel) -> None:
    plan = planned(replace(request_, channel=channel))
    assert plan.served_model == "tiny"
    assert plan.backend_key_env == (None if channel is UNIX else "LLAMA_API_KEY")
    assert not plan.env
    assert not any("API" in part or "key" in part for part in plan.argv)


def test_the_embedded_server_gets_its_settings_as_one_object() -> None:
    plan = planned(replace(REQUEST, options={"gpu_layers": 4}, chat_template="{{ x }}"))
    assert plan.argv[:4] == ("/opt/python", "-I", "-m", spawner_module.EMBEDDED_MODULE)
    assert plan.argv[4:6] == (MODEL, UNIX.path)
    assert json.loads(plan.argv[6]) == {
        "alias": "tiny",
        "batch": None,
        "chat_template": "{{ x }}",
        "embeddings": False,
        "flash_attention": None,
        "gpu_layers": 4,
        "parallel": 2,
        "threads": 3,
        "total_context": 1024,
    }
    # It listens first and answers 503 while the model loads, so only the health check counts.
    assert plan.ready_text is None


def test_the_stand_alone_server_is_hardened() -> None:
    options = {"flash_attention": True, "gpu_layers": 0, "embeddings": True}
    plan = planned(replace(SERVER, options=options, chat_template="T"))
    assert " ".join(plan.argv) == (
        f"/opt/llama-server --model {MODEL} --alias tiny --host {UNIX.path}"
        " --parallel 2 --threads 3 --ctx-size 1024"
        " --batch-size 512 --ubatch-size 512"
        " --offline --no-webui --no-slots --cache-ram 0 --cors-origins localhost"
        " --no-cors-credentials"
        " --flash-attn on --n-gpu-layers 0 --embeddings --pooling mean"
        " --jinja --chat-template T"
    )
    assert plan.ready_text is None
    assert not plan.gpu


@pytest.mark.parametrize(
    ("help_text", "flags"),
    [
        ("--offline\n--ui, --no-ui\n--slots, --no-slots", ["--offline", "--no-ui", "--no-slots"]),
        (
            "--no-webui --cache-ram N --cors-origins X",
            ["--no-webui", "--cache-ram", "--cors-origins"],
        ),
        ("usage: llama-server --model FILE", []),
    ],
)
def test_flags_are_named_as_the_program_names_them(help_text, flags) -> None:
    argv = planned(replace(SERVER, help_text=help_text)).argv
    hardening = {"--offline", "--no-slots", "--no-webui", "--no-ui", "--cache-ram"}
    hardening |= {"--cors-origins", "--no-cors-credentials"}
    assert [part for part in argv if part in hardening] == flags


@pytest.mark.parametrize("request_", [REQUEST, SERVER], ids=["embedded", "stand-alone"])
def test_each_place_has_a_context_of_its_own(request_) -> None:
    def told(request: SpawnRequest) -> tuple[int, int | None]:
        argv = planned(request).argv
        if request.embedded:
            settings = json.loads(argv[6])
            return settings["total_context"], settings["batch"]
        named = dict(itertools.pairwise(argv))
        batch = named.get("--ubatch-size")
        assert batch == named.get("--batch-size")
        assert not {"--kv-unified", "-kvu"} & set(argv)
        return int(named["--ctx-size"]), None if batch is None else int(batch)

    assert told(replace(request_, parallel=3, context_length=700)) == (2100, None)
    # An embedding is computed in one batch.
    embeddings = replace(request_, options={"embeddings": True})
    assert told(replace(embeddings, parallel=3, context_length=700)) == (2100, 700)
    # Nothing is known of the model: it divides its own.
    assert told(replace(request_, context_length=None)) == (0, None)
    assert told(replace(embeddings, context_length=None)) == (0, 2048)


@pytest.mark.parametrize(("options", "served"), [({}, False), ({"embeddings": True}, True)])
def test_embeddings_are_a_route_only_if_the_option_says_so(options, served) -> None:
    routes = {route.path for route in planned(replace(REQUEST, options=options)).routes}
    assert ("/v1/embeddings" in routes) is served
    assert "/v1/chat/completions" in routes


@pytest.mark.parametrize(
    "options",
    [
        {"flash_attention": "yes"},
        {"flash_attention": 1},
        {"embeddings": "no"},
        {"gpu_layers": -1},
        {"gpu_layers": 10_000},
        {"gpu_layers": True},
        {"gpu_layers": 1.5},
        {"gpu_layers": "all"},
    ],
)
def test_a_value_that_an_option_does_not_take_is_refused(options) -> None:
    with pytest.raises(CannotPlan) as caught:
        plugin.companion_spawn().plan(replace(REQUEST, options=options))
    assert caught.value.reason is Reason.UNKNOWN_OPTION


@pytest.mark.parametrize(
    ("status", "body", "healthy"),
    [
        (200, b'{"status":"ok"}', True),
        (503, b'{"status":"ok"}', False),
        (200, b'{"status":"loading"}', False),
        (200, b'["ok"]', False),
        (200, b"ok", False),
        (200, b"\xff", False),
        (200, b"[" * 100_000, False),
        (200, b"", False),
    ],
)
def test_health_is_exactly_the_documented_answer(status, body, healthy) -> None:
    checker = plugin.companion_health()
    assert checker.path == "/health"
    response = HealthResponse(status=status, body=body, served_model="tiny")
    assert checker.judge(response) is healthy


def test_locating_finds_the_installed_forms(monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: SimpleNamespace())
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/local/bin/{name}")
    found = plugin.companion_spawn().locate()
    assert [binary.path for binary in found] == ["embedded", "/usr/local/bin/llama-server"]
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    monkeypatch.setattr("shutil.which", lambda _name: None)
    assert plugin.companion_spawn().locate() == []


def test_both_providers_conform() -> None:
    modules = frozenset({spawner_module.EMBEDDED_MODULE})
    forms = frozenset({"embedded", "program"})
    check_spawner(plugin.companion_spawn(), SpawnerAbilities(forms=forms, embedded_modules=modules))
    healthy = HealthResponse(status=200, body=b'{"status":"ok"}', served_model="tiny")
    check_health_checker(plugin.companion_health(), healthy)
