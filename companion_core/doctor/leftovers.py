"""Checks for what a killed companion left: its state file, its runtime, an incomplete download.

With `repair`, leftovers that are proved to be a dead companion's are removed while its lock is
held. No link is followed, and nothing of another user is touched.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from companion_core.config.paths import InstancePaths
from companion_core.control.client import InstanceLock, ask, find_running
from companion_core.doctor.checks import Check, Situation
from companion_core.doctor.findings import Finding, Section, broken, fine, repaired, skipped
from companion_core.doctor.state import ACCESS, REPAIR, is_ours, shown
from companion_core.errors import CompanionError, EnvironmentUnavailable, Reason
from companion_core.models.kept_parts import KEPT_NAMES, split_kept
from companion_core.runtime import left_behind, reclaim, start_folders
from companion_core.serving.last_end import last_end
from companion_core.system.folder_lock import lock_folder
from companion_core.system.removal import Budget, folders_set_aside, remove_tree
from companion_core.system.state_files import check_owned, refuse_link

__all__ = ["checks"]

# A repair has more time than a start to remove what a runtime left.
REPAIR_SECONDS: Final = 60.0


def check_companion(situation: Situation) -> Finding:
    """Find the running companion: by process, start time, lock and control socket (I-08)."""
    situation.running = find_running(situation.paths, situation.egress)
    if situation.running is None:
        ended = last_end(situation.paths)
        return skipped(Reason.NOT_RUNNING, "nothing runs" if ended is None else ended.told())
    situation.status = ask(situation.running, situation.egress, "status")
    return fine(f"pid {situation.running.identity.pid} answers on its control socket")


def _in_use(situation: Situation) -> bool:
    """Tell whether a companion runs, starts or stops in this instance's folder."""
    if situation.running is not None:
        return True
    if not situation.paths.lock_file.exists():
        return False
    try:
        with _holding(situation.paths):
            return False
    except EnvironmentUnavailable as error:
        if error.reason is not Reason.ALREADY_RUNNING:
            raise
        return True


@contextlib.contextmanager
def _holding(paths: InstancePaths) -> Iterator[None]:
    """Hold the instance's lock, so that no companion runs or starts meanwhile."""
    lock = InstanceLock(paths.lock_file)
    if paths.folder.is_dir():  # else no companion ever ran here
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def check_state_file(situation: Situation) -> Finding:
    """Look for files that lead commands to a dead companion."""
    paths = situation.paths
    if _in_use(situation):
        return fine("they are the running companion's")
    run_folder = paths.run_folder_path()
    refuse_link(run_folder)
    socket = run_folder / "control.sock"
    left = [path for path in (paths.state_file, socket) if os.path.lexists(path)]
    if not left:
        return fine("no dead companion left any")
    names = ", ".join(path.name for path in left)
    if not situation.repair:
        return broken(Reason.STALE_STATE, names, fix=REPAIR)
    with _holding(paths):
        for path in left:
            check_owned(path.parent)
            if not is_ours(path):
                return broken(Reason.STATE_PATH_UNSAFE, f"{path} is not a companion's")
            path.unlink()
    return repaired(Reason.STALE_STATE, f"removed: {names}")


def check_processes(situation: Situation) -> Finding:
    """Look for a runtime that outlived its companion, each process proved (I-08)."""
    paths = situation.paths
    lives = left_behind(paths.runtime_record, situation.egress)
    if _in_use(situation):
        return _judge_running(situation, {each.pid for each in lives})
    folders = _folders_left(paths)
    if not lives and not folders and not os.path.lexists(paths.runtime_record):
        return fine("no runtime outlived its companion")
    reason = Reason.STALE_RUNTIME if lives else Reason.STALE_STATE
    what = f"{len(lives)} processes, {len(folders)} folders of an earlier start"
    if not situation.repair:
        return broken(reason, what, fix=REPAIR)
    with _holding(paths):
        reclaim(paths.runtime_record, paths.run_folder(), situation.egress)
        budget = Budget(seconds=REPAIR_SECONDS)
        for folder in _folders_left(paths):
            remove_tree(folder, budget)
    if left := _folders_left(paths):
        names = ", ".join(str(folder) for folder in left)
        return broken(reason, f"could not be removed, or not yet: {names}", fix=REPAIR)
    with contextlib.suppress(OSError):
        paths.run_folder_path().rmdir()
    return repaired(reason, f"ended and removed: {what}")


def _folders_left(paths: InstancePaths) -> list[Path]:
    """Return the folders of earlier starts, and those that a start set aside."""
    return [*start_folders(paths.run_folder_path()), *folders_set_aside(paths.folder / "data")]


def _judge_running(situation: Situation, proved: set[int]) -> Finding:
    """Require that the running runtime is recorded, so that it could be ended later."""
    runtime = situation.status["runtime"] if situation.status is not None else None
    if runtime is not None and runtime["pid"] not in proved:
        return broken(Reason.STALE_RUNTIME, "the running runtime is not recorded")
    return fine(f"{len(proved)} processes, recorded and proved: the running companion's")


def check_downloads(situation: Situation) -> Finding:
    """Look for parts of downloads that no later download can resume (I-04)."""
    folder = situation.paths.models
    if not folder.is_dir():
        return fine("no download was begun")
    at_once = threading.Event()
    at_once.set()
    try:
        with lock_folder(folder, at_once):
            return _judge_downloads(folder, repair=situation.repair)
    except CompanionError as error:
        if error.reason is not Reason.INTERRUPTED:
            raise
        return fine("a download is going on")


def _judge_downloads(folder: Path, *, repair: bool) -> Finding:
    for path in sorted(folder.iterdir()):
        if re.fullmatch(KEPT_NAMES, path.name) and stat.S_ISDIR(path.lstat().st_mode):
            what = f"{shown(path)} is a folder in the place of a download; remove it"
            return broken(Reason.STATE_PATH_UNSAFE, what)
    # Only a start judges their age: it knows which files it needs, and its clock was checked.
    useful, rest = split_kept(folder, now=None)
    left = [path for path in rest if is_ours(path)]
    if not left:
        if useful:
            return fine(f"{_amount(useful)}: the next start resumes from it")
        return fine("no download was cut off")
    what = _amount(left)
    if not repair:
        return broken(Reason.STALE_STATE, what, fix=REPAIR)
    for path in left:
        path.unlink(missing_ok=True)
    return repaired(Reason.STALE_STATE, f"removed: {what}")


def _amount(files: list[Path]) -> str:
    return f"{len(files)} cut off, {sum(path.lstat().st_size for path in files) / 1e6:.1f} MB"


def checks() -> tuple[Check, ...]:
    """Return the checks of this file."""
    check = partial(Check, section=Section.STATE, needs=(ACCESS,))
    return (
        Check(
            id="companion",
            title="running companion",
            section=Section.COMPANION,
            run=check_companion,
            needs=(ACCESS,),
        ),
        check(id="state-file", title="state file and socket", run=check_state_file),
        check(id="processes", title="processes left behind", run=check_processes),
        check(id="downloads", title="downloads cut off", run=check_downloads),
    )
