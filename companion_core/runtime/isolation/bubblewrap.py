"""The bubblewrap tier: namespaces of its own, an empty file system with binds, no network.

The whole tree lives in a process namespace whose end ends all of it. With `--unshare-all`
there is one loopback interface of its own: a TCP runtime listens there, and only a helper
started inside can connect to it (`runtime/standalone/broker.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from companion_core.errors import CompanionError
from companion_core.runtime.isolation.policy import SandboxPolicy
from companion_core.runtime.process.binary import check_unreplaceable

__all__ = ["find_bubblewrap", "wrap"]

_PLACES: Final = ("/usr/bin/bwrap", "/usr/local/bin/bwrap", "/run/current-system/sw/bin/bwrap")
_FIXED: Final = (
    *("--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"),
    *("--tmpfs", "/tmp", "--dev", "/dev", "--proc", "/proc"),  # noqa: S108 - a new, empty file system
)


def find_bubblewrap(places: Sequence[str] = _PLACES) -> str | None:
    """Return an installed bubblewrap that no other user can replace; PATH is not searched."""
    for place in places:
        if Path(place).is_file():
            try:
                check_unreplaceable(Path(place))
            except CompanionError:
                return None
            return place
    return None


def wrap(
    program: str, argv: Sequence[str], policy: SandboxPolicy, *, folder: str
) -> tuple[str, ...]:
    """Return the command that runs `argv` in `folder` and lets it reach what `policy` names.

    Binds are made from the shortest path to the longest, so that a folder never covers what
    was bound below it. Bubblewrap closes the descriptors of the model's files once they are
    mounted, and refuses to start when it has mounted another file.
    """
    binds = [(path, "--ro-bind", path) for path in policy.read]
    binds += [(path, "--dev-bind", path) for path in policy.devices]
    binds += [(path, "--bind", path) for path in policy.write]
    binds += [(path, "--ro-bind-fd", str(descriptor)) for path, descriptor in policy.models]
    mounts = [
        part
        for path, kind, source in sorted(binds, key=lambda bind: len(bind[0]))
        for part in (kind, source, path)
    ]
    return (program, *_FIXED, *mounts, "--remount-ro", "/", "--chdir", folder, "--", *argv)
