"""`companion up --model OTHER` beside a companion that serves another model, with real runtimes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys

import pytest
from runtime_parts import alive, wait_until
from swap_world import (
    DEADLINE_SECONDS,
    Client,
    companion_held_at,
    publish,
    stream_in_flight,
    swapping,
)

from companion_core.companion import Companion
from companion_core.errors import CompanionError, Reason

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
]

OTHER = {"id": "other", "verified": True, "vouched_by": "publisher", "held": "lease"}


def test_the_new_model_serves_at_the_same_address_with_the_same_token(person):
    publish(person)
    assert person.companion("up", "--detach").returncode == 0
    before, client = person.status(), Client(person)
    configuration = person.config_file.read_bytes()

    up = person.companion("up", "--model", "other", "--json")

    assert up.returncode == 0, up.stderr
    steps = [json.loads(line) for line in up.stderr.splitlines()]
    names = [step["step"] for step in steps if "total" not in step]  # not those of progress
    assert names == ["manifest", "model", "drain", "runtime", "runtime", "available"]
    after = person.status()
    assert set(json.loads(up.stdout)) == set(after) == set(before)
    assert json.loads(up.stdout)["model"] == OTHER
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
            assert companion.status().to_json()["model"] == OTHER
        assert await refused(companion, "tiny") is Reason.NOT_READY

    asyncio.run(life())
    assert steps.count("available") == 2
    assert world.wait_until_alone() == []
