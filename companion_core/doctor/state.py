"""What a companion keeps on disk: whose it is, and what one that was killed left there.

With `repair`, modes are closed and what is proved to be a dead companion's is removed, while
its lock is held. Nothing is followed through a link, and nothing that somebody else made or
that also stands elsewhere is touched.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from companion_core.control import InstanceLock, ask, find_running
from companion_core.doctor.checks import Check, Situation
from companion_core.doctor.rows import Finding, Section, broken, fine, repaired, skipped
from companion_core.errors import CompanionError, EnvironmentUnavailable, Reason, Refused
from companion_core.folder_lock import lock_folder
from companion_core.paths import InstancePaths, refuse_shared
from companion_core.runtime.reclaim import left_behind, reclaim
from companion_core.state_files import check_owned

__all__ = ["checks", "in_use"]

REPAIR: Final = "companion doctor --repair"
ROOM_BYTES: Final = 64 * 1024 * 1024
_SHOWN: Final = 5
_PARTIAL = re.compile(r"\.[0-9a-f]{64}\.[0-9a-f]{16}\.part")
_OTHERS: Final = 0o077


@dataclass(frozen=True, slots=True)
class _Entry:
    path: Path
    status: os.stat_result

    @property
    def folder(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)

    @property
    def foreign(self) -> str:
        """Why it is not ours to touch; "" where it is."""
        if not self.folder and not stat.S_ISREG(self.status.st_mode):
            return "is no file or folder"
        if os.name == "posix" and self.status.st_uid not in {0, os.geteuid()}:
            return "belongs to someone else"
        return ""

    @property
    def open(self) -> bool:
        return os.name == "posix" and bool(stat.S_IMODE(self.status.st_mode) & _OTHERS)


def check_folder(situation: Situation) -> Finding:
    """Require that every folder and file of the companion is the person's alone (I-18)."""
    check_owned(situation.paths.root.parent)
    if not os.path.lexists(situation.paths.root):
        return fine(f"{situation.paths.root}: made at the first start, for you alone")
    root = situation.paths.root.resolve(strict=True)  # a link of the person's own is fine
    check_owned(root.parent)
    refuse_shared(root)
    entries = list(_entries(InstancePaths(root, situation.paths.instance)))
    for entry in entries:
        if why := entry.foreign:
            raise Refused(Reason.STATE_PATH_UNSAFE, f"{entry.path} {why}")
    wrong = [entry for entry in entries if entry.open]
    if not wrong:
        check_owned(root)
        return fine(f"{root}: {len(entries)} files and folders, yours alone")
    names = ", ".join(str(entry.path) for entry in wrong[:_SHOWN])
    names += f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
    if situation.repair:
        left = [entry for entry in wrong if not _close(entry)]
        if not left:
            check_owned(root)
            return repaired(Reason.STATE_PATH_UNSAFE, f"closed to others: {names}")
        names = ", ".join(str(entry.path) for entry in left[:_SHOWN])
        return broken(Reason.STATE_PATH_UNSAFE, f"open to others, and not ours alone: {names}")
    return broken(Reason.STATE_PATH_UNSAFE, f"open to others: {names}", fix=REPAIR)


def _entries(paths: InstancePaths) -> Iterator[_Entry]:
    """Yield what a companion makes in its state folder, and nothing that a runtime makes."""
    yield _entry(paths.root)
    tops = [(paths.root / "instances", 1), (paths.models, 1), (paths.plugin_store, 0)]
    for top, depth in tops:
        if os.path.lexists(top):
            yield from _below(top, depth)
    instances = paths.root / "instances"
    for instance in instances.iterdir() if instances.is_dir() else ():
        for name in ("logs", "data", "run"):
            if os.path.lexists(instance / name):
                yield from _below(instance / name, 1 if name == "logs" else 0)
        for name in ("state.json", "runtime.json", "manifest-memory.json", "lock"):
            if os.path.lexists(instance / name):
                yield _entry(instance / name)


def _below(path: Path, depth: int) -> Iterator[_Entry]:
    entry = _entry(path)
    yield entry
    if entry.folder and depth:
        for name in sorted(path.iterdir()):
            yield from _below(name, depth - 1)


def _entry(path: Path) -> _Entry:
    return _Entry(path, path.lstat())


def _close(entry: _Entry) -> bool:
    """Take others' rights away from exactly what was looked at; False when that cannot be."""
    kind = os.O_DIRECTORY if entry.folder else 0
    try:
        descriptor = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | kind)
    except OSError:
        return False
    try:
        now = os.fstat(descriptor)
        same = (now.st_dev, now.st_ino) == (entry.status.st_dev, entry.status.st_ino)
        ours = now.st_uid == os.geteuid() and (entry.folder or now.st_nlink == 1)
        if same and ours:
            os.fchmod(descriptor, stat.S_IMODE(now.st_mode) & ~_OTHERS)
    except OSError:
        return False
    else:
        return same and ours
    finally:
        os.close(descriptor)


def check_room(situation: Situation) -> Finding:
    """Require room to write, and for what of the configured model is not stored yet."""
    folder = situation.paths.root
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not os.access(folder, os.W_OK | os.X_OK):
        return broken(Reason.DISK_UNAVAILABLE, f"{folder} cannot be written to")
    free, missing = shutil.disk_usage(folder).free, _missing_bytes(situation)
    detail = f"{free / 1e9:.1f} GB are free"
    if missing:
        detail += f", {missing / 1e9:.1f} GB are still to be fetched"
    return fine(detail) if free >= missing + ROOM_BYTES else broken(Reason.DISK_UNAVAILABLE, detail)


