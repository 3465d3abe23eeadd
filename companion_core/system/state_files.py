"""Owner-only folders and files: the person or root owns every path component (I-18).

Folders are 0700 and files 0600. A file is replaced atomically: the new content is written to
another file, fsynced and renamed, and then the folder is fsynced.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
import sys
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

from companion_core.errors import EnvironmentUnavailable, Reason, Refused
from companion_core.system.lacks import lack_of
from companion_core.system.os_compat import (
    BINARY,
    CLOSE_ON_EXEC,
    FOLDER,
    NO_FOLLOW,
    NON_BLOCKING,
    group_id,
    user_id,
)

__all__ = [
    "OWNER_ONLY",
    "check_own_place",
    "check_owned",
    "fsync_folder",
    "open_ordinary",
    "open_to_others",
    "private_folder",
    "read_private",
    "refuse_link",
    "try_lock",
    "write_private",
]

OWNER_ONLY = 0o600
_ACCESS_LIST, _LIST_VERSION_BYTES = "system.posix_acl_access", 4
_NAMED_USER, _NAMED_GROUP, _MAY_WRITE = 0x02, 0x08, 0x02
_SYSTEM_GROUPS = 1000  # a group with a lower number is the distribution's, in its local files
_NO_FILE = frozenset({errno.EINVAL, errno.ELOOP, errno.ENXIO})  # no ordinary file, a link, a socket
_MAX_LINKS = 40  # the limit of Linux (path_resolution(7))


def open_to_others(status: os.stat_result, place: Path | int) -> bool:
    """Return whether any user besides the owner, root and the person's own group may write.

    A group that has no member gives nobody anything: see `_has_others`.

    Both what the permission bits and what an access list (acl(5)) say count: where there is a list,
    the group's bits are no more than the most that it grants to anyone named in it.

    Args:
        status: of `place`.
        place: a path, which is no link, or a descriptor.
    """
    if status.st_mode & stat.S_IWOTH:
        return True
    if not status.st_mode & stat.S_IWGRP:
        return False
    return _has_others(status.st_gid) or _list_opens(place)


def _has_others(group: int) -> bool:
    """Tell whether anyone besides root and the person is in a group.

    Distributions give folders such as /usr/local/bin to a group of theirs that is empty at first
    (Debian's staff). Only a system group is asked: those are in the local files, which name every
    member, while the members of others may be in a directory that lists nobody. Who may add a
    member to it is root. A group that cannot be looked up counts as one with others.
    """
    if group in {0, group_id()}:
        return False
    if sys.platform == "win32" or group >= _SYSTEM_GROUPS:
        return True
    import grp  # noqa: PLC0415 - does not exist on Windows
    import pwd  # noqa: PLC0415 - does not exist on Windows

    try:
        members = {pwd.getpwnam(name).pw_uid for name in grp.getgrgid(group).gr_mem}
        members |= {user.pw_uid for user in pwd.getpwall() if user.pw_gid == group}
    except (KeyError, OSError):
        return True
    return not members <= {0, user_id()}


def _list_opens(place: Path | int) -> bool:
    """Tell whether an access list lets a user or group write who is not the person's or root's."""
    if sys.platform != "linux":
        return False
    try:
        entries = os.getxattr(place, _ACCESS_LIST)
    except OSError as error:
        # It has none, or the file system knows none; what cannot be told counts as open.
        return error.errno not in {errno.ENODATA, errno.EOPNOTSUPP}
    # A version, then entries of what is meant, what it may do, and whom (linux/posix_acl_xattr.h).
    return any(
        may & _MAY_WRITE and who not in {0, mine}
        for kind, may, who in struct.iter_unpack("<HHI", entries[_LIST_VERSION_BYTES:])
        for named, mine in ((_NAMED_USER, user_id()), (_NAMED_GROUP, group_id()))
        if kind == named
    )


def check_owned(path: Path) -> None:
    """Refuse a path with a component that another user could replace.

    Each existing component, including links and the paths that they lead through, must belong to
    the person or root and not be writable by others, except a sticky folder such as /tmp or
    /nix/store: there only the owner of an entry may replace it, and the next component is proved
    to be the person's or root's.

    Raises:
        Refused: `state_path_unsafe`; the detail names the component.
        EnvironmentUnavailable: `disk_unavailable`, `limit_reached`; likewise.
    """
    if os.name != "posix":
        return  # on Windows an owner-only ACL is inherited from the profile folder
    mine = {0, user_id()}
    try:
        for component, status in _walk(path.absolute()):
            if status.st_uid not in mine:
                raise _unsafe(component, "belongs to someone else")
            sticky = bool(status.st_mode & stat.S_ISVTX)
            link = stat.S_ISLNK(status.st_mode)
            if not link and not sticky and open_to_others(status, component):
                raise _unsafe(component, "can be changed by others")
    except FileNotFoundError:
        return  # a missing component is made later, with the right owner and mode
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise lack_of(error, path=path) from error
        raise _unsafe(path, "cannot be looked at") from error


def check_own_place(path: Path) -> None:
    """Refuse a place for the companion's own folders as `check_owned` does, or as out of reach.

    Nothing threatens a person in another's folder where the person may make nothing (`HOME` of
    somebody else): there the environment lacks a folder of the person's own.

    Raises:
        Refused: `state_path_unsafe`; the detail names the component.
        EnvironmentUnavailable: `disk_unavailable`, `limit_reached`; likewise.
    """
    try:
        check_owned(path)
    except Refused as error:
        there = next((p for p in (path, *path.parents) if os.path.isdir(p)), path)  # noqa: PTH112 - False where it is out of reach
        if os.access(there, os.W_OK | os.X_OK):
            raise
        raise EnvironmentUnavailable(Reason.DISK_UNAVAILABLE, error.detail) from error


def _walk(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield each component as the system resolves an absolute path, links and ".." included."""
    current, links = Path(path.anchor), 0
    waiting = [*reversed(path.parts[1:])]
    yield current, current.lstat()
    while waiting:
        part = waiting.pop()
        if part == "..":
            current = current.parent  # the walk came through it, so it is no link
            continue
        component = current / part
        status = component.lstat()
        yield component, status
        if not stat.S_ISLNK(status.st_mode):
            current = component
            continue
        links += 1
        if links > _MAX_LINKS:
            raise OSError(errno.ELOOP, "too many links")
        target = component.readlink()
        if target.is_absolute():
            current = Path(target.anchor)
        waiting += reversed(target.parts[1:] if target.is_absolute() else target.parts)


