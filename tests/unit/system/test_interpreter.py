"""A process's own program is started only if it is an interpreter."""

from __future__ import annotations

import sys

import pytest

from companion_core.errors import CompanionError, Reason
from companion_core.system import interpreter
from companion_core.system.interpreter import is_interpreter, running_interpreter

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    "name",
    [
        *("python", "python3", "python3.11", "python3.14t", "python3-dbg", "python3.11d"),
        *("pypy3", "pypy3.11", "graalpy", "Python", "python.exe", "pythonw.exe", "PYTHON.EXE"),
    ],
)
def test_what_is_called_like_an_interpreter_is_one_unless_it_is_frozen(name: str) -> None:
    assert is_interpreter(f"/usr/bin/{name}", frozen=False)
    assert not is_interpreter(f"/usr/bin/{name}", frozen=True)
    assert not is_interpreter(name, frozen=False)


@pytest.mark.parametrize(
    "executable",
    [
        *(None, "", "/opt/product/product", "/usr/bin/uwsgi", "/opt/python3/bin/app"),
        *("/opt/My Python App", "/usr/bin/ipython", "/opt/python_app"),
    ],
)
def test_anything_else_is_none(executable: str | None) -> None:
    assert not is_interpreter(executable, frozen=False)


def test_the_one_that_runs_this_is_known() -> None:
    found = running_interpreter()
    assert found.program == sys.executable
    assert sys.prefix in found.folders
    assert found.path is None


@pytest.mark.parametrize(
    ("where", "name", "value"),
    [
        (sys, "frozen", True),
        (sys, "frozen", "macosx_app"),
        (interpreter, "__compiled__", object()),
        (sys, "executable", "/opt/product/product"),
        (sys, "executable", ""),
        (sys, "executable", None),
    ],
)
def test_a_frozen_application_and_one_that_embeds_python_are_refused(
    monkeypatch, where, name, value
) -> None:
    monkeypatch.setattr(where, name, value, raising=False)
    with pytest.raises(CompanionError) as caught:
        running_interpreter()
    assert caught.value.reason is Reason.INTERPRETER_MISSING
