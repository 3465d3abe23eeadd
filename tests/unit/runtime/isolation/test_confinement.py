"""The command of each tier."""

from __future__ import annotations

import sys

import pytest
from isolation_parts import POLICY

from companion_core.decisions.isolation import Tier
from companion_core.errors import EnvironmentUnavailable, Reason
from companion_core.runtime.isolation import (
    confine,
    confinement,
    sandbox_exec,
)

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(sys.platform == "win32", reason="paths of POSIX systems"),
]


def test_each_tier_makes_its_own_command(monkeypatch, tmp_path) -> None:
    env = {"HOME": "/run/me"}
    plain = confine(Tier.NONE, ("/it",), env, POLICY, folder=tmp_path, handed_on=handed_on)
    assert (plain.argv, plain.env, plain.policy, plain.programs) == (("/it",), env, None, 0)
    locked = confine(Tier.LANDLOCK, ("/it",), env, POLICY, folder=tmp_path, handed_on=handed_on)
    assert locked.argv == ("/it",)
    assert locked.policy == POLICY.lock_policy()
    assert "/proc/self/fd/7" in locked.policy.read
    assert "/proc" not in locked.policy.read
    wrapped = confine(
        Tier.SANDBOX_EXEC, ("/it",), env, POLICY, folder=tmp_path, handed_on=handed_on
    )
    assert wrapped.argv[0] == sandbox_exec.PROGRAM
    monkeypatch.setattr(confinement, "find_bubblewrap", lambda: "/usr/bin/bwrap")
    inside = confine(
        Tier.BUBBLEWRAP, ("/it",), env, POLICY, folder=tmp_path, handed_on=handed_on, helpers=1
    )
    assert inside.env == {**env, "PWD": str(tmp_path)}
    assert inside.programs == 2
    monkeypatch.setattr(confinement, "find_bubblewrap", lambda: None)
    with pytest.raises(EnvironmentUnavailable) as caught:
        confine(Tier.BUBBLEWRAP, ("/it",), env, POLICY, folder=tmp_path, handed_on=handed_on)
    assert caught.value.reason is Reason.ISOLATION_UNAVAILABLE
