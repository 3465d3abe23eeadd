"""What a checked plan may reach."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from isolation_parts import UNIX, evidence

from companion_core.providers import SpawnPlan, TcpChannel
from companion_core.runtime.isolation import policy as policy_module
from companion_core.runtime.isolation import sandbox_policy

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(sys.platform == "win32", reason="paths of POSIX systems"),
]


def test_a_program_may_read_itself_and_the_libraries_beside_it(tmp_path) -> None:
    for name in ("server", "libone.so", "libtwo.so.1", "secret.txt"):
        (tmp_path / name).touch()
    (tmp_path / "extra").mkdir()
    plan = SpawnPlan(
        argv=(str(tmp_path / "server"),), served_model="m", read_paths=(str(tmp_path / "extra"),)
    )
    binary = evidence(str(tmp_path / "server"), embedded=False)
    policy = sandbox_policy(
        plan, binary, UNIX, write=(Path("/run/me"),), models=(("/proc/self/fd/7", 7),)
    )
    own = sorted(Path(path).name for path in policy.read if path.startswith(str(tmp_path)))
    assert own == ["extra", "libone.so", "libtwo.so.1", "server"]
    assert policy.port is None
    assert policy.devices == ()
    tcp = TcpChannel(host="127.0.0.1", port=4711)
    assert sandbox_policy(plan, binary, tcp, write=(), models=()).port == 4711


def test_the_embedded_interpreter_may_read_its_own_folders(monkeypatch, tmp_path) -> None:
    for name in ("env", "base"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "env"))
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path / "base"))
    plan = SpawnPlan(argv=(sys.executable, "-I", "-m", "it"), served_model="m", gpu=True)
    binary = evidence(sys.executable, embedded=True)
    policy = sandbox_policy(plan, binary, UNIX, write=(), models=())
    assert {str(tmp_path / "env"), str(tmp_path / "base")} <= set(policy.read)


def test_what_lies_below_another_path_is_left_out(tmp_path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    outer, inner = str(tmp_path / "a"), str(tmp_path / "a" / "b")
    assert policy_module._existing((inner, outer, outer, str(tmp_path / "none"))) == (outer,)
