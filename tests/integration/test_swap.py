"""`companion up --model OTHER` beside a companion that serves another model, with real runtimes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from runtime_parts import alive, wait_until
from swap_world import (
    DEADLINE_SECONDS,
    Client,
    companion_held_at,
    facts,
    finish,
    publish,
    reason_of,
    stalled,
    stream_in_flight,
    swapping,
)

from companion_core.companion import Companion
from companion_core.config.paths import InstancePaths
from companion_core.errors import CompanionError, Reason
from companion_core.testing.model_host import Misbehaviour

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
]


@pytest.fixture
def two(world):
    """A world whose companion serves the first of two models."""
    world.publish()
    publish(world)
    world.configure()
    assert world.companion("up", "--detach").returncode == 0
    return world


# --- it works ------------------------------------------------------------------------------


def test_the_new_model_serves_at_the_same_address_with_the_same_token(person):
    publish(person)
    assert person.companion("up", "--detach").returncode == 0
    before, client = person.status(), Client(person)
    configuration = person.config_file.read_bytes()

    up = person.companion("up", "--model", "other", "--json")

    assert up.returncode == 0, up.stderr
    names = [line.split()[0] for line in up.stderr.splitlines()]
    assert names == ["manifest", "model", "drain", "runtime", "available"]
    after = person.status()
    assert set(json.loads(up.stdout)) == set(after) == set(before)
    assert json.loads(up.stdout)["model"] == {"id": "other", "verified": True}
    assert (after["available"], after["model"]["id"]) == (True, "other")
    assert (after["pid"], after["gateway"]) == (before["pid"], before["gateway"])
    assert not alive(before["runtime"]["pid"])
    assert person.companion("token").stdout.strip() == client.token
    assert (client.chat("other"), client.chat("tiny")) == ("ok", "model_not_served")
    assert client.models() == ["other"]
    assert person.config_file.read_bytes() == configuration

    # Back again; this time all of it is in the store.
    downloads = len(person.model_host.requests)
    assert person.companion("up", "--detach", "--model", "tiny").returncode == 0
    assert (client.chat("tiny"), client.models()) == ("ok", ["tiny"])
    assert len(person.model_host.requests) == downloads
    assert person.companion("down").returncode == 0
    assert person.wait_until_alone() == []


def test_a_companion_swaps_although_its_output_is_closed(world):
    world.publish()
    publish(world)
    world.configure()
    with subprocess.Popen(
        world.argv("up", "--json"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        try:
            assert json.loads(running.stdout.readline())["available"] is True
            running.stderr.close()
            up = world.companion("up", "--model", "other")
            assert up.returncode == 0, up.stderr
            assert world.companion("down").returncode == 0
            assert running.wait(DEADLINE_SECONDS) == 0
        finally:
            running.kill()


def test_a_runtime_that_ends_is_replaced_by_one_of_the_new_model(two):
    assert two.companion("up", "--model", "other").returncode == 0
    before = two.status()
    os.kill(before["runtime"]["pid"], signal.SIGKILL)

    def replaced() -> bool:
        now = two.status()
        return now["available"] and now["runtime"]["pid"] != before["runtime"]["pid"]

    assert wait_until(replaced, DEADLINE_SECONDS)
    assert two.status()["model"]["id"] == "other"
    assert Client(two).chat("other") == "ok"


def test_a_running_answer_is_finished_and_then_no_cancel_counts(world):
    world.publish()
    publish(world)
    world.configure()
    with companion_held_at(world):
        client = Client(world)
        with stream_in_flight(world) as (go_on, came), swapping(world) as up:
            assert wait_until(lambda: world.status()["lifecycle"] == "draining", DEADLINE_SECONDS)
            draining = world.status()
            assert (draining["available"], draining["model"]["id"]) == (False, "tiny")
            assert client.chat("tiny") == "not_ready"
            assert world.companion("up", "--model", "tiny").returncode == 4
            up.send_signal(signal.SIGINT)
            assert any("goes on to its end" in line for line in up.stderr)
            go_on()
            up.communicate(timeout=DEADLINE_SECONDS)
            assert up.returncode == 0
        assert [(status, b"[DONE]" in answer) for status, answer in came] == [(200, True)]
        assert client.chat("other") == "ok"


def test_embedded_in_a_product(world):
    world.publish()
    publish(world)
    steps: list[str] = []

    async def refused(companion: Companion, model_id: str) -> Reason:
        with pytest.raises(CompanionError) as caught:
            await companion.swap_model(model_id)
        return caught.value.reason

    async def life() -> None:
        companion = Companion.open(
            world.config(), state_dir=world.state, on_step=lambda step: steps.append(step.name)
        )
        assert await refused(companion, "other") is Reason.NOT_READY
        async with companion:
            before = companion.base_url, companion.token
            assert await refused(companion, "tiny") is Reason.ALREADY_RUNNING
            assert await refused(companion, "unheard-of") is Reason.MODEL_NOT_IN_MANIFEST
            await companion.swap_model("other")
            assert companion.availability().ok
            assert (companion.base_url, companion.token) == before
            assert companion.status()["model"] == {"id": "other", "verified": True}
        assert await refused(companion, "tiny") is Reason.NOT_READY

    asyncio.run(life())
    assert steps.count("available") == 2
    assert world.wait_until_alone() == []


# --- it fails, and the old model serves -------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [["--model", "tiny"], ["--detach", "--model", "tiny"], [], ["--detach"]],
    ids=" ".join,
)
def test_up_with_the_running_model_or_none_is_already_running(two, arguments):
    before = facts(two)
    up = two.companion("up", *arguments)
    assert (up.returncode, reason_of(up.stderr)) == (4, "already_running")
    assert facts(two) == before


def changed_bytes(world) -> tuple[str, str]:
    world.model_host.content["/other.gguf"] = world.content + bytes(63) + b"x"
    return "other", "digest_mismatch"


def unheard_of(_world) -> tuple[str, str]:
    return "unheard-of", "model_not_in_manifest"


def foreign_format(world) -> tuple[str, str]:
    publish(world, "foreign", model_format="mlx")
    return "foreign", "model_format_unsupported"


def forged_manifest(world) -> tuple[str, str]:
    document = json.loads(world.manifest_host.content["/manifest.json"])
    signature = document["signatures"][0]
    signature["signature"] = ("B" if signature["signature"][0] == "A" else "A") + signature[
        "signature"
    ][1:]
    world.manifest_host.content = {"/manifest.json": json.dumps(document).encode()}
    return "other", "manifest_signature_invalid"


def no_manifest(world) -> tuple[str, str]:
    world.manifest_host.content = {}
    return "other", "manifest_unavailable"


@pytest.mark.parametrize(
    "break_it", [changed_bytes, unheard_of, foreign_format, forged_manifest, no_manifest]
)
def test_what_fails_before_the_drain_leaves_the_old_one_untouched(two, break_it):
    before, client = facts(two), Client(two)
    model_id, reason = break_it(two)
    up = two.companion("up", "--model", model_id, "--json")
    assert json.loads(up.stdout)["reason"] == reason_of(up.stderr) == reason, up.stderr
    assert up.returncode in {3, 4}
    assert facts(two) == before
    assert client.chat("tiny") == "ok"
    assert len(two.stored_models()) == 1


def test_one_that_does_not_start_is_followed_by_the_old_one(two):
    publish(two, "broken", b"these bytes are signed for and are no model" * 100)
    before, client = two.status(), Client(two)
    up = two.companion("up", "--model", "broken")
    assert (up.returncode, reason_of(up.stderr)) == (4, "runtime_exited"), up.stderr
    assert "back to the one before" in up.stderr
    after = two.status()
    assert (after["available"], after["model"]["id"]) == (True, "tiny")
    assert (after["pid"], after["gateway"]) == (before["pid"], before["gateway"])
    assert after["runtime"]["pid"] != before["runtime"]["pid"]
    assert (client.chat("tiny"), client.chat("broken")) == ("ok", "model_not_served")
    assert client.models() == ["tiny"]
    assert two.companion("up", "--model", "other").returncode == 0


def test_one_that_is_never_ready_is_followed_by_the_old_one(world):
    world.publish()
    publish(world)
    world.configure()
    with companion_held_at(world, "late"):
        client = Client(world)
        up = world.companion("up", "--model", "other")
        assert (up.returncode, reason_of(up.stderr)) == (4, "start_timeout"), up.stderr
        after = world.status()
        assert (after["available"], after["model"]["id"]) == (True, "tiny")
        assert (client.chat("tiny"), client.models()) == ("ok", ["tiny"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_while_it_is_fetched_the_old_one_serves_and_a_signal_ends_it(two, number):
    before, client = facts(two), Client(two)
    with stalled(two) as up:
        assert facts(two) == before
        assert client.chat("tiny") == "ok"
        assert client.chat("other") == "model_not_served"
        swap = two.status()["swap"]
        assert (swap["model"], swap["step"]["name"] in {"manifest", "download"}) == ("other", True)
        assert "swap       to other: " in two.companion("status").stdout
        second = two.companion("up", "--model", "other")
        assert (second.returncode, reason_of(second.stderr)) == (4, "swap_in_progress")
        up.send_signal(number)
        assert finish(up) == (130, "interrupted")
    assert facts(two) == before
    assert "swap" not in two.status()
    assert len(two.stored_models()) == 1
    # Nothing of it blocks the next swap.
    two.model_host.misbehave = Misbehaviour()
    assert two.companion("up", "--model", "other").returncode == 0


def test_a_companion_that_is_silent_but_runs_is_asked_again(two):
    companion = psutil.Process(two.status()["pid"])
    with stalled(two, patience=2) as up:
        companion.suspend()
        try:
            assert any(line.startswith("silence") for line in up.stderr)
        finally:
            companion.resume()
        up.send_signal(signal.SIGINT)
        assert finish(up) == (130, "interrupted")
    assert Client(two).chat("tiny") == "ok"


# --- the end of the companion in the middle of it ----------------------------------------------


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


# --- a writer to a model's file ----------------------------------------------------------------


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
