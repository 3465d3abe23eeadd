"""Ask the interpreter that runs what is started, and prove that it can import the plugin.

It runs isolated (`-I`): it sees neither PYTHONPATH nor the user's own packages
(`pip install --user`) nor a folder that only this process searches (`--target`).
"""

from __future__ import annotations

import json
import os
import re
import site
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from companion_core.egress.interface import Egress, EgressRefused
from companion_core.errors import EnvironmentUnavailable, Reason
from companion_core.system.interpreter import Interpreter, is_interpreter, running_interpreter

if TYPE_CHECKING:
    from importlib.metadata import Distribution

__all__ = [
    "EMBEDDED_EXTRA",
    "ask_interpreter",
    "needed_distributions",
    "require_reachable",
    "search_packages_of",
]

EMBEDDED_EXTRA: Final = "embedded"
"""The extra whose requirements an embedded runtime needs."""

ASK_SECONDS: Final = 20.0
_MAX_BYTES: Final = 1024 * 1024
_QUESTION: Final = (
    "import json, sys; print(json.dumps([list(sys.version_info[:2]), sys.path, [sys.prefix,"
    " sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix]]))"
)
_OLDEST: Final = (3, 11)
# A frozen application leads its own children to the libraries that it carries.
_MISLEADING: Final = ("LD_", "DYLD_", "PYTHON", "_PYI_", "_MEIPASS")
_NAME: Final = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)")


def ask_interpreter(egress: Egress, program: str) -> Interpreter:
    """Return what an interpreter says of itself. Blocking; it starts it, isolated.

    Args:
        egress: the doorway to the machine.
        program: an absolute path, which nobody else can replace.

    Raises:
        EnvironmentUnavailable: `interpreter_missing`, with the path and why.
    """
    real = os.path.realpath(program)
    if not is_interpreter(real, frozen=False) and not is_interpreter(program, frozen=False):
        raise _missing(program, "is not called like a Python")
    if real == os.path.realpath(sys.executable or ""):
        try:
            running_interpreter()
        except EnvironmentUnavailable:
            raise _missing(program, "is this very application") from None
    answer = _ask(egress, program)
    if answer is None:
        raise _missing(program, "does not answer as a Python does")
    version, path, prefixes = answer
    if version < _OLDEST:
        raise _missing(program, "is older than Python 3.11")
    return Interpreter(
        program=program,
        folders=(*prefixes, *map(os.path.realpath, prefixes), real),
        path=tuple(map(os.path.realpath, path)),
    )


def search_packages_of(interpreter: Interpreter) -> None:
    """Let this process find what is installed for that interpreter, after all of its own.

    Its standard library is left out: it may be of another version.
    """
    for folder in interpreter.path or ():
        if folder not in sys.path and _holds_distributions(folder):
            sys.path.append(folder)


def require_reachable(
    egress: Egress, distribution: str, installed_in: str, interpreter: Interpreter | None = None
) -> None:
    """Require that `distribution`, and what it needs, is where the isolated interpreter looks.

    Blocking; it starts that interpreter only if this process searches other folders as well.

    Args:
        egress: the doorway to the machine.
        distribution: of the embedded runtime's plugin.
        installed_in: the folder of its metadata, resolved.
        interpreter: runs the plugin; None for the one that runs this code.

    Raises:
        EnvironmentUnavailable: `embedded_unreachable`, with the distribution and its folder.
    """
    interpreter = interpreter or running_interpreter()
    if interpreter.path is None:
        usual = {os.path.realpath(folder) for folder in site.getsitepackages()}
        if installed_in in usual and not any(_elsewhere(usual)):
            return
        answer = _ask(egress, interpreter.program)
        folders = set() if answer is None else set(map(os.path.realpath, answer[1]))
    else:
        folders = set(interpreter.path)
    if not folders:
        return  # it does not start: the start itself will say why
    if installed_in not in folders:
        raise _unreachable(distribution, installed_in)
    for name in _needs(distribution):
        if _find(name, folders) is None and (found := _find(name, sys.path)) is not None:
            raise _unreachable(name, os.path.realpath(str(found.locate_file(""))))


def _missing(program: str, why: str) -> EnvironmentUnavailable:
    return EnvironmentUnavailable(Reason.INTERPRETER_MISSING, f"{program} {why}")


def _unreachable(distribution: str, folder: str) -> EnvironmentUnavailable:
    return EnvironmentUnavailable(Reason.EMBEDDED_UNREACHABLE, f"{distribution} is in {folder}")


def _elsewhere(usual: Iterable[str]) -> Iterator[str]:
    """Yield each folder of this process's path that holds distributions and is not in `usual`."""
    for folder in {os.path.realpath(entry or os.curdir) for entry in sys.path} - set(usual):
        if _holds_distributions(folder):
            yield folder


def _holds_distributions(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(entry.name.endswith((".dist-info", ".egg-info")) for entry in entries)
    except OSError:
        return False


def _ask(egress: Egress, program: str) -> tuple[tuple[int, ...], list[str], list[str]] | None:
    """Return version, path and prefixes of an isolated interpreter; None if it does not say."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(_MISLEADING)}
    with tempfile.TemporaryFile() as answer:
        try:
            child = egress.start_process([program, "-I", "-c", _QUESTION], env=env, stdout=answer)
            try:
                child.wait(ASK_SECONDS)
            finally:
                child.kill()
                child.wait()
        except (OSError, EgressRefused, subprocess.TimeoutExpired):
            return None
        answer.seek(0)
        try:
            version, path, prefixes = json.loads(answer.read(_MAX_BYTES))
            fits = all(type(number) is int for number in version)
            if fits and all(type(text) is str for text in (*path, *prefixes)):
                return tuple(version), list(path), list(prefixes)
        except (ValueError, TypeError):
            pass
        return None


def _find(name: str, path: Iterable[str]) -> Distribution | None:
    from importlib import metadata  # noqa: PLC0415 - slow; only an unusual environment needs it

    return next(iter(metadata.distributions(name=name, path=list(path))), None)


def needed_distributions(distribution: str) -> Iterator[Distribution]:
    """Yield what is installed of that which `distribution` needs when it is embedded.

    The core is left out: the runtime imports nothing of it.
    """
    for name in _needs(distribution):
        if (found := _find(name, sys.path)) is not None:
            yield found


def _needs(distribution: str) -> Iterator[str]:
    """Yield the names of what `distribution` needs when it is embedded, and of what that needs.

    The core is left out: the runtime imports nothing of it.
    """
    seen = {"companion-core"}
    waiting = [(distribution, True)]
    while waiting:
        name, direct = waiting.pop()
        found = _find(name, sys.path)
        for need in (found.requires or ()) if found is not None else ():
            requirement, _, marker = need.partition(";")
            match = _NAME.match(requirement)
            if match is None or ("extra" in marker and not (direct and EMBEDDED_EXTRA in marker)):
                continue
            if match[1] not in seen:
                seen.add(match[1])
                waiting.append((match[1], False))
                yield match[1]
