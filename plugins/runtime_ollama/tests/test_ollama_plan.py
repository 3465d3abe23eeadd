from __future__ import annotations

import json
from dataclasses import replace

import pytest

from companion_core.decisions.spawn_plan import PlanFacts, check_plan
from companion_core.decisions.verdict import Verdict
from companion_core.errors import Reason
from companion_core.providers import (
    CannotPlan,
    Expected,
    HealthResponse,
    SpawnPlan,
    SpawnRequest,
)
from companion_core.testing import (
    TCP,
    UNIX,
    SpawnerAbilities,
    check_health_checker,
    check_spawner,
    spawn_request,
)

plugin = pytest.importorskip("companion_runtime_ollama.plugin", reason="not installed")
SERVED = "companion/model:latest"

pytestmark = pytest.mark.unit

REQUEST = spawn_request(
    binary="/opt/ollama", channel=TCP, data_dir="/data", parallel=2, threads=3, context_length=512
)
(MODEL,) = REQUEST.model_files


def checked(
    request: SpawnRequest, *, allow_open_backend: bool = True, windows: bool = False
) -> SpawnPlan | Verdict:
    spawner = plugin.companion_spawn()
    facts = PlanFacts(
        binary=request.binary,
        embedded=request.embedded,
        embedded_modules=frozenset(),
        env_names=spawner.env_names,
        base_names=frozenset({"PATH", "HOME", "TMPDIR", "LANG"}),
        model_path=request.model_path,
        channel=request.channel,
        data_dir=request.data_dir,
        allow_open_backend=allow_open_backend,
        windows=windows,
    )
    return check_plan(spawner.plan(request), facts)


def test_the_core_accepts_the_plan_if_the_person_accepted_an_open_backend() -> None:
    plan = checked(REQUEST)
    assert isinstance(plan, SpawnPlan)
    assert plan.argv == ("/opt/ollama", "serve")
    assert plan.served_model == SERVED
    assert plan.model_link == f"/data/models/blobs/sha256-{MODEL.sha256}"
    assert plan.model_copies == (plan.model_link,)
    assert plan.store == "/data/models"
    assert plan.read_paths == ("/lib/ollama",)
    assert plan.env == {
        "OLLAMA_CONTEXT_LENGTH": "512",
        "OLLAMA_HOST": f"127.0.0.1:{TCP.port}",
        "OLLAMA_KEEP_ALIVE": "-1",
        "OLLAMA_MAX_LOADED_MODELS": "1",
        "OLLAMA_MODELS": "/data/models",
        "OLLAMA_NOPRUNE": "1",
        "OLLAMA_NO_CLOUD": "1",
        "OLLAMA_NUM_PARALLEL": "2",
    }


def test_on_windows_it_takes_paths_in_that_systems_form() -> None:
    request = replace(
        REQUEST,
        binary="C:\\Ollama\\ollama.exe",
        data_dir="C:\\Users\\me\\data",
        private_dir="C:\\Users\\me\\run",
        model_path="C:\\Users\\me\\models\\x",
    )
    plan = checked(request, windows=True)
    assert isinstance(plan, SpawnPlan)
    assert plan.read_paths == ()
    assert plan.store == "C:\\Users\\me\\data/models"


def test_the_core_refuses_an_open_backend_that_nobody_accepted() -> None:
    refusal = Verdict(ok=False, reason=Reason.BACKEND_OPEN)
    assert checked(REQUEST, allow_open_backend=False) == refusal


def test_the_model_is_sent_unless_stored_then_created_and_loaded() -> None:
    send, create, show, load = plugin.companion_spawn().plan(REQUEST).prepare
    assert (send.method, send.path) == ("POST", f"/api/blobs/sha256:{MODEL.sha256}")
    # 200 would mean that Ollama has a file of that name, with any content.
    assert (send.send_model, send.expect_status) == (True, (201,))
    assert (send.unless_stored, create.unless_stored, load.unless_stored) == (True, True, False)
    assert (create.method, create.path) == ("POST", "/api/create")
    assert json.loads(create.json)["files"] == {"model.gguf": f"sha256:{MODEL.sha256}"}
    assert create.expect_last_line == '{"status":"success"}'
    assert json.loads(create.json)["parameters"] == {"num_thread": 3, "num_ctx": 512}
    assert (show.path, show.unless_stored) == ("/api/show", False)
    assert show.expect == (Expected(member="parameters", line="num_ctx 512"),)
    assert load.path == "/api/generate"
    assert json.loads(load.json) == {"model": SERVED, "keep_alive": -1, "stream": False}


