"""A swap that fails: the old model goes on serving, or comes back."""

from __future__ import annotations

import json
import signal
import sys

import psutil
import pytest
from swap_world import Client, companion_held_at, facts, finish, publish, reason_of, stalled

from companion_core.testing.model_host import Misbehaviour

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
]


@pytest.mark.parametrize(
    "arguments",
    [["--model", "tiny"], ["--detach", "--model", "tiny"], [], ["--detach"]],
    ids=" ".join,
)
def test_up_with_the_running_model_or_none_says_that_it_runs_already(two, arguments):
    before = facts(two)
    up = two.companion("up", *arguments)
    assert up.returncode == 0, up.stderr
    assert up.stderr.splitlines()[-1] == "companion: it runs already"
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


def test_what_is_no_model_of_its_format_is_told_before_the_drain(two):
    publish(two, "broken", b"these bytes are signed for and are no model" * 100)
    before = facts(two)
    up = two.companion("up", "--model", "broken")
    assert (up.returncode, reason_of(up.stderr)) == (3, "model_format_unsupported"), up.stderr
    assert "broken.gguf is no GGUF file" in up.stderr
    assert facts(two) == before


def test_one_that_does_not_start_is_followed_by_the_old_one(two):
    publish(two, "broken", b"GGUF, as its first bytes say, and no model" * 100)
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
