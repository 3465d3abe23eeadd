"""What a runtime stores for its next start, and how its copy of the model is proved."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import runtime_parts as parts

from companion_core.decisions.lifecycle import State
from companion_core.errors import Reason, Refused
from companion_core.runtime.inspect.readback import listeners
from companion_core.runtime.start.backend_store import BackendStore

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.name != "posix", reason="the keeper needs a POSIX system"),
]


def test_a_linked_model_is_the_hashed_inode_and_hands_no_descriptor_on(machine) -> None:
    def link(plan, request):
        place = f"{request.data_dir}/blobs/model"
        argv = (plan.argv[0], place, *plan.argv[2:])
        return replace(plan, argv=argv, model_link=place, model_copies=(place,))

    async def life() -> None:
        for _ in range(2):
            spawner = parts.FakeSpawner(alter=link)
            backend = await machine.supervisor.start(machine.spec(spawner=spawner))
            place = machine.folder / "data" / "blobs" / "model"
            assert place.samefile(machine.model_file)
            opened = [file.path for file in psutil.Process(backend.pid).open_files()]
            assert str(machine.model_file) not in opened
            await machine.supervisor.stop()
            place.unlink()
            place.write_bytes(b"left by somebody")  # replaced by the next start

    asyncio.run(life())


def test_a_copy_that_is_not_the_model_ends_the_start(machine) -> None:
    def copied(plan, request):
        place = Path(request.data_dir) / "copy"
        place.write_bytes(b"another model")
        return replace(plan, model_copies=(str(place),))

    error = parts.refused_start(machine, machine.spec(spawner=parts.FakeSpawner(alter=copied)))
    assert error.reason is Reason.DIGEST_MISMATCH


def storing(machine) -> Any:
    """Return a start whose runtime stores something for the next start."""
    store = machine.folder / "data" / "store"

    def planned(plan, _request):
        return replace(plan, store=str(store))

    (machine.folder / "data").mkdir(mode=0o700)
    store.mkdir()
    (store / "made").write_text("by the runtime")
    return machine.spec(spawner=parts.FakeSpawner(alter=planned))


def test_the_store_is_recorded_once_the_runtime_serves(machine) -> None:
    spec = storing(machine)

    async def life() -> None:
        await machine.supervisor.start(spec)
        await machine.supervisor.stop()
        assert not spec.store_record.exists()
        await machine.supervisor.start(spec)
        await machine.supervisor.settle()
        await machine.supervisor.stop()
        assert '"files"' in spec.store_record.read_text()

    asyncio.run(life())


def test_a_listener_opened_after_the_start_ends_the_runtime(machine) -> None:
    spec = storing(machine)

    async def life() -> None:
        supervisor = machine.supervisor
        backend = await supervisor.start(spec)
        supervisor.report_health(ok=True)
        os.kill(backend.pid, signal.SIGUSR1)
        await parts.until(lambda: listeners(supervisor.tree()))
        await supervisor.settle()
        assert supervisor.last_ending.reason is Reason.RUNTIME_LISTENS_WIDE
        await supervisor.stop()
        assert not spec.store_record.exists()

    asyncio.run(life())
    assert machine.leftovers() == []


@pytest.mark.parametrize("how", ["it ends", "the writing is cancelled"])
def test_the_store_of_a_runtime_that_has_ended_is_not_recorded(machine, monkeypatch, how) -> None:
    spec, surveying, survey = storing(machine), threading.Event(), BackendStore._survey

    def slow(store: BackendStore) -> Any:
        surveying.set()
        assert store._cancelled.wait(30)
        return survey(store)

    async def life() -> None:
        # The survey has to last until the runtime has ended.
        monkeypatch.setattr(BackendStore, "_survey", slow)
        backend = await machine.supervisor.start(spec)
        settling = asyncio.ensure_future(machine.supervisor.settle())
        assert await asyncio.to_thread(surveying.wait, 30)
        if how == "it ends":
            os.kill(backend.pid, signal.SIGKILL)
        else:
            settling.cancel()
        await asyncio.wait({settling}, timeout=30)
        assert settling.done()
        await machine.supervisor.stop()

    asyncio.run(life())
    assert not spec.store_record.exists()


@pytest.mark.parametrize("error", [OSError(28, "no space"), Refused(Reason.STATE_PATH_UNSAFE)])
def test_a_store_that_cannot_be_recorded_costs_nothing_else(machine, monkeypatch, error) -> None:
    spec = storing(machine)

    def failing(*_args: Any) -> None:
        raise error

    async def life() -> None:
        # A full disk cannot be had here.
        monkeypatch.setattr(BackendStore, "_survey", failing)
        await machine.supervisor.start(spec)
        machine.supervisor.report_health(ok=True)
        await machine.supervisor.settle()
        assert machine.supervisor.state is State.READY
        await machine.supervisor.stop()
        assert not spec.store_record.exists()

    asyncio.run(life())
    assert machine.exits == 0