CHATML = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + m['content'] + '<|im_end|>' }}"
TOOLS = CHATML + "{% if tools %}<tools></tools><tool_call></tool_call>{% endif %}"
UNKNOWN = "{% for m in messages %}[[{{ m.role }}]]{{ m.content }}{% endfor %}"


def created(**changes) -> dict:
    return json.loads(plugin.companion_spawn().plan(replace(REQUEST, **changes)).prepare[1].json)


def test_ollamas_own_form_of_a_template_is_passed_on() -> None:
    form = "{{ if .System }}{{ .System }}{{ end }}{{ .Prompt }}"
    assert created(chat_template=form, model_chat_template=UNKNOWN)["template"] == form


@pytest.mark.parametrize("field", ["chat_template", "model_chat_template"])
@pytest.mark.parametrize(("jinja", "tools"), [(CHATML, False), (TOOLS, True)])
def test_a_format_that_is_recognised_is_put_into_ollamas_form(field, jinja, tools) -> None:
    body = created(**{field: jinja})
    assert ".Content" in body["template"]
    assert (".Tools" in body["template"]) is tools
    assert "<|im_end|>" in body["parameters"]["stop"]


def test_the_manifests_template_counts_or_the_model_is_declined() -> None:
    assert ".Tools" not in created(chat_template=CHATML, model_chat_template=TOOLS)["template"]
    for template in (UNKNOWN, "{{ prompt }}"):
        with pytest.raises(CannotPlan) as caught:
            created(chat_template=template, model_chat_template=CHATML)
        assert caught.value.reason is Reason.CHAT_TEMPLATE_UNSUPPORTED


def test_a_template_that_only_ollama_may_know_is_left_to_it_and_looked_at() -> None:
    unknown = replace(REQUEST, model_chat_template=UNKNOWN)
    plan = checked(unknown)
    assert isinstance(plan, SpawnPlan)
    assert "template" not in json.loads(plan.prepare[1].json)
    assert plan.prepare[2].expect[1:] == (
        Expected(
            member="template", unlike="{{ .Prompt }}", reason=Reason.CHAT_TEMPLATE_UNSUPPORTED
        ),
    )


def test_without_a_known_context_ollama_is_asked_for_none() -> None:
    plan = plugin.companion_spawn().plan(replace(REQUEST, context_length=None))
    assert "num_ctx" not in json.loads(plan.prepare[1].json)["parameters"]
    assert plan.prepare[2].expect == ()
    assert plan.dialect.cuts_at is None


def test_what_differs_from_openais_api_is_described() -> None:
    dialect = plugin.companion_spawn().plan(REQUEST).dialect
    assert dialect.rename_fields == (("max_completion_tokens", "max_tokens"),)
    assert dialect.cuts_at == 512


def test_only_inference_is_a_route() -> None:
    routes = plugin.companion_spawn().plan(REQUEST).routes
    assert all(route.path.startswith("/v1/") for route in routes)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_files": (MODEL, MODEL)}, Reason.MODEL_FORMAT_UNSUPPORTED),
        ({"channel": UNIX}, Reason.PLAN_REFUSED),
        ({"embedded": True}, Reason.PLAN_REFUSED),
        ({"options": {"flash_attention": "on"}}, Reason.UNKNOWN_OPTION),
    ],
)
def test_it_declines_what_it_cannot_plan(change, reason) -> None:
    with pytest.raises(CannotPlan) as caught:
        plugin.companion_spawn().plan(replace(REQUEST, **change))
    assert caught.value.reason is reason


@pytest.mark.parametrize(
    ("status", "body", "healthy"),
    [
        (200, json.dumps({"models": [{"name": SERVED}]}).encode(), True),
        (200, b'{"models":[]}', False),
        (200, b'{"models":[{"name":"other"}, 1]}', False),
        (200, b'{"models":null}', False),
        (200, b"[]", False),
        (200, b"Ollama is running", False),
        (500, json.dumps({"models": [{"name": SERVED}]}).encode(), False),
    ],
)
def test_health_means_that_the_model_is_loaded(status, body, healthy) -> None:
    checker = plugin.companion_health()
    assert checker.path == "/api/ps"
    response = HealthResponse(status=status, body=body, served_model=SERVED)
    assert checker.judge(response) is healthy


def test_locating_looks_on_path(monkeypatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/local/bin/{name}")
    assert [b.path for b in plugin.companion_spawn().locate()] == ["/usr/local/bin/ollama"]
    monkeypatch.setattr("shutil.which", lambda _name: None)
    assert plugin.companion_spawn().locate() == []


def test_both_providers_conform() -> None:
    abilities = SpawnerAbilities(forms=frozenset({"program"}), open_backend=True)
    check_spawner(plugin.companion_spawn(), abilities)
    check_health_checker(plugin.companion_health())
