"""A runtime or a keychain that is missing or not to be trusted: what `companion up` says."""

from __future__ import annotations

import json
import shutil

import pytest

pytestmark = pytest.mark.data_integrity


def test_a_missing_runtime_is_told(world):
    world.publish()
    world.configure(runtime={"binary": "/nonexistent/llama-server"})
    up = world.companion("up", "--detach")
    assert up.returncode == 4, up.stderr
    assert "companion: runtime_not_found: " in up.stderr.splitlines()[-1]
    assert world.wait_until_alone() == []


def test_a_runtime_that_others_may_write_is_refused(world, tmp_path):
    program = tmp_path / "llama-server"
    shutil.copy("/bin/true", program)
    program.chmod(0o777)
    world.publish()
    world.configure(runtime={"binary": str(program)})
    up = world.companion("up", "--detach")
    assert up.returncode == 3, up.stderr
    assert "companion: runtime_unsafe: " in up.stderr.splitlines()[-1]
    assert world.wait_until_alone() == []


def test_a_runtime_whose_digest_is_not_the_recorded_one_is_refused(world, tmp_path):
    program = tmp_path / "llama-server"
    shutil.copy("/bin/true", program)
    program.chmod(0o755)
    world.publish()
    for recorded in ({}, {"binary_sha256": "0" * 64}):
        world.configure(runtime={"binary": str(program), **recorded})
        up = world.companion("up", "--detach")
        assert up.returncode == 3, up.stderr
        assert "companion: runtime_changed: " in up.stderr.splitlines()[-1]


def test_an_absent_keychain_is_told(world):
    world.publish()
    world.configure(keychain={"name": "linux"})
    without_bus = {"PATH": "/usr/bin:/bin", "HOME": str(world.folder)}
    up = world.companion("up", "--detach", "--json", env=without_bus)
    assert up.returncode == 4, up.stderr
    assert json.loads(up.stdout)["reason"] == "keychain_absent"
    assert world.stored_models() == []
    assert world.wait_until_alone() == []
