from __future__ import annotations

import hashlib
import os
import sys

import pytest

from companion_core.errors import CompanionError, Reason
from companion_core.runtime.process.binary import ProvedBinary, digest_binary, prove_binary

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(os.name != "posix", reason="modes and owners are POSIX"),
]


@pytest.fixture
def program(tmp_path):
    folder = tmp_path / "bin"
    folder.mkdir(mode=0o755)
    path = folder / "server"
    path.write_bytes(b"#!/bin/sh\n")
    path.chmod(0o755)
    return path


def refused(binary: object, sha256: str | None = None) -> Reason:
    with pytest.raises(CompanionError) as caught:
        prove_binary(str(binary), sha256)
    return caught.value.reason


def test_a_sound_program_keeps_its_configured_name(program, tmp_path) -> None:
    link = tmp_path / "named"
    link.symlink_to(program)
    proved = prove_binary(str(link), hashlib.sha256(b"#!/bin/sh\n").hexdigest())
    assert (proved.path, proved.embedded) == (str(link), False)


def test_a_program_whose_digest_nobody_recorded_is_refused(program) -> None:
    assert refused(program) is Reason.RUNTIME_CHANGED


def test_what_is_recorded_at_set_up_is_what_is_required_at_a_start(program) -> None:
    assert digest_binary(str(program)) == hashlib.sha256(b"#!/bin/sh\n").hexdigest()
    prove_binary(str(program), digest_binary(str(program)))
    program.chmod(0o777)
    with pytest.raises(CompanionError) as caught:
        digest_binary(str(program))
    assert caught.value.reason is Reason.RUNTIME_UNSAFE


def test_embedded_is_the_running_interpreter() -> None:
    proved = prove_binary("embedded")
    assert (proved.path, proved.embedded) == (sys.executable, True)


def test_an_unknown_interpreter_cannot_be_embedded(monkeypatch) -> None:
    monkeypatch.setattr(sys, "executable", "")
    assert refused("embedded") is Reason.INTERPRETER_MISSING


@pytest.mark.parametrize("binary", ["server", "./server", "", "/usr/bin/../bin/env"])
def test_only_absolute_paths_are_looked_at(binary) -> None:
    assert refused(binary) is Reason.RUNTIME_UNSAFE


def test_missing_dangling_and_looping_names(program, tmp_path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "nowhere")
    for path in (program.with_name("other"), loop, dangling):
        assert refused(path) is Reason.RUNTIME_NOT_FOUND


@pytest.mark.parametrize("mode", [0o757, 0o777, 0o1757])
def test_a_program_that_others_can_write(program, mode) -> None:
    program.chmod(mode)
    assert refused(program) is Reason.RUNTIME_UNSAFE


@pytest.mark.parametrize("mode", [0o777, 0o757, 0o1777])
def test_its_folder_is_closed_to_others_sticky_or_not(program, mode) -> None:
    program.parent.chmod(mode)
    assert refused(program) is Reason.RUNTIME_UNSAFE


def test_the_folder_of_a_link_counts_as_well(program, tmp_path) -> None:
    open_folder = tmp_path / "open"
    open_folder.mkdir()
    open_folder.chmod(0o777)
    link = open_folder / "server"
    link.symlink_to(program)
    assert refused(link) is Reason.RUNTIME_UNSAFE


def test_a_folder_above_that_others_can_write(program, tmp_path) -> None:
    tmp_path.chmod(0o777)
    assert refused(program) is Reason.RUNTIME_UNSAFE
    tmp_path.chmod(0o700)


@pytest.mark.skipif(os.name != "posix", reason="owners of POSIX systems")
def test_a_program_or_folder_of_somebody_else(program, require_real) -> None:
    require_real("root, who gives files away", os.geteuid() == 0)
    os.chown(program, 12345, -1)
    assert refused(program) is Reason.RUNTIME_UNSAFE
    os.chown(program, 0, -1)
    os.chown(program.parent, 12345, -1)
    assert refused(program) is Reason.RUNTIME_UNSAFE


def test_a_folder_or_a_pipe_is_no_program(program) -> None:
    assert refused(program.parent) is Reason.RUNTIME_UNSAFE
    pipe = program.with_name("pipe")
    os.mkfifo(pipe, 0o700)
    assert refused(pipe) is Reason.RUNTIME_UNSAFE


def test_a_program_with_another_digest(program) -> None:
    # covers: spawn_supervision/binary-integrity
    assert refused(program, "0" * 64) is Reason.RUNTIME_CHANGED


def test_only_the_proof_makes_the_evidence() -> None:
    with pytest.raises(TypeError):
        ProvedBinary("/bin/sh", embedded=False)
