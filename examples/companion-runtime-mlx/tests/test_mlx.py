"""The plugin by the kit, and its server as a process, on a library that answers as MLX does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace

import pytest
from companion_runtime_mlx import plugin, server

from companion_core.providers import HealthResponse
from companion_core.testing import (
    UNIX,
    SpawnerAbilities,
    check_health_checker,
    check_spawner,
    spawn_request,
)

pytestmark = pytest.mark.integration

LIBRARY = """
import pathlib
from types import SimpleNamespace

class Tokenizer:
    def __init__(self, config):
        self.config = config
    def apply_chat_template(self, messages, add_generation_prompt):
        assert add_generation_prompt
        return messages[-1]["content"].split()

def load(folder, tokenizer_config):
    files = sorted(path.name for path in pathlib.Path(folder).iterdir())
    return (pathlib.Path(folder, "config.json").read_text(), files), Tokenizer(tokenizer_config)

def stream_generate(model, tokenizer, prompt, *, max_tokens, sampler):
    words = [*model[1], *prompt, str(sampler), str(tokenizer.config)][:max_tokens]
    for number, word in enumerate(words):
        last = number == len(words) - 1
        yield SimpleNamespace(text=word + " ", finish_reason="length" if last else None)
"""
SAMPLERS = "def make_sampler(temp, top_p):\n    return (temp, top_p)\n"


@pytest.fixture
def running() -> Iterator[Path]:
    """The server on a model of two files; yields its socket."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "mlx_lm").mkdir()
        (folder / "mlx_lm" / "__init__.py").write_text(LIBRARY)
        (folder / "mlx_lm" / "sample_utils.py").write_text(SAMPLERS)
        (folder / "model").mkdir()
        for file in ("config.json", "model.safetensors"):
            (folder / "model" / file).write_text("{}")
        settings = {
            "alias": "tiny",
            "chat_template": "T",
            "max_tokens": 9,
        }
        root = str(Path(plugin.__file__).parents[1])
        argv = [sys.executable, "-m", plugin.SERVER, str(folder / "model" / "config.json")]
        with subprocess.Popen(
            [*argv, str(folder / "s"), json.dumps(settings)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([name, root])},
            stdout=subprocess.PIPE,
            text=True,
        ) as child:
            try:
                assert child.stdout.readline().strip() == server.READY_LINE
                yield folder / "s"
            finally:
                child.terminate()


def ask(path: Path, method: str, target: str, body: object = None) -> tuple[int, bytes]:
    connection = HTTPConnection("localhost", timeout=20)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(20)
    connection.sock.connect(str(path))
    try:
        connection.request(method, target, None if body is None else json.dumps(body))
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def question(**more: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": "hello there"}], "temperature": 0, **more}


def test_both_providers_conform() -> None:
    embedded = SpawnerAbilities(
        forms=frozenset({"embedded"}), embedded_modules=frozenset({plugin.SERVER})
    )
    check_spawner(plugin.companion_spawn(), embedded)
    healthy = HealthResponse(status=200, body=plugin.HEALTHY, served_model="tiny")
    check_health_checker(plugin.companion_health(), healthy)


def test_the_plan_carries_the_path_and_the_template() -> None:
    request = spawn_request(embedded=True, channel=UNIX, chat_template="T")
    argv = plugin.companion_spawn().plan(request).argv
    assert argv[1:6] == ("-I", "-m", plugin.SERVER, request.model_path, UNIX.path)
    assert json.loads(argv[6]) == {
        "alias": "tiny",
        "chat_template": "T",
        "max_tokens": 2048,
    }
    assert plugin.READY_LINE == server.READY_LINE


def test_locating_asks_for_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: SimpleNamespace())
    assert [b.path for b in plugin.companion_spawn().locate()] == ["embedded"]
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert plugin.companion_spawn().locate() == []


def test_it_serves_the_verified_files_whole_and_as_a_stream(running: Path) -> None:
    assert running.stat().st_mode & 0o777 == 0o600
    status, body = ask(running, "GET", "/health")
    assert plugin.companion_health().judge(
        HealthResponse(status=status, body=body, served_model="")
    )

    status, body = ask(running, "POST", "/v1/chat/completions", question())
    choice = json.loads(body)["choices"][0]
    assert status == 200
    assert choice["finish_reason"] == "length"
    said = choice["message"]["content"]
    assert said == "config.json model.safetensors hello there (0.0, 1.0) {'chat_template': 'T'} "

    status, body = ask(running, "POST", "/v1/chat/completions", question(stream=True))
    events = [line.removeprefix("data: ") for line in body.decode().split("\n\n") if line]
    assert events.pop() == "[DONE]"
    pieces = [json.loads(event)["choices"][0] for event in events]
    assert "".join(piece["delta"]["content"] for piece in pieces) == said
    assert [piece["finish_reason"] for piece in pieces[-2:]] == [None, "length"]


@pytest.mark.parametrize(
    "body",
    [
        [],
        {},
        {"messages": []},
        {"messages": "hello"},
        {"messages": [7]},
        question(max_tokens=0),
        question(max_tokens=10),
        question(max_tokens=True),
        question(temperature="hot"),
    ],
)
def test_what_is_malformed_is_refused(running: Path, body: object) -> None:
    assert ask(running, "POST", "/v1/chat/completions", body)[0] == 400


def test_other_paths_are_not_there(running: Path) -> None:
    assert ask(running, "GET", "/v1/models")[0] == 404
    assert ask(running, "POST", "/v1/embeddings", question())[0] == 404
