"""Run a short program as a runtime is run, under a keeper, and take what it prints (I-08)."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from companion_core.egress.interface import Egress
from companion_core.runtime.process.keeper_protocol import Exited, StartCommand, parse_report
from companion_core.runtime.process.launcher import start_keeper
from companion_core.system.interpreter import Interpreter

__all__ = ["printed_by"]

_END_SECONDS: Final = 5.0
_READ_BYTES: Final = 65536


def printed_by(
    egress: Egress,
    command: StartCommand,
    *,
    folder: Path,
    seconds: float,
    most_bytes: int,
    interpreter: Interpreter | None = None,
) -> bytes | None:
    """Return what a program prints to stdout; then nothing that it started is left. Blocking.

    Args:
        egress: the doorway.
        command: the program, confined.
        folder: the working folder.
        seconds: how long it may take.
        most_bytes: how much it may print.
        interpreter: the Python that runs the keeper; None for the one that runs this code.

    Returns:
        None where it does not end in time with success, or prints more.

    Raises:
        EnvironmentUnavailable: `spawn_failed`, `interpreter_missing`.
    """
    until = time.monotonic() + seconds
    if sys.platform == "win32":
        return _printed_without_keeper(egress, command, folder=folder, seconds=seconds)
    keeper, line = start_keeper(
        egress,
        folder=folder,
        stdout=subprocess.PIPE,
        stderr=None,
        descriptors=command.descriptors,
        interpreter=interpreter,
    )
    try:
        with line:
            line.settimeout(seconds)
            with contextlib.suppress(OSError):  # then the keeper is gone, and reports nothing
                line.sendall(command.to_json())
            assert keeper.stdout is not None  # noqa: S101 - it was asked for
            printed = _read(keeper.stdout.fileno(), until, most_bytes)
            return printed if printed is not None and _succeeded(line) else None
    finally:  # the line is closed, so the keeper ends what is left
        _end(keeper)


def _read(pipe: int, until: float, most_bytes: int) -> bytes | None:
    """Return all that comes, up to the end; None where that is too much or too late."""
    printed = b""
    while len(printed) <= most_bytes:
        readable, _, _ = select.select([pipe], [], [], max(0.0, until - time.monotonic()))
        if not readable:
            return None
        part = os.read(pipe, _READ_BYTES)
        if not part:
            return printed
        printed += part
    return None


def _succeeded(line: socket.socket) -> bool:
    """Tell whether the keeper, which has ended, reported that the program succeeded."""
    reports = b""
    with contextlib.suppress(OSError):
        while part := line.recv(_READ_BYTES):
            reports += part
    ends = [parse_report(row) for row in reports.splitlines()]
    return any(isinstance(end, Exited) and end.code == 0 for end in ends)


def _end(keeper: subprocess.Popen[bytes]) -> None:
    """Wait for the keeper, which ends the tree; kill one that does not."""
    with keeper:
        try:
            keeper.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            keeper.kill()


def _printed_without_keeper(
    egress: Egress, command: StartCommand, *, folder: Path, seconds: float
) -> bytes | None:
    process = egress.start_process(
        command.argv, env=command.env, cwd=str(folder), stdout=subprocess.PIPE
    )
    with process:
        try:
            text, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            return None
    return text if process.returncode == 0 else None
