"""What a killed companion left: recorded when it was started, ended only after proof (I-08).

The keeper ends its tree when the companion ends, whatever killed the companion; this is for a
keeper that was killed too. A number alone proves nothing: the process must be the recorded one by
its start time, its program, and the boot of this machine; or it must carry the mark of that start,
whose private folder is its working folder and its home.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from companion_core.decisions.spawn_plan import parse_pid
from companion_core.egress.interface import KILL, Egress, ProcessUnreadable
from companion_core.egress.process_identity import ProcessIdentity
from companion_core.errors import EnvironmentUnavailable, Reason
from companion_core.runtime.process.proc_files import read_entry
from companion_core.runtime.process.tree import descendants
from companion_core.system.removal import Budget, remove_tree
from companion_core.system.state_files import read_private, refuse_link, write_private

__all__ = ["forget", "left_behind", "reclaim", "record", "start_folders"]

_LIMIT_BYTES: Final = 64 * 1024
_GONE_SECONDS: Final = 5.0
_PAUSE_SECONDS: Final = 0.01
_START_FOLDER: Final = re.compile(r"[0-9a-f]{8}")  # as `new_start_folder` names it
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")


def record(path: Path, identities: Iterable[ProcessIdentity], folder: Path) -> None:
    """Write down the processes of the running start, in the place of an earlier record."""
    processes = [[each.pid, each.start_time, each.executable] for each in identities]
    content = {"boot": _boot(), "folder": str(folder), "processes": processes}
    write_private(path, json.dumps(content).encode(), durable=False)


def forget(path: Path) -> None:
    """Remove the record of a start that has ended."""
    path.unlink(missing_ok=True)


def reclaim(
    path: Path,
    run_dir: Path,
    egress: Egress,
    *,
    sleep: Callable[[float], object] = time.sleep,
) -> int:
    """End what an earlier companion left running, remove its folders; return how many processes.

    Of a folder with more in it than a start can wait for, the rest is left to the next call.

    Blocking. Call it only under the instance's lock: then nothing that it removes is in use.

    Raises:
        EnvironmentUnavailable: `stale_runtime`, one of them does not end; `process_unreadable`,
            the system does not say whether it did. The record stays for the next attempt.
        Refused: `state_path_unsafe`.
    """
    refuse_link(run_dir)
    tree: tuple[ProcessIdentity, ...] | None = None
    for attempt in range(int(_GONE_SECONDS / _PAUSE_SECONDS), -1, -1):
        try:
            tree = left_behind(path, egress) if tree is None else tree
            if not _kill(egress, tree):
                break
        except ProcessUnreadable:  # which is not an end: look again
            if attempt == 0:
                raise
        sleep(_PAUSE_SECONDS)
    else:
        raise EnvironmentUnavailable(Reason.STALE_RUNTIME)
    forget(path)
    budget = Budget()
    for left in start_folders(run_dir):
        remove_tree(left, budget)  # what stays is in nobody's way: a start makes a new folder
    return len(tree)


def start_folders(run_dir: Path) -> list[Path]:
    """Return the private folders of earlier starts; folders with other names are not ours.

    Raises:
        Refused: `state_path_unsafe`, a link stands in place of `run_dir`.
    """
    refuse_link(run_dir)
    if not run_dir.is_dir():
        return []
    return [
        path
        for path in run_dir.iterdir()
        if _START_FOLDER.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
    ]


def left_behind(path: Path, egress: Egress) -> tuple[ProcessIdentity, ...]:
    """Return the processes of the recorded start that live, each proved; changes nothing.

    Raises:
        ProcessUnreadable: there may be more of them.
        Refused: `state_path_unsafe`.
    """
    recorded, folder = _recorded(path)
    stale = [each for each in recorded if egress.identify(each.pid) == each]
    below = {pid for each in stale for pid in descendants(each.pid)} | _marked(folder)
    tree = {each.pid: each for each in stale}
    for pid in below:
        identity = egress.identify(pid)
        if identity is not None:
            tree.setdefault(pid, identity)
    return tuple(tree.values())


def _kill(egress: Egress, tree: Iterable[ProcessIdentity]) -> bool:
    """Kill each process that is left; return whether there was one, which may be ending now.

    Raises:
        ProcessUnreadable: one of them may be left without having been killed.
    """
    left, unreadable = False, None
    for identity in tree:
        try:
            left |= egress.send_signal(identity, KILL)
        except ProcessUnreadable as error:
            unreadable = error
    if unreadable is not None:
        raise unreadable
    return left


def _marked(folder: str) -> set[int]:
    """Return the processes whose working folder and home are the start's private folder.

    The folder's random name is in no other process's environment, which is read only where the
    working folder fits. A process that lets nobody look (EACCES: another person's, or one with
    rights of its own) proves nothing and is left alone.

    Raises:
        ProcessUnreadable: there may be more of them.
    """
    if not folder or sys.platform != "linux":
        return set()
    home, found = os.fsencode(f"HOME={folder}"), set()
    # The link says the second once the folder is removed.
    places = {folder, f"{folder} (deleted)"}
    try:
        for entry in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208 - only the names are needed
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                if _works_in(entry) not in places:
                    continue
                if home in read_entry(f"/proc/{entry}/environ").split(b"\0"):
                    found.add(int(entry))
    except OSError as error:
        raise ProcessUnreadable from error
    return found


def _works_in(pid: str) -> str:
    """Return the working folder of a process; "" where its path is too long for the kernel."""
    try:
        return os.readlink(f"/proc/{pid}/cwd")  # noqa: PTH115 - a Path would change the text of the link
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return ""
        raise


def _recorded(path: Path) -> tuple[list[ProcessIdentity], str]:
    """Return what was recorded since this machine was started; malformed entries are skipped."""
    raw = read_private(path, _LIMIT_BYTES)
    found: list[ProcessIdentity] = []
    folder = ""
    if raw is None:
        return found, folder
    with contextlib.suppress(ValueError, KeyError, TypeError):
        content = json.loads(raw)
        if content["boot"] != _boot():
            return [], ""
        if type(content["folder"]) is str:
            folder = content["folder"]
        for pid, start_time, executable in content["processes"]:
            number = parse_pid(pid)
            known = type(start_time) in {int, float} and type(executable) is str
            if isinstance(number, int) and known:
                found.append(ProcessIdentity(number, start_time, executable))
    return found, folder


def _boot() -> str:
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""  # on systems without it start times are wall-clock times
