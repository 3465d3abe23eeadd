"""The command of each tier."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
from isolation_parts import POLICY

from companion_core.decisions.isolation import Tier
from companion_core.errors import EnvironmentUnavailable, Reason
from companion_core.runtime.isolation import (
    SandboxPolicy,
    bubblewrap,
    confine,
    confinement,
    sandbox_exec,
)
from companion_core.runtime.isolation.call_filter import FilterShape, compile_filter
from companion_core.runtime.process.keeper_protocol import Apart
from companion_core.runtime.standalone import locks
from companion_core.system.interpreter import running_interpreter

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(sys.platform == "win32", reason="paths of POSIX systems"),
]


@pytest.fixture
def handed_on() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as made:
        yield made


def test_each_tier_makes_its_own_command(monkeypatch, tmp_path, handed_on) -> None:
    env = {"HOME": "/run/me"}
    plain = confine(Tier.NONE, ("/it",), env, POLICY, folder=tmp_path, handed_on=handed_on)
    assert (plain.argv, plain.env, plain.policy, plain.programs) == (("/it",), env, None, 0)
    locked = confine(Tier.LANDLOCK, ("/it",), env, POLICY, folder=tmp_path, handed_on=handed_on)
    assert locked.argv == ("/it",)
    machine, scoped = os.uname().machine, locks.landlock_version() >= locks.SCOPE_SINCE
    assert locked.policy == POLICY.lock_policy(machine, signals_scoped=scoped)
    assert "/proc/self/fd/7" in locked.policy.read
    assert "/proc" not in locked.policy.read
    wrapped = confine(
        Tier.SANDBOX_EXEC, ("/it",), env, POLICY, folder=tmp_path, handed_on=handed_on
    )
    assert wrapped.argv[0] == sandbox_exec.PROGRAM
    monkeypatch.setattr(confinement, "find_bubblewrap", lambda: "/usr/bin/bwrap")
    inside = confine(
        Tier.BUBBLEWRAP,
        ("/it",),
        env,
        POLICY,
        folder=tmp_path,
        handed_on=handed_on,
        broker=running_interpreter(),
    )
    assert inside.env == {**env, "PWD": str(tmp_path)}
    assert inside.programs == 2
    assert inside.apart is None  # it makes its own
    monkeypatch.setattr(confinement, "find_bubblewrap", lambda: None)
    with pytest.raises(EnvironmentUnavailable) as caught:
        confine(Tier.BUBBLEWRAP, ("/it",), env, POLICY, folder=tmp_path, handed_on=handed_on)
    assert caught.value.reason is Reason.ISOLATION_UNAVAILABLE


@pytest.mark.skipif(sys.platform != "linux", reason="namespaces of Linux")
def test_a_runtime_that_has_no_network_to_listen_on_gets_an_empty_one(tmp_path, handed_on) -> None:
    def apart(tier: Tier, policy: SandboxPolicy) -> Apart | None:
        return confine(tier, ("/it",), {}, policy, folder=tmp_path, handed_on=handed_on).apart

    assert apart(Tier.LANDLOCK, POLICY) == Apart(network=True)
    assert apart(Tier.LANDLOCK, replace(POLICY, port=4711)) == Apart(network=False)
    # Without a tier it may have what it needs of the network; its processes are held all the same.
    assert apart(Tier.NONE, POLICY) == Apart(network=False)


@pytest.mark.skipif(sys.platform != "linux", reason="filters of Linux")
def test_bubblewrap_inherits_the_filter_until_it_is_launched(
    monkeypatch, tmp_path, handed_on
) -> None:
    monkeypatch.setattr(confinement, "find_bubblewrap", lambda: "/usr/bin/bwrap")
    made = confine(Tier.BUBBLEWRAP, ("/it",), {}, POLICY, folder=tmp_path, handed_on=handed_on)
    (descriptor,) = made.descriptors
    assert made.argv[made.argv.index("--seccomp") + 1] == str(descriptor)
    shape = FilterShape(unix=True, tcp=True, connect=True, devices=True)
    assert os.read(descriptor, 1 << 16) == compile_filter(shape, os.uname().machine)
    handed_on.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


@pytest.mark.skipif(sys.platform != "linux", reason="filters of Linux")
def test_a_machine_without_a_list_of_calls_has_no_landlock(
    monkeypatch, tmp_path, handed_on
) -> None:
    monkeypatch.setattr(confinement, "MACHINES", {})
    with pytest.raises(EnvironmentUnavailable) as caught:
        confine(Tier.LANDLOCK, ("/it",), {}, POLICY, folder=tmp_path, handed_on=handed_on)
    assert caught.value.reason is Reason.ISOLATION_UNAVAILABLE
    monkeypatch.setattr(bubblewrap, "MACHINES", {})
    assert bubblewrap.open_filter(POLICY) is None
    assert "--seccomp" not in bubblewrap.wrap("/usr/bin/bwrap", ("/it",), POLICY, folder="/")
