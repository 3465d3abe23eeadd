"""Inference beyond OpenAI's paths, as a real llama.cpp has it behind the gateway."""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.integration

CLIENTS = Path(__file__).parents[2] / ".venv" / "clients" / "bin" / "python"
ASKED = {"model": "tiny", "messages": [{"role": "user", "content": "What are you?"}]}


@pytest.fixture
def me(world: Any) -> Any:
    world.publish()
    world.configure()
    assert world.companion("up", "--detach").returncode == 0
    world.key = json.loads(world.companion("keys", "add", "app", "--json").stdout)["key"]
    world.url = world.status()["gateway"]["url"].removesuffix("/v1")
    return world


def post(me: Any, path: str, body: dict[str, Any]) -> tuple[int, Any]:
    request = urllib.request.Request(
        me.url + path,
        data=json.dumps(body).encode(),
        headers={"x-api-key": me.key, "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def test_tokens_are_counted_as_the_model_will_read_them(me: Any, require_real: Any) -> None:
    status, counted = post(me, "/v1/messages/count_tokens", ASKED)
    assert status == 200
    _, answer = post(me, "/v1/messages", {**ASKED, "max_tokens": 2})
    assert counted["input_tokens"] == answer["usage"]["input_tokens"] > 3
    require_real("the anthropic package (make .venv/.clients)", CLIENTS.exists())
    program = (
        "import anthropic, json, sys\n"
        "client = anthropic.Anthropic(base_url=sys.argv[1], api_key=sys.argv[2], max_retries=0)\n"
        "print(client.messages.count_tokens(**json.loads(sys.argv[3])).input_tokens)\n"
    )
    done = subprocess.run(
        [str(CLIENTS), "-c", program, me.url, me.key, json.dumps(ASKED)],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert int(done.stdout) == counted["input_tokens"]


def test_they_pass_the_same_guard(me: Any) -> None:
    for path in ("/v1/messages/count_tokens", "/infill"):
        assert post(me, path, {**ASKED, "model": "other"})[0] == 404
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(
                urllib.request.Request(me.url + path, data=b"{}", method="POST"), timeout=30
            )
        refused.value.close()
        assert refused.value.code == 401
    # llama.cpp has it, and this model was not started for it.
    assert post(me, "/v1/rerank", {"model": "tiny", "query": "a", "documents": ["b"]})[0] == 404
    text = me.companion("metrics").stdout
    assert 'path="/v1/messages/count_tokens",reason="model_not_served"' in text
