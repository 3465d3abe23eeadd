"""The sandbox-exec tier of macOS: written from its documentation, not run on that system yet.

The profile denies by default. The runtime shares the host's network, so everything but its one
listener is denied. Apple has called the program deprecated for years; browsers still use it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Final

from companion_core.runtime.isolation.policy import SandboxPolicy

__all__ = ["PROGRAM", "profile", "wrap"]

PROGRAM: Final = "/usr/bin/sandbox-exec"
_START: Final = """(version 1)
(deny default)
(allow process-exec process-fork)
(allow signal (target same-sandbox))
(allow sysctl-read)
(allow mach-lookup (global-name "com.apple.system.opendirectoryd.libinfo"))
(allow file-read-metadata)
(allow file-read* (subpath "/System") (subpath "/Library/Apple") (subpath "/private/var/db/dyld")
  (literal "/") (literal "/dev/null") (literal "/dev/zero") (literal "/dev/random")
  (literal "/dev/urandom") (subpath "/dev/fd"))
(allow file-map-executable (subpath "/System") (subpath "/Library/Apple"))
(allow file-write-data (literal "/dev/null") (literal "/dev/zero"))
"""
_METAL: Final = """(allow iokit-open)
(allow mach-lookup (global-name "com.apple.MTLCompilerService"))
"""


def profile(policy: SandboxPolicy, *, metal: bool = True) -> str:
    """Return the profile that allows what `policy` names and nothing else."""
    lines = [_START, _METAL if metal else ""]
    lines += [
        f"(allow file-read* file-map-executable (subpath {_quoted(path)}))\n"
        for path in _as_resolved(policy.read)
    ]
    for path in _as_resolved(policy.write):
        lines.append(f"(allow file-read* file-write* (subpath {_quoted(path)}))\n")
        if policy.port is None:
            lines.append(f"(allow network-bind (subpath {_quoted(path)}))\n")
    if policy.port is not None:
        listener = f'(local tcp "localhost:{policy.port}")'
        lines.append(f"(allow network-bind network-inbound {listener})\n")
    else:
        lines.append("(allow network-inbound (local unix))\n")
    return "".join(lines)


def wrap(argv: Sequence[str], policy: SandboxPolicy) -> tuple[str, ...]:
    """Return the command that sets the profile and then executes `argv` in its own place."""
    return (PROGRAM, "-p", profile(policy), *argv)


def _as_resolved(paths: Sequence[str]) -> Iterator[str]:
    """Yield each path as given and as the kernel resolves it: /tmp and /var are links there."""
    yield from dict.fromkeys(name for path in paths for name in (path, os.path.realpath(path)))


def _quoted(path: str) -> str:
    escaped = path.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
