"""Prove, before a start, that the interpreter of an embedded runtime can import the plugin.

That interpreter runs isolated (`-I`): it sees neither PYTHONPATH nor the user's own packages
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

if TYPE_CHECKING:
    from importlib.metadata import Distribution

__all__ = ["EMBEDDED_EXTRA", "needed_distributions", "require_reachable"]

EMBEDDED_EXTRA: Final = "embedded"
"""The extra whose requirements an embedded runtime needs."""

ASK_SECONDS: Final = 20.0
_MAX_BYTES: Final = 1024 * 1024
_QUESTION: Final = "import json, sys; print(json.dumps(sys.path))"
_NAME: Final = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)")


def require_reachable(egress: Egress, distribution: str, installed_in: str) -> None:
    """Require that `distribution`, and what it needs, is where the isolated interpreter looks.

    Blocking; it starts that interpreter only if this process searches other folders as well.

    Args:
        egress: the doorway to the machine.
        distribution: of the embedded runtime's plugin.
        installed_in: the folder of its metadata, resolved.

    Raises:
        EnvironmentUnavailable: `embedded_unreachable`, with the distribution and its folder.
    """
    usual = {os.path.realpath(folder) for folder in site.getsitepackages()}
    if installed_in in usual and not any(_elsewhere(usual)):
        return
    folders = _isolated_folders(egress)
    if not folders:
        return  # it does not start: the start itself will say why
    if installed_in not in folders:
        raise _unreachable(distribution, installed_in)
    for name in _needs(distribution):
        if _find(name, folders) is None and (found := _find(name, sys.path)) is not None:
            raise _unreachable(name, os.path.realpath(str(found.locate_file(""))))


def _unreachable(distribution: str, folder: str) -> EnvironmentUnavailable:
    return EnvironmentUnavailable(Reason.EMBEDDED_UNREACHABLE, f"{distribution} is in {folder}")


def _elsewhere(usual: Iterable[str]) -> Iterator[str]:
    """Yield each folder of this process's path that holds distributions and is not in `usual`."""
    for folder in {os.path.realpath(entry or os.curdir) for entry in sys.path} - set(usual):
        try:
            with os.scandir(folder) as entries:
                if any(entry.name.endswith((".dist-info", ".egg-info")) for entry in entries):
                    yield folder
        except OSError:
            continue


def _isolated_folders(egress: Egress) -> set[str]:
    """Return what the isolated interpreter searches, resolved; empty if it does not say."""
    with tempfile.TemporaryFile() as answer:
        try:
            child = egress.start_process(
                [sys.executable, "-I", "-c", _QUESTION], env=os.environ, stdout=answer
            )
            try:
                child.wait(ASK_SECONDS)
            finally:
                child.kill()
                child.wait()
        except (OSError, EgressRefused, subprocess.TimeoutExpired):
            return set()
        answer.seek(0)
        try:
            return {os.path.realpath(entry) for entry in json.loads(answer.read(_MAX_BYTES))}
        except (ValueError, TypeError):
            return set()


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
