"""A runtime or a keychain that is missing or not to be trusted: what `companion up` says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

pytestmark = pytest.mark.data_integrity


def expect_refused(world, reason: str, code: int, **runtime: str) -> None:
    world.configure(runtime=runtime)
    up = world.companion("up", "--detach")
    assert up.returncode == code, up.stderr
    assert f"companion: {reason}: " in up.stderr.splitlines()[-1]
    assert world.wait_until_alone() == []


def program(folder: Path, mode: int) -> str:
    made = folder / "llama-server"
    shutil.copy("/bin/true", made)
    made.chmod(mode)
    return str(made)


def test_a_missing_runtime_is_told(world):
    world.publish()
    expect_refused(world, "runtime_not_found", 4, binary="/nonexistent/llama-server")


def test_a_runtime_that_others_may_write_is_refused(world, tmp_path):
    world.publish()
    expect_refused(world, "runtime_unsafe", 3, binary=program(tmp_path, 0o777))


def test_a_runtime_whose_digest_is_not_the_recorded_one_is_refused(world, tmp_path):
    world.publish()
    binary = program(tmp_path, 0o755)
    expect_refused(world, "runtime_changed", 3, binary=binary)
    expect_refused(world, "runtime_changed", 3, binary=binary, binary_sha256="0" * 64)


def test_an_absent_keychain_is_told(world):
    world.publish()
    world.configure(keychain={"name": "linux"})
    without_bus = {"PATH": "/usr/bin:/bin", "HOME": str(world.folder)}
    up = world.companion("up", "--detach", "--json", env=without_bus)
    assert up.returncode == 4, up.stderr
    assert json.loads(up.stdout)["reason"] == "keychain_absent"
    assert world.stored_models() == []
    assert world.wait_until_alone() == []


def test_an_option_that_the_keychain_does_not_know_is_told_by_up_and_doctor(world):
    world.publish()
    file = world.configure()
    file.write_text(file.read_text().replace("[keychain]", "[keychain]\noptions = { drawer = 1 }"))
    up = world.companion("up", "--detach")
    assert up.returncode == 2, up.stderr
    assert "keychain.options.drawer: memory knows none" in up.stderr
    assert "companion: unknown_option: " in up.stderr.splitlines()[-1]
    report = json.loads(world.companion("doctor", "--json").stdout)
    row = next(row for row in report["rows"] if row["id"] == "keychain")
    assert (row["status"], row["reason"]) == ("fail", "unknown_option")
    assert world.wait_until_alone() == []
