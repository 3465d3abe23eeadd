"""Checks of a companion's files: who owns and can read them, and whether the disk has room.

With `repair`, files that others can read are closed to them. No link is followed, and no file
of another user or with a second hard link is touched.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from companion_core.config.paths import InstancePaths, refuse_shared
from companion_core.doctor.checks import Check, Situation
from companion_core.doctor.findings import Finding, Section, broken, fine, repaired
from companion_core.errors import CompanionError, Reason, Refused
from companion_core.models.kept_parts import KEPT_NAMES, received
from companion_core.system.os_compat import FOLDER, NO_FOLLOW, NON_BLOCKING, user_id
from companion_core.system.state_files import check_own_place, check_owned, open_to_others

__all__ = ["ACCESS", "REPAIR", "checks", "is_ours", "room", "shown"]

ACCESS: Final = "state-access"
REPAIR: Final = "companion doctor --repair"
ROOM_BYTES: Final = 64 * 1024 * 1024
_SHOWN: Final = 5
# Stored models and manifests, parts of downloads, and logs; each other file has one fixed name.
_MADE: Final = re.compile(rf"[0-9a-f]{{64}}(\.json)?|memory\.json|{KEPT_NAMES}|[a-z]+\.log(\.1)?")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_OTHERS: Final = 0o077
_OWNER: Final = 0o700


@dataclass(frozen=True, slots=True)
class _Entry:
    path: Path
    status: os.stat_result
    ours: bool = True
    model: bool = False

    @property
    def folder(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)

    @property
    def foreign(self) -> str:
        """Why the companion must not touch it; "" if it may."""
        if not self.folder and not stat.S_ISREG(self.status.st_mode):
            return "is no file or folder"
        if os.name == "posix" and self.status.st_uid not in {0, user_id()}:
            return "belongs to someone else"
        return ""

    @property
    def open(self) -> bool:
        """Others may look at it, and a companion made it; at a model, others may write.

        A stored model may be a second name of the person's own file, whose mode is the person's
        choice. Its bytes are no secret, and the folder above it is closed to others.
        """
        if not self.ours or os.name != "posix":
            return False
        if self.model:
            return open_to_others(self.status, self.path)
        return bool(stat.S_IMODE(self.status.st_mode) & _OTHERS)


def check_access(situation: Situation) -> Finding:
    """Require that the person can read and write the state folder."""
    root = situation.paths.root
    check_own_place(root.parent)
    if not root.exists():
        return fine("made at the first start")
    root = root.resolve(strict=True)  # a link of the person's own is fine
    check_own_place(root.parent)
    usable = root.stat().st_mode & _OWNER == _OWNER
    if usable and os.access(root, os.R_OK | os.W_OK | os.X_OK):
        return fine("can be read and written")
    refuse_shared(root)
    if not situation.repair or not is_ours(root):
        fix = REPAIR if is_ours(root) else ""
        return broken(Reason.STATE_PATH_UNSAFE, f"{root} cannot be read and written", fix=fix)
    root.chmod(stat.S_IMODE(root.stat().st_mode) | _OWNER)  # `check_folder` closes it to others
    return repaired(Reason.STATE_PATH_UNSAFE, f"opened to you: {root}")


def check_folder(situation: Situation) -> Finding:
    """Require that only the person can use the companion's folders and files (I-18)."""
    root = situation.paths.root
    if not root.exists():
        return fine(f"{root}: made at the first start, for you alone")
    root = root.resolve(strict=True)
    refuse_shared(root)
    entries = list(_entries(InstancePaths(root, situation.paths.instance)))
    sockets = situation.paths.run_folder_path()
    if os.path.lexists(sockets) and not sockets.is_relative_to(root):
        entries.append(_entry(sockets))
    for entry in entries:
        if why := entry.foreign:
            raise Refused(Reason.STATE_PATH_UNSAFE, f"{shown(entry.path)} {why}")
    wrong = [entry for entry in entries if entry.open]
    if not wrong:
        check_owned(root)
        return fine(f"{root}: {len(entries)} files and folders, yours alone")
    names = ", ".join(shown(entry.path) for entry in wrong[:_SHOWN])
    names += f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
    if situation.repair:
        left = [entry for entry in wrong if not _close(entry)]
        if not left:
            check_owned(root)
            return repaired(Reason.STATE_PATH_UNSAFE, f"closed to others: {names}")
        names = ", ".join(shown(entry.path) for entry in left[:_SHOWN])
        return broken(Reason.STATE_PATH_UNSAFE, f"open to others, and not ours alone: {names}")
    return broken(Reason.STATE_PATH_UNSAFE, f"open to others: {names}", fix=REPAIR)


