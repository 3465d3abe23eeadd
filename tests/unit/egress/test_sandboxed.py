"""The doorway of an armed sandbox: what is named may be done, and nothing else."""

from __future__ import annotations

import asyncio
import inspect
import os
import ssl
import sys
from pathlib import Path
from typing import Any

import pytest

from companion_core.egress.interface import Egress, EgressRefused
from companion_core.egress.live import LiveEgress
from companion_core.egress.sandboxed import ARMED, PROGRAMS, SandboxedEgress, open_doorway

pytestmark = pytest.mark.unit

METHODS = [name for name, _ in inspect.getmembers(Egress, inspect.isfunction) if name[0] != "_"]


class Recorder:
    """In the live doorway's place: notes what gets through."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def act(*_: Any, **__: Any) -> Any:
            self.done.append(name)
            return asyncio.sleep(0) if "backend" in name else None

        return act


@pytest.fixture
def armed() -> SandboxedEgress:
    egress = SandboxedEgress(["/opt/llama-server"])
    egress._live = Recorder()  # type: ignore[assignment] # nothing is started
    return egress


def done(egress: SandboxedEgress) -> list[str]:
    return egress._live.done  # type: ignore[attr-defined, no-any-return] # see above


@pytest.mark.parametrize("value", ["1", "true", "yes", " "])
def test_any_value_but_none_and_zero_arms_it(value: str) -> None:
    assert isinstance(open_doorway({ARMED: value}), SandboxedEgress)


@pytest.mark.parametrize("environ", [{}, {ARMED: ""}, {ARMED: "0"}])
def test_else_the_doorway_is_live(environ: dict[str, str]) -> None:
    assert isinstance(open_doorway(environ), LiveEgress)


def test_programs_are_named_by_absolute_paths(tmp_path: Path) -> None:
    named = os.pathsep.join([str(tmp_path / "a"), "relative", "", str(tmp_path / "b")])
    egress = open_doorway({ARMED: "1", PROGRAMS: named})
    assert isinstance(egress, SandboxedEgress)
    assert {str(tmp_path / "a"), str(tmp_path / "b")} <= egress._programs
    assert not {"relative", ""} & egress._programs


@pytest.mark.parametrize("program", ["/opt/llama-server", sys.executable])
def test_a_program_that_is_named_and_this_python_are_started(
    armed: SandboxedEgress, program: str
) -> None:
    armed.start_process([program, "-x"], env={})
    armed.replace_process([program], {})
    assert done(armed) == ["start_process", "replace_process"]


@pytest.mark.parametrize("argv", [["/bin/sh"], ["llama-server"], ["python"], []])
def test_no_other_program_is_started(armed: SandboxedEgress, argv: list[str]) -> None:
    with pytest.raises(EgressRefused):
        armed.start_process(argv, env={})
    with pytest.raises(EgressRefused):
        armed.replace_process(argv, {})
    assert done(armed) == []


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost"])
def test_loopback_is_reached(armed: SandboxedEgress, host: str) -> None:
    context = ssl.create_default_context()
    armed.connect_tcp(host, 1, context=context, timeout=1)
    armed.connect_https(host, 1, context=context, timeout=1)
    assert done(armed) == ["connect_tcp", "connect_https"]


@pytest.mark.parametrize(
    "host",
    ["example.org", "10.0.0.1", "0.0.0.0", "::", "localhost.example.org", "127.0.0.1.nip.io", ""],
)
def test_nothing_beyond_is_reached(armed: SandboxedEgress, host: str) -> None:
    context = ssl.create_default_context()
    with pytest.raises(EgressRefused):
        armed.connect_tcp(host, 1, context=context, timeout=1)
    with pytest.raises(EgressRefused):
        armed.connect_https(host, 1, context=context, timeout=1)
    assert done(armed) == []


def test_no_browser_is_opened(armed: SandboxedEgress) -> None:
    with pytest.raises(EgressRefused):
        armed.open_browser("https://example.org")


def test_it_has_the_whole_doorway() -> None:
    for name in METHODS:
        assert callable(getattr(SandboxedEgress, name))
