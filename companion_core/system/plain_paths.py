"""Paths as they enter the program: absolute and without "..", which a sandbox cannot bind."""

from __future__ import annotations

import os
from pathlib import Path

from companion_core.errors import Reason, UsageError

__all__ = ["absolute", "plain_file", "plain_folder"]


def absolute(path: Path) -> Path:
    """Return a person's path as an absolute one without "..".

    Raises:
        UsageError: `usage`, it is relative to a working folder that was removed.
    """
    try:
        return Path(plain_folder(str(path.absolute())))
    except OSError as error:
        what = f"{path} is relative, and the working folder cannot be read; use an absolute path"
        raise UsageError(Reason.USAGE, what) from error


def plain_folder(path: str) -> str:
    """Return an absolute path without ".."; links are resolved only where there was one."""
    return os.path.realpath(path) if ".." in Path(path).parts else path


def plain_file(path: str) -> str:
    """As `plain_folder`, but the last name stays: an environment's interpreter is a link."""
    if ".." not in Path(path).parts:
        return path
    folder, name = os.path.split(path)
    return str(Path(os.path.realpath(folder), name)) if name != ".." else os.path.realpath(path)
