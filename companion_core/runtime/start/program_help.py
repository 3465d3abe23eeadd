"""What a stand-alone program prints about its flags, whose names change between releases."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from companion_core.decisions.isolation import Tier
from companion_core.egress.interface import Egress
from companion_core.errors import EnvironmentUnavailable
from companion_core.runtime.isolation import SandboxPolicy, confine
from companion_core.runtime.process.binary import ProvedBinary
from companion_core.runtime.process.keeper_protocol import StartCommand
from companion_core.runtime.process.short_run import printed_by
from companion_core.system.interpreter import Interpreter

__all__ = ["read_help"]

_SECONDS: Final = 10.0
_LIMIT_BYTES: Final = 256 * 1024
_ENVIRONMENT: Final = {"LANG": "C.UTF-8", "PATH": "/usr/bin:/bin"}
# By digest and arguments: a program is asked once in the life of this process.
_KNOWN: dict[tuple[str, tuple[str, ...]], str] = {}


def read_help(
    egress: Egress,
    binary: ProvedBinary,
    sha256: str | None,
    arguments: Sequence[str],
    *,
    tier: Tier,
    folder: Path,
    interpreter: Interpreter | None = None,
) -> str:
    """Return what a proved program prints for `arguments`; "" where it does not answer.

    Blocking. The program is confined as a runtime is and ends with all that it started, but gets
    no model and no key.

    Args:
        egress: the doorway.
        binary: the program.
        sha256: of the program.
        arguments: what its plugin asks it.
        tier: the chosen one.
        folder: of this start; the program may write to it.
        interpreter: the Python that runs its keeper; None for the one that runs this code.
    """
    if binary.embedded or sha256 is None or not arguments:
        return ""
    question = (sha256, tuple(arguments))
    if question not in _KNOWN:
        argv = (binary.path, *arguments)
        _KNOWN[question] = _ask(egress, argv, tier, folder, interpreter)
    return _KNOWN[question]


def _ask(
    egress: Egress,
    argv: tuple[str, ...],
    tier: Tier,
    folder: Path,
    interpreter: Interpreter | None,
) -> str:
    policy = replace(SandboxPolicy.of_program(argv[0]), write=(str(folder),))
    with contextlib.ExitStack() as handed_on:
        confined = confine(tier, argv, _ENVIRONMENT, policy, folder=folder, handed_on=handed_on)
        command = StartCommand(
            argv=confined.argv,
            env=confined.env,
            descriptors=confined.descriptors,
            policy=confined.policy,
            apart=confined.apart,
        )
        try:
            text = printed_by(
                egress,
                command,
                folder=folder,
                seconds=_SECONDS,
                most_bytes=_LIMIT_BYTES,
                interpreter=interpreter,
            )
        except (OSError, EnvironmentUnavailable):
            return ""
    return "" if text is None else text.decode("utf-8", "replace")