def shown(path: Path) -> str:
    """Return the path for display: a digest in its name is cut to its first digits."""
    name = _DIGEST.sub(lambda match: f"{match[0][:8]}…", path.name)
    return str(path.with_name(name)) if name else str(path)


def _entries(paths: InstancePaths) -> Iterator[_Entry]:
    """Yield the files that a companion makes in its state folder, but none that a runtime makes."""
    yield _entry(paths.root)
    tops = [(paths.root / "instances", 1), (paths.models, 1)]
    tops += [(paths.manifests, 1), (paths.plugin_store, 0)]
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
            for below in _below(name, depth - 1):
                known = below.folder or _MADE.fullmatch(below.path.name) is not None
                model = not below.folder and _DIGEST.fullmatch(below.path.name) is not None
                yield replace(below, ours=known, model=model)


def _entry(path: Path) -> _Entry:
    return _Entry(path, path.lstat())


def _close(entry: _Entry) -> bool:
    """Remove others' rights from exactly the file that was checked; False if that fails."""
    if sys.platform == "win32":
        return False  # files inherit the profile's access list there, so none is open to others
    kind = FOLDER if entry.folder else 0
    try:
        descriptor = os.open(entry.path, os.O_RDONLY | NO_FOLLOW | NON_BLOCKING | kind)
    except OSError:
        return False
    try:
        now = os.fstat(descriptor)
        same = (now.st_dev, now.st_ino) == (entry.status.st_dev, entry.status.st_ino)
        ours = now.st_uid == user_id() and (entry.folder or now.st_nlink == 1)
        if same and ours:
            os.fchmod(descriptor, stat.S_IMODE(now.st_mode) & ~_OTHERS)
    except OSError:
        return False
    else:
        return same and ours
    finally:
        os.close(descriptor)


def is_ours(path: Path) -> bool:
    """Tell whether it is a file, folder or socket of the person's, and no link."""
    status = path.lstat()
    kinds = {stat.S_IFREG, stat.S_IFSOCK, stat.S_IFDIR}
    return stat.S_IFMT(status.st_mode) in kinds and (
        os.name != "posix" or status.st_uid == user_id()
    )


def check_room(situation: Situation) -> Finding:
    """Require room to write, and for the missing files of the configured model."""
    folder = situation.paths.root
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not os.access(folder, os.W_OK | os.X_OK):
        return broken(Reason.DISK_UNAVAILABLE, f"{folder} cannot be written to")
    free, missing = shutil.disk_usage(folder).free, _missing_bytes(situation)
    detail = f"{free / 1e9:.1f} GB are free"
    if missing:
        detail += f", {missing / 1e6:.1f} MB are still to be fetched"
    return fine(detail) if free >= missing + ROOM_BYTES else broken(Reason.DISK_UNAVAILABLE, detail)


def _missing_bytes(situation: Situation) -> int:
    config, manifest = situation.config, situation.manifest
    if config is None or manifest is None:
        return 0
    files = [
        file for model in manifest.models if model.id == config.model_id for file in model.files
    ]
    models = situation.paths.models
    return sum(
        max(0, file.size - received(models, file.sha256))
        for file in files
        if not (models / file.sha256).exists()
    )


def check_trust_store(situation: Situation) -> Finding:
    """Require that the file of trusted plugins can be read."""
    from companion_core.plugin_host import TrustStore  # noqa: PLC0415 - only this check needs it

    try:
        book = TrustStore(situation.paths.plugin_store).read()
    except CompanionError as error:
        return broken(error.reason, str(situation.paths.plugin_store))
    return fine(f"{len(book.trusted)} plugins trusted beside the first-party ones")


def checks() -> tuple[Check, ...]:
    """Return the checks of this file but `room`, which runs once the manifest is known."""
    check = partial(Check, section=Section.STATE, needs=(ACCESS,))
    return (
        check(id=ACCESS, title="access", run=check_access, needs=()),
        check(id="state-folder", title="state folder", run=check_folder),
        check(id="trust-store", title="trusted plugins", run=check_trust_store),
    )


def room() -> Check:
    """Return the check of the disk, which runs once it is known what is still to be fetched."""
    return Check(id="room", title="disk", section=Section.STATE, run=check_room)
