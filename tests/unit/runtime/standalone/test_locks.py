"""The seccomp filter, run by a small machine of our own."""

from __future__ import annotations

import pytest

from companion_core.runtime.standalone import locks

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("port", [None, 4711])
def test_the_filter_decides_as_its_rules_say(monkeypatch, machine, port) -> None:
    """The classic-BPF program, run by a small machine of our own."""
    monkeypatch.setattr(locks.platform, "machine", lambda: machine)
    program, calls = locks._program(port), locks._CALLS[machine]
    family = locks._AF_UNIX if port is None else locks._AF_INET
    own = locks._MACHINES[machine]

    def run(number: int, *arguments: int, audit: int = own) -> int:
        data = {0: number, 4: audit, 16: (*arguments, 0, 0)[0], 24: (*arguments, 0, 0)[1]}
        at = accumulator = 0
        while True:
            operation, yes, no, value = program[at]
            at += 1
            if operation == locks._RETURN:
                return value
            if operation == locks._LOAD:
                accumulator = data[value]
            elif operation == locks._AND:
                accumulator &= value
            elif operation == locks._EQUAL:
                at += yes if accumulator == value else no
            else:
                at += yes if accumulator >= value else no

    assert run(0, audit=0x1234) == locks._KILL
    assert run(calls["socket"], family, 1) == locks._ALLOW
    assert run(calls["socket"], family, 1 | 0o2000000) == locks._ALLOW  # close on exec
    assert run(calls["socket"], family, 2) == locks._DENY
    assert run(calls["socket"], 16, 1) == locks._DENY  # netlink
    other = locks._AF_INET if port is None else locks._AF_UNIX
    assert run(calls["socket"], other, 1) == locks._DENY
    if port is not None:
        assert run(calls["socket"], locks._AF_INET6, 1) == locks._ALLOW
    for name in set(calls) - {"socket"}:
        assert run(calls[name], 1, 1) == locks._DENY
    assert run(1, 1, 1) == locks._ALLOW
    if machine == "x86_64":
        assert run(locks._X32_BIT | calls["ptrace"]) == locks._DENY
