"""Hear all that this process prints and logs for a while: Python's streams, the descriptors, logs.

For checks that search the output for secrets; while they run, nothing of it is shown.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, TextIO, cast

from companion_core.system.muted_output import hear_muted_output

__all__ = ["Overheard", "overhear"]


@dataclass(slots=True)
class Overheard:
    """What was heard; complete once the block has ended."""

    text: str = ""


@contextlib.contextmanager
def overhear() -> Iterator[Overheard]:
    """Collect the output of the whole process until the block ends; nothing of it is shown."""
    heard = Overheard()
    root = logging.getLogger()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="backslashreplace") as file:
        stream = cast("TextIO", file)
        handler = logging.StreamHandler(stream)
        level, handlers = root.level, root.handlers[:]
        root.handlers[:] = [handler]  # what another handler would show is a secret, if it is one
        root.setLevel(logging.DEBUG)
        try:
            with (
                _descriptors_lead_to(file),
                hear_muted_output(stream),
                contextlib.redirect_stdout(stream),
                contextlib.redirect_stderr(stream),
            ):
                yield heard
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)
            file.flush()
            # The descriptors and this file share one place in it, so nothing was overwritten.
            file.seek(0)
            heard.text = file.read()


@contextlib.contextmanager
def _descriptors_lead_to(file: IO[str]) -> Iterator[None]:
    """Let the descriptors 1 and 2 lead to `file`; one that is closed stays closed."""
    saved = {}
    for number in (1, 2):
        with contextlib.suppress(OSError):
            saved[number] = os.dup(number)
            _flush_native_output()
            os.dup2(file.fileno(), number)
    try:
        yield
    finally:
        _flush_native_output()
        for number, before in saved.items():
            os.dup2(before, number)
            os.close(before)


def _flush_native_output() -> None:
    """Write out what C's own buffers hold, where the system's C library can be asked."""
    if sys.platform != "win32":
        ctypes.CDLL(None).fflush(None)
