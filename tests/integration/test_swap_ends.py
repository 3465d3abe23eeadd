"""The companion ends in the middle of a swap, or a writer ends it: nothing of it is left."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import psutil
import pytest
from runtime_parts import alive, wait_until
from swap_world import (
    DEADLINE_SECONDS,
    companion_held_at,
    finish,
    publish,
    stalled,
    stream_in_flight,
    swapping,
)

from companion_core.config.paths import InstancePaths

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
]


def test_down_while_it_is_fetched_ends_all_of_it(two):
    with stalled(two) as up:
        assert two.companion("down").returncode == 0
        assert finish(up) == (130, "interrupted")
    assert_nothing_is_left(two)


def test_down_now_while_the_old_one_drains_ends_all_of_it(world):
    world.publish()
    publish(world)
    world.configure()
    with companion_held_at(world) as running:
        with stream_in_flight(world), swapping(world) as up:
            assert wait_until(lambda: world.status()["lifecycle"] == "draining", DEADLINE_SECONDS)
            assert world.companion("down", "--now").returncode == 0
            assert finish(up) == (130, "interrupted")
        assert running.wait(DEADLINE_SECONDS) == 0
    assert_nothing_is_left(world)


def test_down_while_the_new_one_starts_ends_all_of_it(world):
    world.publish()
    publish(world)
    world.configure()
    with companion_held_at(world, "starting") as running, swapping(world) as up:
        assert running.stdout.readline() == "here\n"
        starting = world.status()
        assert (starting["available"], starting["lifecycle"]) == (False, "starting")
        assert starting["model"]["id"] == "other"
        assert world.companion("down").returncode == 0
        assert finish(up) == (130, "interrupted")
        assert running.wait(DEADLINE_SECONDS) == 0
    assert_nothing_is_left(world)


def assert_nothing_is_left(world) -> None:
    assert world.wait_until_alone() == []
    assert world.companion("status").returncode == 5
    assert not InstancePaths(world.state).runtime_record.exists()


@pytest.mark.parametrize("stage", ["hashing", "draining", "starting"])
def test_killed_in_the_middle_nothing_runs_and_the_next_up_serves(world, stage):
    world.publish()
    publish(world)
    world.configure()
    with contextlib.ExitStack() as held:
        running = held.enter_context(companion_held_at(world, stage))
        if stage == "draining":
            held.enter_context(stream_in_flight(world))
        up = held.enter_context(swapping(world))
        if stage == "draining":
            assert wait_until(lambda: world.status()["lifecycle"] == stage, DEADLINE_SECONDS)
        else:
            assert running.stdout.readline() == "here\n"
        before = world.processes()
        running.kill()
        assert finish(up) == (130, "interrupted")
        assert wait_until(lambda: not any(alive(process.pid) for process in before))
    assert world.wait_until_alone() == []
    assert world.companion("up", "--detach").returncode == 0
    assert world.status()["model"]["id"] == "tiny"
    assert world.companion("down").returncode == 0
    assert_nothing_is_left(world)


def test_each_model_is_held_from_its_proof_until_its_runtime_has_ended(world):
    """I-01, also while both are there: a writer is noticed, and waits for the runtime to end."""
    world.publish()
    publish(world)
    world.configure()

    def stored(size: int) -> Path:
        return next(file for file in world.stored_models() if file.stat().st_size == size)

    with companion_held_at(world, "starting") as running, swapping(world) as up:
        assert running.stdout.readline() == "here\n"
        old, new = stored(len(world.content)), stored(len(world.content) + 64)
        holder = psutil.Process(running.pid)
        holder.suspend()  # else it may release the second lease when the first is broken
        for file in (old, new):
            with pytest.raises(BlockingIOError):
                os.open(file, os.O_WRONLY | os.O_NONBLOCK)
        holder.resume()
        # That broke both leases: neither the new nor the old model may be started.
        assert finish(up) == (3, "digest_mismatch")
        running.wait(DEADLINE_SECONDS)
    assert_nothing_is_left(world)


def test_the_old_file_is_free_after_the_swap_and_the_new_one_is_not(two):
    assert two.companion("up", "--model", "other").returncode == 0
    by_size = {file.stat().st_size: file for file in two.stored_models()}
    os.close(os.open(by_size[len(two.content)], os.O_WRONLY | os.O_NONBLOCK))
    assert two.status()["available"] is True
    runtime = two.status()["runtime"]["pid"]
    os.close(
        os.open(by_size[len(two.content) + 64], os.O_WRONLY)
    )  # waits until the lease is released
    assert not alive(runtime)
    after = two.status()
    assert (after["available"], after["reason"]) == (False, "not_verified")
    # A model that was lost is replaced like any other.
    assert two.companion("up", "--model", "tiny").returncode == 0
    assert two.status()["available"] is True
