"""What a stand-alone program prints about its flags, whose names change between releases."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from companion_core.decisions.isolation import Tier
from companion_core.egress.interface import Egress
from companion_core.runtime.isolation import SandboxPolicy, confine
from companion_core.runtime.process.binary import ProvedBinary

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
) -> str:
    """Return what a proved program prints for `arguments`; "" where it does not answer.

    Blocking. The program gets no model, no key and, in the bubblewrap tier, no network.
    """
    if binary.embedded or sha256 is None or not arguments:
        return ""
    question = (sha256, tuple(arguments))
    if question not in _KNOWN:
        _KNOWN[question] = _ask(egress, (binary.path, *arguments), tier, folder)
    return _KNOWN[question]


def _ask(egress: Egress, argv: tuple[str, ...], tier: Tier, folder: Path) -> str:
    policy = replace(SandboxPolicy.of_program(argv[0]), write=(str(folder),))
    outer = tier if tier is Tier.BUBBLEWRAP else Tier.NONE
    with contextlib.ExitStack() as handed_on:
        confined = confine(outer, argv, _ENVIRONMENT, policy, folder=folder, handed_on=handed_on)
        try:
            process = egress.start_process(
                confined.argv,
                env=confined.env,
                cwd=str(folder),
                stdout=subprocess.PIPE,
                pass_fds=confined.descriptors,
            )
        except OSError:
            return ""
    with process:
        try:
            text, _ = process.communicate(timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            return ""
    return text[:_LIMIT_BYTES].decode("utf-8", "replace") if process.returncode == 0 else ""
