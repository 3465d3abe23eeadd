"""The real llama.cpp, embedded, under the real supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import importlib.util
import json
import marshal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import runtime_parts as parts

from companion_core.decisions.isolation import Tier
from companion_core.decisions.lifecycle import State
from companion_core.errors import CompanionError, Reason
from companion_core.providers import HealthResponse, UnixChannel

MODEL = Path(__file__).parents[2] / "companion_core" / "demo" / "model" / "companion-tiny.gguf"
MODULE = "companion_runtime_llamacpp.embedded"

pytestmark = pytest.mark.integration


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


@pytest.fixture
def machine(require_real):
    require_real("companion-runtime-llamacpp", installed("companion_runtime_llamacpp"))
    require_real("xllamacpp", installed("xllamacpp"))
    with parts.machine() as made:
        yield made


@pytest.fixture
def spec(machine):
    from companion_runtime_llamacpp.plugin import companion_spawn  # noqa: PLC0415 - if installed

    model = parts.verified_model(MODEL)
    yield machine.spec(
        spawner=companion_spawn(),
        plugin_modules=frozenset({MODULE}),
        binary="embedded",
        model=model,
        options={"flash_attention": False, "gpu_layers": 0},
        context_length=256,
        parallel=2,
    )
    model.close()


def ask(backend, method: str, path: str, body: object = None, key: str | None = None):
    """One plain request at the backend: status, headers, body."""
    connection = http.client.HTTPConnection("127.0.0.1", timeout=30)
    if isinstance(backend.channel, UnixChannel):
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(backend.channel.path)
    else:
        connection.port = backend.channel.port
    headers = {"Content-Type": "application/json", "Origin": "https://evil.example"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()
    finally:
        connection.close()


async def started(machine, spec):
    """Start it and wait, as the core does, until it says that the model is loaded."""
    backend = await machine.supervisor.start(spec)
    async with asyncio.timeout(60):
        while (await asyncio.to_thread(ask, backend, "GET", "/health"))[0] != 200:  # noqa: ASYNC110 - the runtime tells nobody when it is ready
            await asyncio.sleep(0.01)
    return backend


CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}


def test_it_starts_on_a_socket_serves_and_leaves_nothing(machine, spec) -> None:
    # covers: spawn_supervision/llama-health-endpoint
    from companion_runtime_llamacpp.plugin import companion_health  # noqa: PLC0415 - if installed

    async def life() -> None:
        backend = await started(machine, spec)
        assert backend.channel_name == "unix"
        assert (await machine.supervisor.check_runtime()).ok
        checker = companion_health()
        status, _, body = await asyncio.to_thread(ask, backend, "GET", checker.path)
        response = HealthResponse(status=status, body=body, served_model=backend.served_model)
        assert checker.judge(response)
        status, _, body = await asyncio.to_thread(
            ask, backend, "POST", "/v1/chat/completions", CHAT
        )
        assert status == 200
        answer = json.loads(body)
        assert answer["choices"][0]["message"]["content"]
        assert answer["model"] == "tiny"
        assert str(MODEL.parent).encode() not in body
        for path in ("/slots", "/metrics", "/"):
            status, _, _ = await asyncio.to_thread(ask, backend, "GET", path)
            assert status >= 400
        assert parts.mode(backend.channel.path) == 0o600
        await machine.supervisor.stop()

    asyncio.run(life())
    assert machine.leftovers() == []


@pytest.mark.parametrize("tier", [Tier.BUBBLEWRAP, Tier.LANDLOCK])
def test_a_confined_llama_serves_and_ends_as_an_unconfined_one(
    machine, spec, tier, require_tier
) -> None:
    require_tier(tier)

    async def life() -> None:
        backend = await started(machine, replace(spec, tier=tier))
        assert (await machine.supervisor.check_runtime()).ok
        status, _, body = await asyncio.to_thread(
            ask, backend, "POST", "/v1/chat/completions", CHAT
        )
        assert status == 200
        assert json.loads(body)["choices"][0]["message"]["content"]
        await machine.supervisor.stop()

    asyncio.run(life())
    assert machine.leftovers() == []


def test_a_compiled_file_beside_the_plugin_is_not_what_runs(machine, spec) -> None:
    # As the child finds it: another test may have imported it here from elsewhere.
    find = f"import importlib.util; print(importlib.util.find_spec({MODULE!r}).origin)"
    origin = subprocess.check_output([sys.executable, "-I", "-c", find], text=True, timeout=60)
    cached = Path(importlib.util.cache_from_source(origin.strip()))
    before = cached.read_bytes() if cached.exists() else None
    source = Path(origin.strip()).stat()
    poison = compile("raise SystemExit(66)", "poison", "exec")
    head = importlib.util.MAGIC_NUMBER + bytes(4)
    head += int(source.st_mtime).to_bytes(4, "little") + source.st_size.to_bytes(4, "little")
    cached.parent.mkdir(exist_ok=True)
    cached.write_bytes(head + marshal.dumps(poison))
    try:
        poisoned = subprocess.run([sys.executable, "-I", "-m", MODULE], check=False, timeout=60)
        assert poisoned.returncode == 66  # the attack is real

        async def life() -> None:
            await machine.supervisor.start(spec)
            await machine.supervisor.stop()

        asyncio.run(life())
    finally:
        cached.unlink()
        if before is not None:
            cached.write_bytes(before)


def test_over_tcp_llama_answers_only_to_its_key_and_to_no_page(machine, spec) -> None:
    # covers: spawn_supervision/backend-cors
    async def life() -> None:
        spec.spawner.channels = frozenset({"tcp"})
        backend = await started(machine, spec)
        assert (await machine.supervisor.check_runtime()).ok
        for key, expected in ((None, 401), ("wrong", 401), (backend.key.reveal(), 200)):
            status, headers, _ = await asyncio.to_thread(
                ask, backend, "POST", "/v1/chat/completions", CHAT, key
            )
            assert status == expected
            assert headers.get("Access-Control-Allow-Origin") not in {"*", "https://evil.example"}
        await machine.supervisor.stop()

    asyncio.run(life())
    assert machine.leftovers() == []


def test_embeddings_are_served_where_asked_for(machine, spec) -> None:
    async def life() -> None:
        asked = replace(spec, options={"embeddings": True, "gpu_layers": 0})
        backend = await started(machine, asked)
        status, _, body = await asyncio.to_thread(
            ask, backend, "POST", "/v1/embeddings", {"model": "tiny", "input": "Hello"}
        )
        assert status == 200
        assert len(json.loads(body)["data"][0]["embedding"]) > 1
        await machine.supervisor.stop()

    asyncio.run(life())


def test_a_file_that_is_no_model_ends_the_start(machine, spec) -> None:
    supervisor = machine.supervisor

    async def life() -> None:
        # It listens before it reads the file: either comes first.
        with contextlib.suppress(CompanionError):
            await supervisor.start(replace(spec, model=machine.model))
        await parts.until(lambda: supervisor.state is State.STOPPED)
        await supervisor.stop()

    asyncio.run(life())
    assert supervisor.last_ending.reason is Reason.RUNTIME_EXITED
    assert not supervisor.last_ending.ready
    assert supervisor.last_lines
    assert machine.leftovers() == []
