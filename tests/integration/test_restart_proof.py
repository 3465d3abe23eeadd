"""A restart proves what a start proves: model, program, plugin and libraries (I-01, I-05)."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import runtime_parts as parts
import serving_parts
from elsewhere import OFFLINE, Elsewhere, build

from companion_core.decisions.isolation import Tier
from companion_core.errors import CompanionError, Reason
from companion_core.plugin_host import RuntimeCode
from companion_core.plugin_host.inventory import find_plugins
from companion_core.serving.serving import Serving
from companion_core.testing import FakeHealthChecker, fake_runtime

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

MODULE = "restarted_runtime.server"
LATER = "\nimport restarted_runtime.later\n"


@dataclass
class Parts:
    """One runtime of each kind that can be started, and the files that it is made of."""

    folder: Path
    site: Path
    serving: Serving
    model: Any
    model_file: Path
    program: Path
    spawner: parts.FakeSpawner

    @property
    def package(self) -> Path:
        return self.site / "restarted_runtime"


class EmbeddedSpawner(parts.FakeSpawner):
    """Plans the same server as a module that the interpreter runs."""

    def plan(self, request: Any) -> Any:
        plan = super().plan(replace(request, embedded=False))
        return replace(plan, argv=(request.binary, "-I", "-m", MODULE, *plan.argv[1:]))


@pytest.fixture
def made(
    tmp_path: Path, install_distribution: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Any:
    """Return what makes the parts: an installed plugin, its library, a program with its own."""
    server = Path(fake_runtime.__file__).read_text()
    install_distribution("restarted-library", {"restarted_library.py": "x = 1\n"}, {})
    site = install_distribution(
        "restarted-runtime",
        {
            "restarted_runtime/__init__.py": "",
            "restarted_runtime/plugin.py": "# its hooks\n",
            "restarted_runtime/later.py": "",
            "restarted_runtime/server.py": server.replace("\nREADY =", LATER + "READY =", 1),
        },
        {"restarted": "restarted_runtime.plugin"},
    )
    metadata = site / "restarted_runtime-0.1.0.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text() + "Requires-Dist: restarted-library\n")
    monkeypatch.syspath_prepend(str(site))
    (found,) = [plugin for plugin in find_plugins([str(site)]) if plugin.name == "restarted"]

    def make(machine: Any, *, embedded: bool, tier: Tier = Tier.NONE) -> Parts:
        (machine.folder / "libowned.so").write_bytes(b"a library beside the program")
        spawner = EmbeddedSpawner() if embedded else parts.FakeSpawner()
        digest = hashlib.sha256(machine.program.read_bytes()).hexdigest()
        binary: dict[str, Any] = {"binary": "embedded"}
        if not embedded:
            binary = {"binary": str(machine.program), "binary_sha256": digest}
        serving = serving_parts.make_serving(
            machine.folder,
            spawner=spawner,
            health=FakeHealthChecker(),
            modules=frozenset({MODULE}),
            tier=tier,
            code=RuntimeCode.of(found, embedded=embedded),
            **binary,
        )
        return Parts(
            folder=machine.folder,
            site=site,
            serving=serving,
            model=machine.model,
            model_file=machine.model_file,
            program=machine.program,
            spawner=spawner,
        )

    return make


@contextlib.asynccontextmanager
async def killed_after(made: Parts, change: Callable[[Parts], object]) -> AsyncIterator[Serving]:
    """Serve, change something, and kill the runtime."""
    async with serving_parts.serving_with(made.serving, made.model) as serving:
        assert (await serving_parts.chat(serving))[0] == 200
        change(made)
        os.kill(serving.status().runtime.pid, signal.SIGKILL)
        yield serving


def append(path: Path) -> None:
    """Change a file and set its times back, as one who hides it would."""
    before = path.stat()
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES: dict[str, tuple[bool, Callable[[Parts], object], Reason]] = {
    "the model": (True, lambda made: append(made.model_file), Reason.DIGEST_MISMATCH),
    "the program": (False, lambda made: append(made.program), Reason.RUNTIME_CHANGED),
    "a library beside the program": (
        False,
        lambda made: append(made.folder / "libowned.so"),
        Reason.RUNTIME_CHANGED,
    ),
    "one more library beside it": (
        False,
        lambda made: (made.folder / "libmore.so").write_bytes(b""),
        Reason.RUNTIME_CHANGED,
    ),
    "the plugin of an embedded runtime": (
        True,
        lambda made: append(made.package / "server.py"),
        Reason.PLUGIN_CHANGED,
    ),
    "the plugin of a program": (
        False,
        lambda made: append(made.package / "plugin.py"),
        Reason.PLUGIN_CHANGED,
    ),
    "one more module in the plugin": (
        True,
        lambda made: (made.package / "server.abi3.so").write_bytes(b""),
        Reason.PLUGIN_CHANGED,
    ),
    "a module that is gone": (
        True,
        lambda made: (made.package / "later.py").unlink(),
        Reason.PLUGIN_CHANGED,
    ),
    "a library of the plugin": (
        True,
        lambda made: append(made.site / "restarted_library.py"),
        Reason.RUNTIME_CHANGED,
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_changed_since_the_start_is_not_started_again(machine, made, what) -> None:
    embedded, change, reason = CHANGES[what]

    async def life() -> None:
        async with killed_after(made(machine, embedded=embedded), change) as serving:
            await serving_parts.until(lambda: serving.watchdog.gave_up is not None)
            assert serving.watchdog.gave_up is reason
            assert serving.runtime is None

    asyncio.run(life())
    assert machine.processes() == []


@pytest.mark.parametrize("embedded", [True, False])
def test_what_is_the_same_is_started_again(machine, made, embedded) -> None:
    """Another mode, another link and a cache of byte code change no byte."""

    def touch(them: Parts) -> None:
        for path in (them.package / "server.py", them.site / "restarted_library.py"):
            path.chmod(0o600)
            os.link(path, them.folder / path.name)
        (them.package / "__pycache__").mkdir()
        (them.package / "__pycache__" / f"server.{sys.implementation.cache_tag}.pyc").touch()

    async def life() -> None:
        them = made(machine, embedded=embedded)
        async with serving_parts.serving_with(them.serving, them.model) as serving:
            before = serving.status().runtime.pid
            touch(them)
            os.kill(before, signal.SIGKILL)
            await serving_parts.until(serving_parts.ready_again(serving, before))
            assert (await serving_parts.chat(serving))[0] == 200

    asyncio.run(life())


@pytest.mark.parametrize("module", ["__init__", "server", "later"])
@pytest.mark.parametrize("tier", [Tier.NONE, Tier.LANDLOCK, Tier.BUBBLEWRAP])
def test_what_is_changed_after_its_proof_is_not_run(  # noqa: PLR0917 - pytest passes by name
    machine, made, monkeypatch, require_tier, module, tier
) -> None:
    """Between the proof and the import by the child: the child proves what it imports, itself."""
    require_tier(tier)
    from companion_core.runtime.start import sequence  # noqa: PLC0415 - what is slowed down

    them = made(machine, embedded=True, tier=tier)
    prove = sequence.prove_all

    def prove_and_change(*given: Any) -> None:
        prove(*given)
        path = them.package / f"{module}.py"
        path.write_text(f"open(__file__ + '.ran', 'w')\n{path.read_text()}")

    async def life() -> None:
        monkeypatch.setattr(sequence, "prove_all", prove_and_change)
        with pytest.raises(CompanionError) as caught:
            async with serving_parts.serving_with(them.serving, them.model):
                pass
        assert caught.value.reason is Reason.PLUGIN_CHANGED
        assert f"restarted_runtime/{module}.py" in caught.value.detail

    asyncio.run(life())
    assert list(them.site.rglob("*.ran")) == []


def test_a_program_that_is_swapped_between_its_hash_and_its_start_is_not_run(machine, made) -> None:
    """As late as can be: what the plugin plans is asked for in between."""
    them = made(machine, embedded=False)

    def swap(plan: Any, _request: Any) -> Any:
        other = them.folder / "other"
        other.write_bytes(them.program.read_bytes())
        other.chmod(0o700)
        other.replace(them.program)
        return plan

    them.spawner.alter = swap

    async def life() -> None:
        with pytest.raises(CompanionError) as caught:
            async with serving_parts.serving_with(them.serving, them.model):
                pass
        assert caught.value.reason is Reason.RUNTIME_CHANGED

    asyncio.run(life())


def log_of(elsewhere: Elsewhere) -> str:
    """Return the log of the detached companion."""
    (log,) = elsewhere.world.state.rglob("companion.log")
    return str(log.read_text())


def test_a_companion_whose_plugin_changed_says_how_to_go_on(elsewhere: Elsewhere, tmp_path: Path):
    wheel = build(elsewhere, tmp_path)
    elsewhere.pip("install", *OFFLINE, str(wheel))
    assert elsewhere.companion("plugins", "trust", "echo", "--yes").returncode == 0
    up = elsewhere.companion("up", "--detach", "--json")
    assert up.returncode == 0, up.stderr
    module = elsewhere.site / "companion_runtime_echo" / "server.py"
    module.write_text(module.read_text() + "# changed\n")
    os.kill(json.loads(up.stdout)["runtime"]["pid"], signal.SIGKILL)
    # It ends for good, rather than go on with code that nobody trusted.
    assert parts.wait_until(lambda: not elsewhere.world.status()["pid"], 60)
    # Whoever looks later learns why: in the log, from `status` and from `doctor`.
    assert parts.wait_until(lambda: "companion: plugin_changed: " in log_of(elsewhere), 30)
    assert elsewhere.world.status()["gave_up"] == "plugin_changed"
    for command in ("status", "doctor"):
        told = elsewhere.companion(command).stdout
        assert "it ended by itself at 20" in told
        assert "plugin_changed" in told
    again = elsewhere.companion("up", "--detach")
    assert again.returncode == 3
    assert "plugin_changed" in again.stderr
    assert elsewhere.companion("plugins", "trust", "echo", "--yes").returncode == 0
    assert elsewhere.companion("up", "--detach").returncode == 0
    assert elsewhere.companion("down").returncode == 0
