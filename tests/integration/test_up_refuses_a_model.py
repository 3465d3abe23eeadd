"""Bytes of a model that are not those signed for: refused, and none of them is left or started."""

from __future__ import annotations

import pytest
from refused_up import expect_refusal

from companion_core.demo.run import MODEL_FILE
from companion_core.errors import Reason
from companion_core.testing.model_host import Misbehaviour

pytestmark = pytest.mark.data_integrity


def test_other_bytes_of_the_same_size_are_refused(world):
    other = bytes(reversed(world.content))
    world.publish()
    world.model_host.content = {f"/{MODEL_FILE.name}": other}
    world.configure()
    expect_refusal(world, Reason.DIGEST_MISMATCH, 3)


@pytest.mark.parametrize("bit", [0, 4_000_001, -1])
def test_one_flipped_bit_is_refused(world, bit):
    world.publish()
    world.model_host.misbehave = Misbehaviour(flip_bit=bit % (8 * len(world.content)))
    world.configure()
    expect_refusal(world, Reason.DIGEST_MISMATCH, 3)


def test_a_size_that_does_not_match_is_refused(world):
    world.publish(content=world.content + b"x")
    world.configure()
    expect_refusal(world, Reason.SIZE_MISMATCH, 3)


@pytest.mark.parametrize("unannounced", [True, False], ids=["unannounced", "announced"])
def test_a_longer_stream_is_refused(world, unannounced):
    world.publish()
    world.model_host.misbehave = Misbehaviour(extra=1, unannounced=unannounced)
    world.configure()
    expect_refusal(world, Reason.SIZE_MISMATCH, 3)


def test_a_shorter_stream_is_refused(world):
    world.publish()
    world.model_host.content = {f"/{MODEL_FILE.name}": world.content[:-1]}
    world.configure()
    expect_refusal(world, Reason.SIZE_MISMATCH, 3)


def test_a_stored_model_that_was_changed_is_never_started(world):
    world.publish()
    world.configure()
    assert world.companion("up", "--detach").returncode == 0
    assert world.companion("down").returncode == 0
    stored = max(world.stored_models(), key=lambda path: path.stat().st_size)
    assert stored.read_bytes() == world.content
    stored.chmod(0o600)
    changed = bytearray(world.content)
    changed[500_000] ^= 1
    stored.write_bytes(changed)
    world.model_host.content = {}
    up = world.companion("up", "--detach")
    assert up.returncode in {3, 4}, up.stderr
    assert world.stored_models() == []
    assert world.wait_until_alone() == []
