"""Which Python runs what the companion starts; it is known or named, and never guessed.

The keeper, the broker and an embedded runtime are Python programs. In an application that is
frozen (PyInstaller, Nuitka, cx_Freeze, py2app), or that embeds Python, `sys.executable` is the
application: starting it would start the application again.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final

from companion_core.errors import EnvironmentUnavailable, Reason

__all__ = ["Interpreter", "is_interpreter", "running_interpreter"]

# What interpreters are called, on whatever system: python3.13t, pypy3, python3-dbg, Python.exe.
_NAME: Final = re.compile(r"(?:python|pypy|graalpy)[\d.]*[a-z-]*(?:\.exe)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpreter:
    """A Python, 3.11 or newer.

    Attributes:
        program: the absolute name that it is executed under.
        folders: of the interpreter and of the environment it runs in; a confined program that it
            runs reads them.
        path: where it looks for distributions when it runs isolated, resolved; None for the one
            that runs this code, whose answer may differ from `sys.path`.
    """

    program: str
    folders: tuple[str, ...]
    path: tuple[str, ...] | None = None


def is_interpreter(executable: str | None, *, frozen: bool) -> bool:
    """Tell whether a process's own program runs Python code that it is given.

    Args:
        executable: as `sys.executable` has it; None or "" where it is unknown.
        frozen: the process runs code that was built into its program.
    """
    if frozen or not executable or not PurePath(executable).is_absolute():
        return False
    return _NAME.fullmatch(PurePath(executable).name) is not None


def running_interpreter() -> Interpreter:
    """Return the interpreter that runs this code.

    Raises:
        EnvironmentUnavailable: `interpreter_missing`, this process is another program.
    """
    # Nuitka sets no `sys.frozen`; each module that it compiled has `__compiled__`.
    frozen = bool(getattr(sys, "frozen", False)) or "__compiled__" in globals()
    if not is_interpreter(sys.executable, frozen=frozen):
        raise EnvironmentUnavailable(Reason.INTERPRETER_MISSING)
    folders = (sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix)
    program = os.path.realpath(sys.executable)
    return Interpreter(
        program=sys.executable,
        folders=(*folders, *map(os.path.realpath, folders), program),
    )
