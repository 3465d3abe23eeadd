from __future__ import annotations

import itertools
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from companion_core.decisions.placement import Placement, read_placement
from companion_core.errors import Reason
from companion_core.providers import (
    CannotPlan,
    HealthResponse,
    ModelFile,
    SpawnPlan,
    SpawnRequest,
)
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
        "adapters": [],
        "alias": "tiny",
        "batch": None,
        "chat_template": "{{ x }}",
        "embeddings": False,
        "flash_attention": None,
        "gpu_layers": 4,
        "parallel": 2,
        "projector": None,
        "prompt_threads": 3,
        "threads": 3,
        "total_context": 1024,
        "ubatch": None,
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


def test_each_file_reaches_llama_cpp_by_its_role() -> None:
    named = {
        "chat-00001-of-00002.gguf": "model",
        "chat-00002-of-00002.gguf": "model",
        "sees.gguf": "projector",
        "polite.gguf": "adapter",
        "brief.gguf": "adapter",
    }
    files = tuple(
        ModelFile(name=name, path=f"/verified/{name}", sha256="0" * 64, size=9, role=role)
        for name, role in named.items()
    )
    split = {"model_files": files, "model_path": files[0].path}
    server = planned(replace(SERVER, **split)).argv
    assert server[1:9] == (
        *("--model", "/verified/chat-00001-of-00002.gguf", "--alias", "tiny"),
        *("--mmproj", "/verified/sees.gguf", "--lora", "/verified/polite.gguf"),
    )
    assert server[9:11] == ("--lora", "/verified/brief.gguf")
    embedded = planned(replace(REQUEST, **split)).argv
    settings = json.loads(embedded[6])
    assert embedded[4] == "/verified/chat-00001-of-00002.gguf"
    assert settings["projector"] == "/verified/sees.gguf"
    assert settings["adapters"] == ["/verified/polite.gguf", "/verified/brief.gguf"]
    for argv in (server, embedded):  # llama.cpp finds the other parts by their names
        assert not any("00002-of" in part for part in argv)


def test_prompts_may_be_read_by_another_number_of_threads() -> None:
    asked = {"options": {"prompt_threads": 6}}
    settings = json.loads(planned(replace(REQUEST, **asked)).argv[6])
    assert (settings["threads"], settings["prompt_threads"]) == (3, 6)
    argv = planned(replace(SERVER, **asked)).argv
    assert argv[argv.index("--threads") :][:4] == ("--threads", "3", "--threads-batch", "6")
    assert "--threads-batch" not in planned(SERVER).argv  # then as many as generate


@pytest.mark.parametrize(
    ("options", "context", "told"),
    [
        ({"batch_size": 256}, 512, (256, 256)),
        ({"batch_size": 4096, "ubatch_size": 1024}, 4096, (4096, 1024)),
        ({"ubatch_size": 128}, 4096, (2048, 128)),
        ({"ubatch_size": 4096}, 4096, (4096, 4096)),
        # No batch is longer than all places together: what is left over would only take memory.
        ({"batch_size": 4096, "ubatch_size": 4096}, 512, (1024, 1024)),
        ({"batch_size": 4096}, None, (4096, 512)),
        ({"batch_size": 64, "embeddings": True}, 512, (512, 512)),
    ],
)
@pytest.mark.parametrize("request_", [REQUEST, SERVER], ids=["embedded", "stand-alone"])
def test_batches_fit_the_context(request_, options, context, told) -> None:
    argv = planned(replace(request_, options=options, context_length=context)).argv
    if request_.embedded:
        settings = json.loads(argv[6])
        assert (settings["batch"], settings["ubatch"]) == told
    else:
        named = dict(itertools.pairwise(argv))
        assert (int(named["--batch-size"]), int(named["--ubatch-size"])) == told


def test_where_the_layers_are_is_told() -> None:
    for request in (REQUEST, SERVER):
        texts = planned(request).placement_texts
        line = "load_tensors: offloaded 25/25 layers to GPU"
        assert read_placement(texts, line) is Placement.GPU
        assert read_placement(texts, "placed on accelerators: 0 MiB") is Placement.CPU
    required = replace(SERVER, require_gpu=True, help_text="-v, --verbosity N, --offline")
    assert planned(required).argv[-2:] == ("--verbosity", "4")
    # Its log has several lines for each request then, so it is not asked for without need.
    assert "--verbosity" not in planned(replace(required, require_gpu=False)).argv
    assert "--verbosity" not in planned(replace(required, help_text="--offline")).argv


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
        {"prompt_threads": 0},
        {"prompt_threads": 1025},
        {"prompt_threads": "2"},
        {"batch_size": 0},
        {"batch_size": 65537},
        {"ubatch_size": True},
        {"ubatch_size": 1.0},
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
