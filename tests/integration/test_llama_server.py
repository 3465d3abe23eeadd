"""The stand-alone llama-server, as `make test-llama-server` builds it; not part of `make test`."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from pathlib import Path

import psutil
import pytest
import serving_parts

from companion_core.decisions.isolation import Tier

plugin = pytest.importorskip("companion_runtime_llamacpp.plugin", reason="not installed")

MODEL = Path(__file__).parents[2] / "companion_core" / "demo" / "model" / "companion-tiny.gguf"
SERVER = os.environ.get("COMPANION_TEST_LLAMA_SERVER", "")

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not SERVER, reason="built by make test-llama-server"),
]


@pytest.fixture(params=[Tier.NONE, Tier.BUBBLEWRAP, Tier.LANDLOCK])
def tier(request, require_tier):
    require_tier(request.param)
    return request.param


@pytest.mark.parametrize("channel", ["unix", "tcp"])
def test_a_confined_llama_server_serves_is_replaced_and_leaves_nothing(
    tmp_path, model, tier, channel, monkeypatch
) -> None:
    spawner = plugin.companion_spawn()
    # The core prefers the Unix socket; only the plugin's declaration decides.
    monkeypatch.setattr(type(spawner), "channels", frozenset({channel}))

    async def life() -> None:
        with Path(SERVER).open("rb") as file:  # noqa: ASYNC230 - before anything runs
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        serving = serving_parts.make_serving(
            tmp_path,
            spawner=spawner,
            health=plugin.companion_health(),
            binary=SERVER,
            binary_sha256=digest,
            tier=tier,
            options={"gpu_layers": 0},
        )
        async with serving_parts.serving_with(serving, model):
            pid = serving.status().runtime.pid
            command = psutil.Process(pid).cmdline()
            assert "--no-slots" in command
            assert serving._backend.key is None or serving._backend.key.reveal() not in command
            status, answer = await serving_parts.chat(serving)
            assert status == 200
            assert answer["choices"][0]["message"]["content"]
            os.kill(pid, signal.SIGKILL)
            await serving_parts.until(
                lambda: getattr(serving.runtime, "pid", pid) != pid and serving.lifecycle().ok
            )
            assert (await serving_parts.chat(serving))[0] == 200

    asyncio.run(life())
