"""Watch a call that must be pure: name what it writes, starts or connects to.

Python's audit events tell of it before it happens, wherever it would happen. Native code that
makes system calls of its own is not seen. Reading is no effect, and importing is not either.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from functools import cache
from typing import Any, Final

__all__ = ["watch_effects"]

_WRITES: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# The events of Python's audit table that change something, by the start of their names.
_EFFECTS: Final = (
    *("os.chflags", "os.chmod", "os.chown", "os.exec", "os.fork", "os.kill", "os.link"),
    *("os.lockf", "os.mkdir", "os.posix_spawn", "os.putenv", "os.remove", "os.removexattr"),
    *("os.rename", "os.rmdir", "os.setxattr", "os.spawn", "os.startfile", "os.symlink"),
    *("os.system", "os.truncate", "os.unsetenv", "os.utime", "shutil.", "subprocess.", "tempfile."),
    *("socket.bind", "socket.connect", "socket.getaddrinfo", "socket.gethostby", "socket.sendto"),
    *("signal.pthread_kill", "_thread.start_", "winreg.Create", "winreg.Delete", "winreg.Set"),
)
_CALLING: Final = threading.local()


@contextlib.contextmanager
def watch_effects() -> Iterator[list[str]]:
    """Collect what this thread does beside computing and reading, until the block ends."""
    _install()
    effects: list[str] = []
    _CALLING.effects = effects
    compiles, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # an import may not write
    try:
        yield effects
    finally:
        sys.dont_write_bytecode = compiles
        _CALLING.effects = None


@cache
def _install() -> None:
    """Add the hook, which stays for as long as the process does."""
    sys.addaudithook(_notice)


def _notice(event: str, arguments: tuple[Any, ...]) -> None:
    effects: list[str] | None = getattr(_CALLING, "effects", None)
    if effects is None:
        return
    if event == "open":
        path, _mode, flags = arguments
        if type(path) is int or type(flags) is not int or not flags & _WRITES:
            return
    elif not event.startswith(_EFFECTS):
        return
    effects.append(f"{event} {arguments[0]!r}" if arguments else event)
