"""A real Ollama in its own network namespace: imported from the verified file, asked, ended.

COMPANION_TEST_OLLAMA names the program; `.ci/run` says where it comes from.
"""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import importlib.util
import json
import os
import re
import shutil
import signal
import tempfile
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import runtime_parts as parts
import serving_parts

from companion_core.decisions.isolation import Tier
from companion_core.errors import CompanionError, Reason
from companion_core.providers import HealthResponse
from companion_core.runtime.inspect.readback import listeners
from companion_core.runtime.start import backend_store

MODEL = Path(__file__).parents[2] / "companion_core" / "demo" / "model" / "companion-tiny.gguf"

pytestmark = pytest.mark.integration


@pytest.fixture
def plugin(monkeypatch):
    """The plugin's own sources: its folder is not installed where no Ollama is."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "plugins" / "runtime_ollama"))
    return importlib.import_module("companion_runtime_ollama.plugin")


@pytest.fixture
def machine(require_tier):
    require_tier(Tier.BUBBLEWRAP)
    with parts.machine() as made:
        yield made


@pytest.fixture
def spec(machine, plugin, require_real):
    program = os.environ.get("COMPANION_TEST_OLLAMA") or shutil.which("ollama") or ""
    require_real("ollama (COMPANION_TEST_OLLAMA)", os.access(program, os.X_OK))
    with Path(program).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    # In the person's own store, as staging leaves it: only a file's owner may link it.
    shutil.copyfile(MODEL, machine.folder / "model.gguf")
    model = parts.verified_model(machine.folder / "model.gguf")
    yield machine.spec(
        spawner=plugin.companion_spawn(),
        binary=program,
        binary_sha256=digest,
        model=model,
        context_length=256,
        tier=Tier.BUBBLEWRAP,
    )
    model.close()


async def ask(channel, method: str, path: str, body: object = None) -> tuple[int, bytes]:
    connected = await channel.connect()
    return await asyncio.to_thread(_ask, connected, method, path, body)


def _ask(connected, method: str, path: str, body: object) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1")
    connected.settimeout(60)
    connection.sock = connected
    headers = {"Content-Type": "application/json"}
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_ollama_serves_the_verified_model_and_ends_with_its_runner(machine, plugin, spec) -> None:
    async def life() -> None:
        supervisor = machine.supervisor
        backend = await supervisor.start(spec)
        assert (backend.channel_name, backend.key) == ("namespace", None)
        assert (await supervisor.check_runtime()).ok
        checker = plugin.companion_health()
        status, body = await ask(backend.channel, "GET", checker.path)
        assert checker.judge(
            HealthResponse(status=status, body=body, served_model=backend.served_model)
        )
        chat = {"model": backend.served_model, "max_tokens": 4}
        chat["messages"] = [{"role": "user", "content": "Hello"}]
        status, body = await ask(backend.channel, "POST", "/v1/chat/completions", chat)
        assert status == 200
        assert json.loads(body)["choices"][0]["message"]["content"]

        # It runs the very inode that was proved, and no process of it listens outside.
        blobs = list((machine.folder / "data" / "models" / "blobs").glob("sha256-*"))
        digest = hashlib.sha256(MODEL.read_bytes()).hexdigest()
        assert f"sha256-{digest}" in {blob.name for blob in blobs}
        tree = supervisor.tree()
        assert any("runner" in psutil.Process(pid).cmdline() for pid in tree)
        inside = {listener.port for listener in listeners(tree) or ()}
        assert len(inside) == 2
        assert not inside & {listener.port for listener in listeners([os.getpid()]) or ()}
        await supervisor.stop()
        assert not any(map(parts.alive, tree))

    asyncio.run(life())
    assert machine.leftovers() == []


def asked_for(machine) -> list[str]:
    """The requests that Ollama itself logged, without those that only look."""
    logged = (machine.folder / "runtime.log").read_text()
    asked = re.findall(r'POST +"([^"]+)"', logged)
    return [path for path in asked if path != "/api/show"]


BLOB = f"/api/blobs/sha256:{hashlib.sha256(MODEL.read_bytes()).hexdigest()}"
BLOB_NAME = BLOB.rpartition("/")[2].replace(":", "-")
MANIFEST = "manifests/registry.ollama.ai/companion/model/latest"


async def start_and_stop(machine, spec) -> list[str]:
    await machine.supervisor.start(spec)
    await machine.supervisor.settle()
    await machine.supervisor.stop()
    return asked_for(machine)


def test_ollama_creates_the_model_once_and_again_after_any_change(machine, spec) -> None:
    store = machine.folder / "data" / "models"
    blob = store / "blobs" / BLOB_NAME

    async def life() -> None:
        made = ["/api/create", "/api/generate"]
        assert await start_and_stop(machine, spec) == made
        assert await start_and_stop(machine, spec) == made[1:]
        # The model's file: restored from the proved one; the rest stays.
        blob.unlink()
        blob.write_bytes(b"left by somebody")
        assert await start_and_stop(machine, spec) == made[1:]
        assert blob.lstat().st_size == 0  # over it the model is mounted
        assert (machine.folder / "model.gguf").stat().st_nlink == 1
        # What Ollama made of it: a manifest that names another model, a file that was added.
        (store / MANIFEST).write_text((store / MANIFEST).read_text().replace("a", "b"))
        assert await start_and_stop(machine, spec) == made
        (store / "blobs" / ("sha256-" + "ab" * 32)).write_text("a template of somebody's")
        assert await start_and_stop(machine, spec) == made
        assert not (store / "blobs" / ("sha256-" + "ab" * 32)).exists()
        assert await start_and_stop(machine, replace(spec, threads=2)) == made

    asyncio.run(life())


def test_a_model_of_another_file_system_is_mounted_too(machine, spec, require_real) -> None:
    elsewhere = Path("/dev/shm")
    here = machine.folder.stat().st_dev
    another = elsewhere.is_dir() and elsewhere.stat().st_dev != here
    require_real("a second file system, at /dev/shm", another)
    with tempfile.TemporaryDirectory(dir=elsewhere) as memory:
        in_memory = replace(spec, data_dir=Path(memory) / "data")

        async def life() -> None:
            made = ["/api/create", "/api/generate"]
            assert await start_and_stop(machine, in_memory) == made
            assert await start_and_stop(machine, in_memory) == made[1:]

        asyncio.run(life())


def test_without_a_tier_ollama_reads_the_model_through_a_link(machine, spec) -> None:
    bare = replace(spec, tier=Tier.NONE, allow_open_backend=True)

    async def life() -> None:
        made = ["/api/create", "/api/generate"]
        assert await start_and_stop(machine, bare) == made
        assert await start_and_stop(machine, bare) == made[1:]
        (blob,) = (machine.folder / "data" / "models" / "blobs").glob(BLOB_NAME)
        assert blob.is_symlink()
        assert blob.samefile(machine.folder / "model.gguf")

    asyncio.run(life())


def test_where_nothing_leads_to_the_model_it_is_sent_and_only_201_counts(
    machine, spec, monkeypatch
) -> None:
    # In place of a file system without links.
    monkeypatch.setattr(backend_store, "make_link", lambda *_: False)
    bare = replace(spec, tier=Tier.NONE, allow_open_backend=True)
    blobs = bare.data_dir / "models" / "blobs"

    async def life() -> None:
        made = [BLOB, "/api/create", "/api/generate"]
        assert await start_and_stop(machine, bare) == made
        assert "| 201 |" in (machine.folder / "runtime.log").read_text()
        assert await start_and_stop(machine, bare) == made[2:]
        (blob,) = blobs.glob(BLOB_NAME)
        blob.write_bytes(b"left by somebody")
        assert await start_and_stop(machine, bare) == [made[0], made[2]]
        assert blob.read_bytes() == MODEL.read_bytes()

    asyncio.run(life())


def test_a_blob_that_ollama_claims_to_have_is_not_believed(machine, spec, monkeypatch) -> None:
    """Ollama answers 200 by the name alone, which is not 201, so nothing is started from it."""
    # In place of a store on another file system, where no link can be made.
    monkeypatch.setattr(backend_store, "make_link", lambda *_: False)

    def leave_it(store, link) -> bool:
        link.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        link.write_bytes(b"left by somebody")
        return False

    # The foreign blob has to appear where the link would have been made.
    monkeypatch.setattr(backend_store.BackendStore, "_place", leave_it)
    with pytest.raises(CompanionError) as caught:
        asyncio.run(machine.supervisor.start(spec))
    assert caught.value.reason is Reason.SPAWN_FAILED
    assert asked_for(machine) == [BLOB]
    assert machine.leftovers() == []


def test_the_death_of_ollama_is_noticed_and_leaves_no_runner(machine, spec) -> None:
    async def life() -> None:
        backend = await machine.supervisor.start(spec)
        tree = machine.supervisor.tree()
        os.kill(backend.pid, signal.SIGKILL)
        await parts.until(lambda: machine.exits)
        await parts.until(lambda: not any(map(parts.alive, tree)))
        await machine.supervisor.stop()

    asyncio.run(life())
    assert machine.leftovers() == []


def test_behind_the_gateway_only_inference_is_reached(machine, plugin, spec) -> None:
    async def life() -> None:
        serving = serving_parts.make_serving(
            machine.folder,
            spawner=spec.spawner,
            health=plugin.companion_health(),
            binary=spec.binary,
            binary_sha256=spec.binary_sha256,
            tier=spec.tier,
        )
        async with serving_parts.serving_with(serving, spec.model):
            runtime = serving.runtime
            assert (runtime.channel, runtime.isolation) == ("namespace", "bubblewrap")
            code, answer = await serving_parts.chat(serving)
            assert code == 200
            assert answer["choices"][0]["message"]["content"]
            for path in ("/api/pull", "/api/create", "/api/generate", "/api/delete", "/api/blobs"):
                code, answer = await serving_parts.post(serving, path, {"model": "tiny"})
                assert (code, answer["error"]["code"]) == (404, Reason.PATH_NOT_ALLOWED)
            os.kill(runtime.pid, signal.SIGKILL)
            await serving_parts.until(
                lambda: (serving.runtime or runtime).pid != runtime.pid and serving.lifecycle().ok
            )
            assert (await serving_parts.chat(serving))[0] == 200

    asyncio.run(life())


def test_without_a_namespace_ollama_is_refused(machine, spec) -> None:
    with pytest.raises(CompanionError) as caught:
        asyncio.run(machine.supervisor.start(replace(spec, tier=Tier.LANDLOCK)))
    assert caught.value.reason is Reason.BACKEND_OPEN
