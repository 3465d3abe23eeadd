"""Many companions on one machine: one store, an instance each, and a killed one's is reused."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from companion_core.companion import Companion
from companion_core.config.paths import ANY_INSTANCE, InstancePaths
from companion_core.control import replicas
from companion_core.control.client import InstanceLock
from companion_core.errors import CompanionError, Reason

pytestmark = pytest.mark.integration

REPLICA = """
import asyncio, sys
from companion_core.companion import Companion

async def serve(config, state):
    async with Companion.open(config, state_dir=state, instance="auto") as companion:
        print(companion.instance, flush=True)
        await companion.wait_for_stop_request()

asyncio.run(serve(*sys.argv[1:]))
"""


def replica(world) -> subprocess.Popen[str]:
    argv = [sys.executable, "-c", REPLICA, str(world.config_file), str(world.state)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)


def test_replicas_share_one_download_and_a_killed_ones_instance_is_taken_again(world):
    world.publish()
    world.configure()
    running = [replica(world) for _ in range(3)]
    try:
        names = {each.stdout.readline().strip() for each in running}
        assert names == {"auto-1", "auto-2", "auto-3"}
        assert len([path for path, _ in world.model_host.requests if path.endswith(".gguf")]) == 1
        assert [file.read_bytes() for file in world.stored_models()] == [world.content]
        for name in names:
            told = world.companion("--instance", name, "status", "--json")
            assert json.loads(told.stdout)["available"] is True
        killed = running.pop()
        killed.kill()
        killed.wait()
        killed.stdout.close()
        running.append(replica(world))
        names = {running[-1].stdout.readline().strip()}
        folders = {path.name for path in (world.state / "instances").iterdir()}
        assert names < folders == {"auto-1", "auto-2", "auto-3"}
    finally:
        for each in running:
            each.send_signal(signal.SIGINT)
        for each in running:
            each.stdout.close()
            each.wait(60)
    assert world.wait_until_alone() == []


def test_two_in_one_process_and_in_threads_serve_beside_each_other(world):
    world.publish()
    config, names, failed = world.config(), [], []
    both = threading.Barrier(2, timeout=60)

    async def serve() -> None:
        companion = Companion.open(config, state_dir=world.state, instance="auto")
        assert companion.instance == ANY_INSTANCE
        async with companion:
            names.append(companion.instance)
            await asyncio.to_thread(both.wait)
            assert companion.availability().ok

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            failed.append(error)
            both.abort()

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert sorted(names) == ["auto-1", "auto-2"]


def test_what_a_killed_replica_left_is_cleaned_up_by_the_next_start(world):
    left = InstancePaths(world.state, "auto-7")
    left.prepare()
    for file in (left.lock_file, left.state_file, left.run_folder() / "control.sock"):
        file.touch(0o600)
    (left.run_folder() / "0badcafe").mkdir(mode=0o700)
    world.publish()
    world.configure()
    with replica(world) as running:
        assert running.stdout.readline() == "auto-1\n"
        assert not left.state_file.exists()
        assert not os.path.lexists(left.run_folder_path())
        running.send_signal(signal.SIGINT)


def test_the_first_free_one_is_taken(tmp_path):
    held = []
    for number in (1, 2, 3):
        paths, lock = replicas.claim(InstancePaths(tmp_path, ANY_INSTANCE))
        assert paths.instance == f"auto-{number}"
        held.append(lock)
    held[1].release()
    # One that left nothing needs no cleaning, and another start may be about to take it.
    assert list(replicas.idle_replicas(paths)) == []
    InstancePaths(tmp_path, "auto-2").state_file.touch(0o600)
    assert [each.instance for each in replicas.idle_replicas(paths)] == ["auto-2"]
    assert replicas.claim(InstancePaths(tmp_path, ANY_INSTANCE))[0].instance == "auto-2"
    for lock in held:
        lock.release()


def test_there_is_an_end_to_replicas(tmp_path, monkeypatch):
    # As many as the real bound would be slow.
    monkeypatch.setattr(replicas, "MAX_REPLICAS", 2)
    held = [replicas.claim(InstancePaths(tmp_path, ANY_INSTANCE))[1] for _ in range(2)]
    with pytest.raises(CompanionError) as caught:
        replicas.claim(InstancePaths(tmp_path, ANY_INSTANCE))
    assert caught.value.reason is Reason.ALREADY_RUNNING
    assert "2 replicas" in caught.value.detail
    for lock in held:
        lock.release()


def test_a_name_is_taken_or_refused_as_before(tmp_path):
    paths, lock = replicas.claim(InstancePaths(tmp_path, "one"))
    assert paths == InstancePaths(tmp_path, "one")
    with pytest.raises(CompanionError) as caught:
        replicas.claim(InstancePaths(tmp_path, "one"))
    assert caught.value.reason is Reason.ALREADY_RUNNING
    lock.release()


def test_a_folder_that_cannot_be_used_is_passed_over(tmp_path):
    paths, lock = replicas.claim(InstancePaths(tmp_path, ANY_INSTANCE))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "lock").touch()
    (tmp_path / "instances" / "auto-2").symlink_to(elsewhere)
    (tmp_path / "instances" / "auto-X").mkdir()
    (tmp_path / "instances" / "auto-X" / "lock").touch()
    busy = InstancePaths(tmp_path, "auto-3")
    busy.prepare()
    other = InstanceLock(busy.lock_file)
    other.acquire()
    assert list(replicas.idle_replicas(paths)) == []
    other.release()
    lock.release()


def test_no_command_takes_any_instance_for_a_name(world):
    world.configure()
    told = world.companion("--instance", "auto", "status")
    assert told.returncode == 2
    assert "Companion.open" in told.stderr
