"""Which code a start runs on Windows: the platform's name is changed, nothing is started."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import runtime_parts as parts

from companion_core.decisions.isolation import Tier, choose_tier
from companion_core.egress.live import LiveEgress
from companion_core.models import proof as model_proof
from companion_core.runtime.isolation import confine, probe_ceilings, probe_isolation
from companion_core.runtime.isolation.policy import SandboxPolicy
from companion_core.runtime.process import launcher
from companion_core.runtime.process import windows_job as job_process
from companion_core.runtime.process.output import RuntimeOutput
from companion_core.runtime.start.handed_model import hand_on

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(sys.platform != "linux", reason="descriptors as paths are POSIX"),
]


@pytest.fixture
def windows(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")


def test_a_runtime_is_launched_into_a_job(windows, monkeypatch, tmp_path) -> None:
    made = []

    class Job:
        def __init__(self, libraries, limits) -> None:
            made.append((libraries, limits))

    monkeypatch.setattr(job_process, "JobObject", Job)
    monkeypatch.setattr(job_process, "load_libraries", lambda: "libraries")

    async def life() -> None:
        output = RuntimeOutput(tmp_path / "log")
        process = launcher.launch(
            LiveEgress(), folder=tmp_path, output=output, descriptors=(), limits=parts.LIMITS
        )
        assert isinstance(process, job_process.JobProcess)
        output.close()

    asyncio.run(life())
    assert made == [("libraries", parts.LIMITS)]


def test_the_model_is_named_as_it_is_held(windows, tmp_path) -> None:
    for name in ("one.gguf", "two.gguf"):
        (tmp_path / name).write_text(name)
    one = parts.verified_model(tmp_path / "one.gguf")
    (file,) = hand_on(one, tmp_path, Tier.JOB_OBJECT).files
    assert file.path == str(tmp_path / "one.gguf")
    both = parts.verified_model(tmp_path / "one.gguf", tmp_path / "two.gguf")
    for file in hand_on(
        both, tmp_path, Tier.JOB_OBJECT
    ).files:  # links to files need a privilege there
        assert not Path(file.path).is_symlink()
        assert Path(file.path).samefile(tmp_path / file.name)
        assert Path(file.path).name == file.name
    one.close()
    both.close()


def test_what_is_proved_is_opened_sharing_reading_alone(windows, monkeypatch, tmp_path) -> None:
    opened = []
    monkeypatch.setattr(model_proof, "open_for_reading_alone", opened.append)
    model_proof._open(tmp_path / "x")
    assert opened == [tmp_path / "x"]


@pytest.mark.parametrize(("suspended", "extra"), [(False, 0), (True, 0x4)])
def test_programs_start_without_a_window_in_a_group_of_their_own(
    windows, monkeypatch, suspended, extra
) -> None:
    seen = {}
    monkeypatch.setattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0x200, raising=False)
    monkeypatch.setattr(subprocess, "CREATE_NO_WINDOW", 0x08000000, raising=False)

    def start(_argv, **options):
        seen.update(options)
        return SimpleNamespace(pid=os.getpid())

    monkeypatch.setattr(subprocess, "Popen", start)
    LiveEgress().start_process(("it",), env={"A": "b"}, suspended=suspended)
    assert seen["creationflags"] == 0x200 | 0x08000000 | extra
    assert seen["env"] == {"A": "b"}
    assert seen.get("close_fds", True)
    assert seen["stdin"] == seen["stdout"] == seen["stderr"] == subprocess.DEVNULL


def test_the_tier_is_the_job_and_changes_no_command(windows, tmp_path) -> None:
    (state,) = probe_isolation(LiveEgress(), "win32")
    assert state.tier is Tier.JOB_OBJECT
    assert not state.works  # this system has none
    assert choose_tier("required", "win32", frozenset({Tier.JOB_OBJECT})) is Tier.JOB_OBJECT
    policy = SandboxPolicy(read=(), write=(), devices=(), models=(), port=4711)
    with contextlib.ExitStack() as handed_on:
        confined = confine(
            Tier.JOB_OBJECT, ("it",), {"A": "b"}, policy, folder=tmp_path, handed_on=handed_on
        )
    assert (confined.argv, confined.env, confined.policy) == (("it",), {"A": "b"}, None)
    assert confined.programs == 0
    assert probe_ceilings("win32").hard


def test_no_other_platform_is_left_changed() -> None:
    assert sys.platform == "linux"
    assert os.name == "posix"
