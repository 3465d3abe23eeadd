"""Attacker: a runtime, or its plugin, that does more than was planned (I-05 to I-08)."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import runtime_parts as parts

from companion_core.decisions.isolation import Tier
from companion_core.decisions.lifecycle import State
from companion_core.errors import CompanionError, PluginFault, Reason, Refused, UsageError
from companion_core.providers import CannotPlan
from companion_core.runtime.inspect.readback import listeners
from companion_core.runtime.isolation import confinement

pytestmark = [
    pytest.mark.security,
    pytest.mark.skipif(os.name != "posix", reason="the keeper needs a POSIX system"),
]


linux_only = pytest.mark.skipif(sys.platform != "linux", reason="read back through /proc")


def refused_start(machine, spec) -> CompanionError:
    with pytest.raises(CompanionError) as caught:
        asyncio.run(machine.supervisor.start(spec))
    assert machine.supervisor.state is State.STOPPED
    assert machine.leftovers() == []
    return caught.value


@linux_only
@pytest.mark.parametrize("announces", [True, False])
@pytest.mark.parametrize("behaviour", ["wide", "aside", "udp", "abstract"])
def test_a_runtime_that_listens_wider_is_killed(machine, behaviour, announces) -> None:
    def quiet(plan, _request):
        return plan if announces else replace(plan, ready_text=None)

    spawner = parts.FakeSpawner((behaviour,), alter=quiet)
    error = refused_start(machine, machine.spec(spawner=spawner))
    assert isinstance(error, PluginFault)
    assert (error.reason, error.plugin) == (Reason.RUNTIME_LISTENS_WIDE, "test")


@linux_only
@pytest.mark.parametrize(
    ("tier", "own_namespaces"),
    [(Tier.LANDLOCK, False), (Tier.LANDLOCK, True), (Tier.BUBBLEWRAP, True)],
)
def test_a_name_without_a_file_counts_where_other_programs_can_reach_it(
    machine, monkeypatch, require_tier, tier, own_namespaces
) -> None:
    require_tier(tier)
    monkeypatch.setattr(confinement, "OWN_NAMESPACES", own_namespaces)
    spec = machine.spec(spawner=parts.FakeSpawner(("abstract",)), tier=tier)
    if not own_namespaces:
        assert refused_start(machine, spec).reason is Reason.RUNTIME_LISTENS_WIDE
        return

    async def life() -> None:
        await machine.supervisor.start(spec)
        assert (await machine.supervisor.check_runtime()).ok
        await machine.supervisor.stop()

    asyncio.run(life())


@linux_only
def test_a_runtime_that_listens_wider_later_is_killed_at_the_next_look(machine) -> None:
    async def life() -> None:
        supervisor = machine.supervisor
        backend = await supervisor.start(machine.spec())
        supervisor.report_health(ok=True)
        os.kill(backend.pid, signal.SIGUSR1)
        await parts.until(lambda: listeners(supervisor.tree()))
        verdict = await supervisor.check_runtime()
        assert verdict.reason is Reason.RUNTIME_LISTENS_WIDE
        assert supervisor.state is State.STOPPED
        assert machine.exits == 1
        await supervisor.stop()
        assert not parts.alive(backend.pid)

    asyncio.run(life())
    assert machine.leftovers() == []
    assert machine.exits == 1


@linux_only
def test_a_descendant_with_an_undeclared_variable_is_killed(machine) -> None:
    error = refused_start(machine, machine.spec("leak"))
    assert error.reason is Reason.RUNTIME_ENVIRONMENT


@linux_only
def test_a_declared_variable_of_a_descendant_is_fine(machine) -> None:
    async def life() -> None:
        spawner = parts.FakeSpawner(("leak",), child_env_names=frozenset({"SMUGGLED"}))
        backend = await machine.supervisor.start(machine.spec(spawner=spawner))
        tree = machine.supervisor.tree()
        assert len(tree) == 2
        await machine.supervisor.stop()
        assert not any(parts.alive(pid) for pid in (*tree, backend.pid))

    asyncio.run(life())


@linux_only
def test_nothing_of_the_companions_environment_reaches_the_runtime(machine, monkeypatch) -> None:
    for name in ("OPENAI_API_KEY", "LLAMA_API_KEY", "LD_PRELOAD", "HTTPS_PROXY", "PYTHONPATH"):
        monkeypatch.setenv(name, "/nowhere")

    async def life() -> None:
        def mode(plan, _request):
            return replace(plan, env={"TEST_MODE": "on"})

        backend = await machine.supervisor.start(
            machine.spec(spawner=parts.FakeSpawner(alter=mode))
        )
        folder = str(Path(backend.channel.path).parent)
        assert parts.environment(backend.pid) == {
            "PATH": "/usr/bin:/bin",
            "HOME": folder,
            "TMPDIR": folder,
            "LANG": "C.UTF-8",
            "PYTHONUNBUFFERED": "1",
            "TEST_MODE": "on",
        }
        await machine.supervisor.stop()

    monkeypatch.delenv("LD_PRELOAD")  # the loader of the keeper itself would warn about it
    asyncio.run(life())


@linux_only
def test_the_runtime_inherits_the_model_and_no_other_descriptor(machine) -> None:
    async def life() -> None:
        secret = os.dup(machine.model.files[0].descriptor)
        os.set_inheritable(secret, True)  # noqa: FBT003 - takes no keyword
        backend = await machine.supervisor.start(machine.spec())
        held = parts.descriptors(backend.pid)
        await machine.supervisor.stop()
        os.close(secret)
        assert machine.model.files[0].descriptor not in held  # ours, which carries the proof
        assert (
            len([held.pop(each) for each in [*held] if held[each] == str(machine.model_file)]) == 1
        )
        kinds = sorted(target.partition(":")[0] for target in held.values())
        assert kinds == ["socket"]  # its own listener

    asyncio.run(life())


@linux_only
def test_the_runtime_can_gain_nothing_dumps_nothing_and_ignores_no_signal(machine) -> None:
    ignored = signal.signal(signal.SIGUSR2, signal.SIG_IGN)

    async def life() -> None:
        backend = await machine.supervisor.start(machine.spec())
        status, limits = parts.kernel_facts(backend.pid)
        await machine.supervisor.stop()
        assert status["NoNewPrivs"] == "1"
        assert limits["Max core file size"] == ("0", "0")
        assert not int(status["SigIgn"], 16) & (1 << (signal.SIGUSR2 - 1))
        assert int(status["SigBlk"], 16) == 0

    try:
        asyncio.run(life())
    finally:
        signal.signal(signal.SIGUSR2, ignored)


def test_an_open_backend_is_refused_unless_the_person_accepted_it(machine) -> None:
    # covers: spawn_supervision/backend-cors
    def keyless(plan, _request):
        return replace(plan, backend_key_env=None)

    spawner = parts.FakeSpawner(alter=keyless, channels=frozenset({"tcp"}))
    assert refused_start(machine, machine.spec(spawner=spawner)).reason is Reason.BACKEND_OPEN

    async def life() -> None:
        spec = machine.spec(spawner=spawner, allow_open_backend=True)
        backend = await machine.supervisor.start(spec)
        assert backend.key is None
        await machine.supervisor.stop()

    asyncio.run(life())


def change_argv(index: int, value: str):
    def alter(plan, _request):
        argv = list(plan.argv)
        argv[index] = value
        return replace(plan, argv=tuple(argv))

    return alter


@pytest.mark.parametrize(
    "alter",
    [
        change_argv(0, "/bin/sh"),
        change_argv(1, "/etc/hostname"),
        change_argv(2, "/tmp/elsewhere.sock"),
        lambda plan, _: replace(plan, env={"LD_PRELOAD": "/tmp/x.so"}),
        lambda plan, _: replace(plan, env={"UNDECLARED": "1"}),
        lambda plan, _: replace(plan, env={"HOME": "/root"}),
        lambda plan, request: replace(plan, model_link=request.data_dir + "/../../escape"),
        lambda _plan, _request: None,
    ],
    ids=["shell", "other-model", "other-channel", "loader", "undeclared", "home", "escape", "none"],
)
def test_a_plan_beyond_what_is_allowed_starts_nothing(machine, alter) -> None:
    error = refused_start(machine, machine.spec(spawner=parts.FakeSpawner(alter=alter)))
    assert error.reason is Reason.PLAN_REFUSED
    assert isinstance(error, PluginFault)
    assert not (machine.folder / "runtime.log").exists()


def test_faults_of_the_plugin_are_its_own(machine) -> None:
    def decline(_plan, _request):
        raise CannotPlan(Reason.MODEL_FORMAT_UNSUPPORTED)

    def crash(_plan, _request):
        raise SystemExit(7)

    declined = refused_start(machine, machine.spec(spawner=parts.FakeSpawner(alter=decline)))
    assert declined.reason is Reason.MODEL_FORMAT_UNSUPPORTED
    crashed = refused_start(machine, machine.spec(spawner=parts.FakeSpawner(alter=crash)))
    assert crashed.reason is Reason.PLUGIN_CALL_FAILED


def test_unknown_options_and_formats_are_refused(machine) -> None:
    error = refused_start(machine, machine.spec(options={"known": 1, "unknwon": 2}))
    assert isinstance(error, UsageError)
    assert (error.reason, error.detail) == (Reason.UNKNOWN_OPTION, "unknwon")
    spawner = parts.FakeSpawner(formats=frozenset({"mlx"}))
    error = refused_start(machine, machine.spec(spawner=spawner))
    assert error.reason is Reason.MODEL_FORMAT_UNSUPPORTED


@pytest.mark.parametrize("place", ["file", "folder", "sticky"])
def test_a_program_that_others_can_write_is_refused(machine, place) -> None:
    # covers: spawn_supervision/binary-integrity
    if place == "file":
        machine.program.chmod(0o757)
    else:
        machine.program.parent.chmod(0o757 | (stat.S_ISVTX if place == "sticky" else 0))
    spec = machine.spec(run_dir=machine.folder / "run", data_dir=machine.folder / "data")
    error = refused_start(machine, spec)
    machine.folder.chmod(0o700)
    assert isinstance(error, Refused)
    assert error.reason is Reason.RUNTIME_UNSAFE


def test_a_program_with_another_digest_is_refused(machine) -> None:
    assert refused_start(machine, machine.spec(binary_sha256="0" * 64)).reason is (
        Reason.RUNTIME_CHANGED
    )
