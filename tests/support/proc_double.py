"""Files of /proc that cannot be read."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Final

import pytest

from companion_core.runtime.process import proc_files
from companion_core.runtime.process import tree as process_tree

__all__ = ["UNSAID", "failing", "read_with"]

# Errors that do not say that there is no such process.
UNSAID: Final = (
    errno.EMFILE,
    errno.ENFILE,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ENOMEM,
)

_real = process_tree.read_entry


def read_with(monkeypatch: pytest.MonkeyPatch, read: Callable[[str], bytes]) -> None:
    """Have every file of /proc read like this."""
    for module in (proc_files, process_tree):
        monkeypatch.setattr(module, "read_entry", read)


def failing(number: int, what: str = "") -> Callable[[str], bytes]:
    """Return a reader that raises this `OSError` for each path that holds `what`."""

    def read(path: str) -> bytes:
        if what in path:
            raise OSError(number, os.strerror(number))
        return _real(path)

    return read
