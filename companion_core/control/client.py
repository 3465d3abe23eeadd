"""How commands find the running companion and talk to it over its owner-only socket.

One line of JSON asks, one line of JSON answers; `control/server.py` is the other end.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from companion_core.config.paths import InstancePaths
from companion_core.egress.control_link import ControlLink
from companion_core.egress.interface import Egress, ProcessUnreadable
from companion_core.egress.process_identity import ProcessIdentity
from companion_core.errors import CompanionError, EnvironmentUnavailable, Reason, error_for
from companion_core.system.lacks import lack_of
from companion_core.system.os_compat import CLOSE_ON_EXEC, NO_FOLLOW, user_id
from companion_core.system.state_files import read_private, try_lock

__all__ = [
    "MAX_LINE",
    "InstanceLock",
    "RunningInstance",
    "ask",
    "ask_running",
    "find_running",
    "has_gone",
    "wait_until_gone",
]

MAX_LINE: Final = 64 * 1024
MAX_STATE_FILE: Final = 4 * 1024
# How long a process that is only a companion takes to end after it has released the lock.
EXIT_SECONDS: Final = 2.0
# A killed process has lock and socket for a moment longer, until its last thread has ended.
KILLED_SECONDS: Final = 0.5
POLL_SECONDS: Final = 0.02


class InstanceLock:
    """The running companion has this lock; the system releases it when the process ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            EnvironmentUnavailable: `already_running`, `disk_unavailable`.
        """
        flags = os.O_RDWR | os.O_CREAT | NO_FOLLOW | CLOSE_ON_EXEC
        try:
            descriptor = os.open(self._path, flags, 0o600)
            try:
                free = try_lock(descriptor)
            except OSError:
                os.close(descriptor)
                raise
        except OSError as error:
            raise lack_of(error, path=self._path) from error
        if not free:
            os.close(descriptor)
            raise EnvironmentUnavailable(Reason.ALREADY_RUNNING)
        self._descriptor = descriptor

    def release(self) -> None:
        """Release the lock; may be called again."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def _is_locked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | NO_FOLLOW)
    except OSError:
        return False
    try:
        return not try_lock(descriptor)
    except OSError:
        return False
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class RunningInstance:
    """A companion that was found running: proved by its lock, and by its process or socket (I-08).

    Attributes:
        seen: this system shows the process, so it may be signalled. It does not in another process
            namespace, or where processes are hidden (proc(5), `hidepid`, `subset`).
    """

    identity: ProcessIdentity
    control_socket: Path
    lock_file: Path
    seen: bool = True


def find_running(paths: InstancePaths, egress: Egress) -> RunningInstance | None:
    """Return the running companion of this state folder, or None.

    The state file alone proves nothing: the lock must be held, and the process that wrote the
    file must be there or, where it cannot be seen, be the one that listens on the control socket.

    Raises:
        Refused: `state_path_unsafe`, a link stands in place of a folder or of the file.
        ProcessUnreadable: the system does not say whether it runs, and nobody listens.
    """
    paths.refuse_links()
    raw = read_private(paths.state_file, MAX_STATE_FILE)
    if raw is None:
        return None
    try:
        state = json.loads(raw)
        pid, start, control = state["pid"], state["start_time"], state["control_socket"]
    except (ValueError, KeyError, TypeError):
        return None
    if type(pid) is not int or type(start) not in {int, float} or type(control) is not str:
        return None
    unreadable, identity = None, None
    try:
        identity = egress.identify(pid)
    except ProcessUnreadable as error:
        unreadable = error
    if not _is_locked(paths.lock_file):
        return None
    if identity is not None and identity.start_time == start:
        return RunningInstance(identity, Path(control), paths.lock_file)
    unseen = RunningInstance(
        ProcessIdentity(pid, start, ""), Path(control), paths.lock_file, seen=False
    )
    if _listens(unseen, egress):
        return unseen
    if unreadable is not None:
        raise unreadable
    return None


def _listens(running: RunningInstance, egress: Egress) -> bool:
    """Tell whether a companion that cannot be seen listens on its control socket."""
    try:
        with contextlib.closing(egress.connect_control(running.control_socket)) as link:
            return _is_peer(running, link)
    except OSError:
        return False


def _is_peer(running: RunningInstance, link: ControlLink) -> bool:
    """Tell whether the companion is at the other end, in a folder that only the person can use.

    The system gives 0 for a process of another process namespace (unix(7), SO_PEERCRED).
    """
    pid, user = link.peer()
    pids = {running.identity.pid} if running.seen else {running.identity.pid, 0}
    return pid in pids and user == user_id()


def ask(running: RunningInstance, egress: Egress, op: str, **arguments: Any) -> dict[str, Any]:
    """Send one request to a running companion and return its answer.

    Raises:
        CompanionError: the answer's reason, or `control_unavailable`.
    """
    line = json.dumps({"op": op, **arguments}).encode() + b"\n"
    try:
        with contextlib.closing(egress.connect_control(running.control_socket)) as link:
            if not _is_peer(running, link):
                raise EnvironmentUnavailable(Reason.CONTROL_UNAVAILABLE)
            answer = json.loads(link.ask(line, MAX_LINE))
    except (OSError, ValueError) as error:
        raise EnvironmentUnavailable(Reason.CONTROL_UNAVAILABLE) from error
    if not isinstance(answer, dict):
        raise EnvironmentUnavailable(Reason.CONTROL_UNAVAILABLE)
    if answer.pop("ok", False) is not True:
        raise error_for(known_reason(answer.get("reason")))
    return answer


def ask_running(paths: InstancePaths, egress: Egress, op: str) -> dict[str, Any]:
    """Ask the companion of this state folder.

    Raises:
        CompanionError: `not_running`, also where it ends at this very moment; else as `ask`.
    """
    running = find_running(paths, egress)
    if running is not None:
        try:
            return ask(running, egress, op)
        except CompanionError as error:
            silent = error.reason is Reason.CONTROL_UNAVAILABLE
            if not (silent and has_gone(running, paths, egress)):
                raise
    raise CompanionError(Reason.NOT_RUNNING)


def has_gone(running: RunningInstance, paths: InstancePaths, egress: Egress) -> bool:
    """Tell whether a companion that gave no answer has ended, or ends at this very moment."""
    deadline = time.monotonic() + KILLED_SECONDS
    while find_running(paths, egress) == running:
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def known_reason(reason: object) -> Reason:
    """Return the reason in an answer; the companion may be of another release."""
    try:
        return Reason(str(reason))
    except ValueError:
        return Reason.CONTROL_UNAVAILABLE


def wait_until_gone(running: RunningInstance, egress: Egress, seconds: float) -> bool:
    """Wait until the companion has ended; False when it still runs after `seconds`.

    It has ended when its process has, or when it has released its lock and the process goes on,
    because another product embeds it.
    """
    released = time.monotonic()
    deadline = released + seconds
    while _is_alive(running, egress):
        now = time.monotonic()
        if _is_locked(running.lock_file):
            released = now
        elif now - released > EXIT_SECONDS:
            return True
        if now > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _is_alive(running: RunningInstance, egress: Egress) -> bool:
    if not running.seen:
        return _is_locked(running.lock_file)
    seen = egress.identify(running.identity.pid)
    return seen is not None and seen.start_time == running.identity.start_time