def _unsafe(path: Path, why: str) -> Refused:
    return Refused(Reason.STATE_PATH_UNSAFE, f"{path} {why}")


def refuse_link(path: Path) -> None:
    """Refuse a link in place of a folder of ours, because it may lead anywhere.

    Raises:
        Refused: `state_path_unsafe`.
    """
    if path.is_symlink() or _is_junction(path):
        raise _unsafe(path, "is a link")


def _is_junction(path: Path) -> bool:
    """Return whether it is a junction, Windows' link that `is_symlink` does not report."""
    try:
        tag = getattr(path.lstat(), "st_reparse_tag", None)
    except OSError:
        return False
    return tag is not None and tag == getattr(stat, "IO_REPARSE_TAG_MOUNT_POINT", None)


def private_folder(path: Path, *, may_be_link: bool = False) -> Path:
    """Make `path` and its missing parents 0700 and return it.

    Args:
        path: the folder.
        may_be_link: allow a link, because the person chose this path (the state folder).

    Raises:
        Refused: `state_path_unsafe` if others own it or may write to it.
        EnvironmentUnavailable: `disk_unavailable`.
    """
    if not may_be_link:
        refuse_link(path)
    check_own_place(path)
    try:
        missing = [p for p in [path, *path.parents] if not p.exists()]
        for folder in reversed(missing):
            folder.mkdir(mode=0o700, exist_ok=True)
        status = path.stat()
        if not stat.S_ISDIR(status.st_mode):
            raise _unsafe(path, "is no folder")
        if os.name == "posix":
            if status.st_uid != user_id():
                raise _unsafe(path, "belongs to someone else")
            if open_to_others(status, path):
                raise _unsafe(path, "is shared with others")
            if stat.S_IMODE(status.st_mode) != 0o700:  # noqa: PLR2004 - owner only
                path.chmod(0o700)
    except OSError as error:
        raise lack_of(error, path=path) from error
    return path


def fsync_folder(path: Path) -> None:
    """Make a rename in `path` durable, if the system can sync a folder."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY | FOLDER | CLOSE_ON_EXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_private(path: Path, data: bytes, *, durable: bool = True, mode: int = OWNER_ONLY) -> None:
    """Replace `path` atomically with `data`.

    Args:
        path: a file in a folder of the person's own.
        data: the whole new content.
        durable: wait for the disk; False for a file that means nothing after a crash.
        mode: of a file that is no state of ours, and had one.

    Raises:
        EnvironmentUnavailable: `disk_unavailable`; the old content is still there.
    """
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_FOLLOW
    try:
        with os.fdopen(os.open(temporary, flags, OWNER_ONLY), "wb") as file:
            file.write(data)
            file.flush()
            if mode != OWNER_ONLY:
                temporary.chmod(mode)
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
        if durable:
            fsync_folder(path.parent)
    except OSError as error:
        raise lack_of(error, path=path) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def open_ordinary(path: Path, flags: int = 0) -> BufferedReader:
    """Open an ordinary file for reading; a pipe without a writer is refused, not waited for.

    Raises:
        OSError: the file cannot be opened, or is no ordinary file.
    """
    flags |= os.O_RDONLY | NON_BLOCKING | BINARY | CLOSE_ON_EXEC
    descriptor = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "no ordinary file")
    return os.fdopen(descriptor, "rb")


def read_private(path: Path, limit: int, *, secret: bool = False) -> bytes | None:
    """Return the content of a file that only its owner can change; None if there is no file.

    Args:
        path: an ordinary file; a link is refused.
        limit: bytes; a longer file is refused.
        secret: refuse also a file that others can read.

    Raises:
        Refused: `state_path_unsafe`; the detail names the file.
        EnvironmentUnavailable: `disk_unavailable`, `limit_reached`; likewise.
    """
    try:
        opened = open_ordinary(path, NO_FOLLOW)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in _NO_FILE:
            raise _unsafe(path, "is a link or no ordinary file") from error
        raise lack_of(error, path=path) from error
    with opened as file:
        status = os.fstat(file.fileno())
        foreign = os.name == "posix" and (
            status.st_uid not in {0, user_id()} or open_to_others(status, file.fileno())
        )
        if foreign:
            raise _unsafe(path, "is not yours alone")
        if secret and os.name == "posix" and stat.S_IMODE(status.st_mode) & 0o077:
            raise _unsafe(path, "can be read by others")
        try:
            data = file.read(limit + 1)
        except OSError as error:
            raise lack_of(error, path=path) from error
    if len(data) > limit:
        raise _unsafe(path, "is far too long")
    return data


def try_lock(descriptor: int) -> bool:
    """Lock an open file; False if another has the lock, which ends with its last descriptor.

    Raises:
        OSError: the file system has no locks.
    """
    try:
        if sys.platform == "win32":
            import msvcrt  # noqa: PLC0415 - exists on Windows only

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl  # noqa: PLC0415 - does not exist on Windows

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # another has the lock, on POSIX and on Windows
        return False
    return True
