"""Take an instance for one companion: the one that is named, or the first free replica.

A program that opens many companions names none of them. Each gets a numbered instance, which is
free as soon as no process holds its lock: one that a killed companion left is used again.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Final

from companion_core.config.paths import ANY_INSTANCE, InstancePaths
from companion_core.control.client import InstanceLock
from companion_core.errors import CompanionError, EnvironmentUnavailable, Reason

__all__ = ["claim", "idle_replicas"]

# More than one machine has the memory for.
MAX_REPLICAS: Final = 256


def claim(paths: InstancePaths) -> tuple[InstancePaths, InstanceLock]:
    """Make the instance's folders and take its lock.

    Args:
        paths: of an instance, or of any replica (`ANY_INSTANCE`).

    Returns:
        The paths of the instance that was taken, and its lock.

    Raises:
        EnvironmentUnavailable: `already_running`, `disk_unavailable`.
        Refused: `state_path_unsafe`.
    """
    for candidate in _replicas(paths) if paths.instance == ANY_INSTANCE else (paths,):
        candidate.prepare()
        lock = InstanceLock(candidate.lock_file)
        try:
            lock.acquire()
        except EnvironmentUnavailable as error:
            if error.reason is not Reason.ALREADY_RUNNING or candidate is paths:
                raise
        else:
            return candidate, lock
    raise EnvironmentUnavailable(Reason.ALREADY_RUNNING, f"{MAX_REPLICAS} replicas run")


def idle_replicas(paths: InstancePaths) -> Iterator[InstancePaths]:
    """Yield each other replica that ended without cleaning up, with its lock held meanwhile.

    One whose folder cannot be used is passed over; and so is one that left nothing, which another
    start may be taking at this moment.
    """
    for folder in sorted((paths.root / "instances").glob(f"{ANY_INSTANCE}-*")):
        with contextlib.suppress(CompanionError):
            replica = dataclasses.replace(paths, instance=folder.name)
            if replica == paths or not replica.lock_file.exists():
                continue
            if not (replica.runtime_record.exists() or replica.state_file.exists()):
                continue
            replica.refuse_links()
            lock = InstanceLock(replica.lock_file)
            lock.acquire()
            try:
                yield replica
            finally:
                lock.release()


def _replicas(paths: InstancePaths) -> Iterator[InstancePaths]:
    for number in range(1, MAX_REPLICAS + 1):
        yield dataclasses.replace(paths, instance=f"{ANY_INSTANCE}-{number}")
