"""The MLX example on the real library, as `make test-mlx` installs it; not part of `make test`."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from companion_core.authority import publisher

PYTHON = os.environ.get("COMPANION_TEST_MLX", "")
MAKE_MODEL = Path(__file__).parents[1] / "support" / "make_mlx_model.py"
CLIENT = """
import openai
ask = openai.OpenAI().chat.completions.create
question = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}],
            "max_tokens": 12, "temperature": 0}
whole = ask(**question).choices[0]
pieces = [piece.choices[0] for piece in ask(**question, stream=True)]
print(whole.finish_reason, pieces[-1].finish_reason)
print(whole.message.content == "".join(piece.delta.content for piece in pieces) != "")
"""

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not PYTHON, reason="installed by make test-mlx"),
]


def companion(world, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [PYTHON, *world.argv(*arguments)[1:]]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


@pytest.fixture
def published(world, tmp_path):
    """A model of four files, each signed for."""
    made = subprocess.run([PYTHON, str(MAKE_MODEL), str(tmp_path / "model")], check=False)
    assert made.returncode == 0
    for file in sorted((tmp_path / "model").iterdir()):
        world.model_host.content[f"/{file.name}"] = content = file.read_bytes()
        publisher.add_file(
            world.draft,
            publisher.measure(io.BytesIO(content).readinto),
            model_id="tiny",
            url=world.model_host.url(f"/{file.name}"),
            model_format="mlx",
        )
    world.sign()
    world.configure(runtime={"name": "mlx"})
    return world


def test_a_model_of_several_files_is_verified_served_and_leaves_nothing(published) -> None:
    trusted = companion(published, "plugins", "trust", "mlx", "--yes")
    assert trusted.returncode == 0, trusted.stderr
    up = companion(published, "up", "--detach", "--json")
    assert up.returncode == 0, up.stderr
    runtime = json.loads(up.stdout)["runtime"]
    assert (runtime["name"], runtime["channel"]) == ("mlx", "unix")
    client = companion(published, "exec", "--", sys.executable, "-c", CLIENT)
    assert client.returncode == 0, client.stderr
    assert client.stdout.splitlines() == ["length length", "True"]
    assert companion(published, "down").returncode == 0
    assert published.wait_until_alone() == []


def test_a_file_that_is_not_as_signed_is_never_loaded(published) -> None:
    published.model_host.content["/config.json"] += b" "
    assert companion(published, "plugins", "trust", "mlx", "--yes").returncode == 0
    up = companion(published, "up", "--detach")
    assert up.returncode == 3
    assert published.wait_until_alone() == []