def _missing_bytes(situation: Situation) -> int:
    config, manifest = situation.config, situation.manifest
    if config is None or manifest is None:
        return 0
    files = [
        file for model in manifest.models if model.id == config.model.id for file in model.files
    ]
    models = situation.paths.models
    return sum(file.size for file in files if not (models / file.sha256).exists())


def check_companion(situation: Situation) -> Finding:
    """Find the running companion: by process, start time, lock and control socket (I-08)."""
    situation.running = find_running(situation.paths, situation.egress)
    if situation.running is None:
        return skipped(Reason.NOT_RUNNING, "nothing runs")
    situation.status = ask(situation.running, situation.egress, "status")
    return fine(f"pid {situation.running.identity.pid} answers on its control socket")


def in_use(situation: Situation) -> bool:
    """Tell whether a companion runs, starts or stops in this instance's folder."""
    if situation.running is not None:
        return True
    if not situation.paths.lock_file.exists():
        return False
    try:
        with _holding(situation.paths):
            return False
    except EnvironmentUnavailable:
        return True


@contextlib.contextmanager
def _holding(paths: InstancePaths) -> Iterator[None]:
    """Hold the instance's lock: then no companion runs, and none starts meanwhile."""
    lock = InstanceLock(paths.lock_file)
    if paths.folder.is_dir():  # else no companion was ever here
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def check_state_file(situation: Situation) -> Finding:
    """Look for what leads commands to a companion that is dead."""
    paths = situation.paths
    if in_use(situation):
        return fine("they are the running companion's")
    socket = paths.run_folder_path() / "control.sock"
    left = [path for path in (paths.state_file, socket) if os.path.lexists(path)]
    if not left:
        return fine("none of a companion that ended")
    names = ", ".join(path.name for path in left)
    if not situation.repair:
        return broken(Reason.STALE_STATE, names, fix=REPAIR)
    with _holding(paths):
        for path in left:
            check_owned(path.parent)
            if not _is_ours(path):
                return broken(Reason.STATE_PATH_UNSAFE, f"{path} is not a companion's")
            path.unlink()
    return repaired(Reason.STALE_STATE, f"removed: {names}")


def _is_ours(path: Path) -> bool:
    status = path.lstat()
    plain = stat.S_ISREG(status.st_mode) or stat.S_ISSOCK(status.st_mode)
    return plain and (os.name != "posix" or status.st_uid == os.geteuid())


def check_processes(situation: Situation) -> Finding:
    """Look for a runtime that outlived its companion, each process proved (I-08)."""
    paths = situation.paths
    lives = left_behind(paths.runtime_record, situation.egress)
    if in_use(situation):
        return _judge_running(situation, {each.pid for each in lives})
    folders = _start_folders(paths)
    if not lives and not folders and not os.path.lexists(paths.runtime_record):
        return fine("none of a runtime that outlived its companion")
    reason = Reason.STALE_RUNTIME if lives else Reason.STALE_STATE
    what = f"{len(lives)} processes, {len(folders)} folders of an earlier start"
    if not situation.repair:
        return broken(reason, what, fix=REPAIR)
    with _holding(paths):
        reclaim(paths.runtime_record, paths.run_folder(), situation.egress)
    with contextlib.suppress(OSError):
        paths.run_folder_path().rmdir()
    return repaired(reason, f"ended and removed: {what}")


def _judge_running(situation: Situation, proved: set[int]) -> Finding:
    """Require that the running runtime is written down, so that it could be ended later."""
    runtime = situation.status["runtime"] if situation.status is not None else None
    if runtime is not None and runtime["pid"] not in proved:
        return broken(Reason.STALE_RUNTIME, "the running runtime is not recorded")
    return fine(f"{len(proved)} processes, recorded and proved: the running companion's")


def _start_folders(paths: InstancePaths) -> list[Path]:
    folder = paths.run_folder_path()
    try:
        return [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]
    except FileNotFoundError:
        return []


def check_downloads(situation: Situation) -> Finding:
    """Look for what a killed download left; the next one starts anew in any case (I-04)."""
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
    named = [path for path in folder.iterdir() if _PARTIAL.fullmatch(path.name)]
    left = [path for path in named if _is_ours(path)]
    if not left:
        return fine("no download was cut off")
    what = f"{len(left)} cut off, {sum(path.lstat().st_size for path in left) / 1e6:.1f} MB"
    if not repair:
        return broken(Reason.STALE_STATE, what, fix=REPAIR)
    for path in left:
        path.unlink(missing_ok=True)
    return repaired(Reason.STALE_STATE, f"removed: {what}")


def check_trust_store(situation: Situation) -> Finding:
    """Require that the file of trusted plugins can be read."""
    from companion_core.plugin_host import TrustStore  # noqa: PLC0415 - this check alone

    try:
        book = TrustStore(situation.paths.plugin_store).read()
    except CompanionError as error:
        return broken(error.reason, str(situation.paths.plugin_store))
    return fine(f"{len(book.trusted)} plugins trusted beside the first-party ones")


def checks() -> tuple[Check, ...]:
    """Return the checks of this file; room is asked for once the manifest is known."""
    check = partial(Check, section=Section.STATE)
    return (
        check(id="state-folder", title="state folder", run=check_folder),
        Check(
            id="companion",
            title="running companion",
            section=Section.COMPANION,
            run=check_companion,
        ),
        check(id="state-file", title="state file and socket", run=check_state_file),
        check(id="processes", title="processes left behind", run=check_processes),
        check(id="downloads", title="downloads cut off", run=check_downloads),
        check(id="trust-store", title="trusted plugins", run=check_trust_store),
    )


def room() -> Check:
    """Return the check that needs to know what is still to be fetched."""
    return Check(id="room", title="disk", section=Section.STATE, run=check_room)
