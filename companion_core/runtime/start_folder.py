"""What one start needs on disk and as an address: its private folder, its channel, its model."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import socket
import sys
from pathlib import Path
from typing import Final

from companion_core.decisions.spawn_plan import MAX_UNIX_PATH
from companion_core.errors import EnvironmentUnavailable, Reason, Refused
from companion_core.providers import ModelFile, TcpChannel, UnixChannel
from companion_core.runtime.staging import ProvedFile, VerifiedModel
from companion_core.state_files import private_folder

__all__ = [
    "check_copy",
    "choose_channel",
    "model_files",
    "new_start_folder",
    "place_model",
    "remove_start_folder",
]

_SOCKET_NAME: Final = "backend.sock"  # llama-server takes a host for a socket when it ends so
_CHUNK_BYTES: Final = 1024 * 1024


def new_start_folder(run_dir: Path) -> Path:
    """Make the 0700 folder of one start, under a name that nobody could know before.

    Raises:
        Refused: `state_path_unsafe`.
        EnvironmentUnavailable: `disk_unavailable`.
    """
    folder = private_folder(run_dir) / secrets.token_hex(4)
    try:
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise EnvironmentUnavailable(Reason.DISK_UNAVAILABLE) from error
    return folder


def remove_start_folder(folder: Path) -> None:
    """Remove the folder and whatever the runtime left in it."""
    shutil.rmtree(folder, ignore_errors=True)


def choose_channel(offered: frozenset[str], folder: Path) -> UnixChannel | TcpChannel:
    """Choose where the backend listens: a socket in `folder`, else a free loopback port (I-07).

    Raises:
        EnvironmentUnavailable: `spawn_failed` where neither can be had.
    """
    path = str(folder / _SOCKET_NAME)
    if "unix" in offered and len(os.fsencode(path)) <= MAX_UNIX_PATH.get(sys.platform, 0):
        return UnixChannel(path=path)
    if "tcp" not in offered:
        raise EnvironmentUnavailable(Reason.SPAWN_FAILED)
    # Another program may take the port before the runtime does. Then the tree does not hold
    # it, which is read back before a byte, and the key with it, is sent there.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as free:
        free.bind(("127.0.0.1", 0))
        return TcpChannel(host="127.0.0.1", port=free.getsockname()[1])


def model_files(model: VerifiedModel, folder: Path) -> tuple[ModelFile, ...]:
    """Return the model's files as the runtime opens them: by the descriptors that were hashed.

    Several files keep their names, which runtimes derive from one another: links in `folder`
    that lead to the descriptors.
    """
    descriptors = "/proc/self/fd" if sys.platform == "linux" else "/dev/fd"
    files = []
    for file in model.files:
        path = f"{descriptors}/{file.descriptor}"
        if len(model.files) > 1:
            link = folder / "model" / file.name
            link.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            link.symlink_to(path)
            path = str(link)
        files.append(ModelFile(name=file.name, path=path, sha256=file.sha256, size=file.size))
    return tuple(files)


def place_model(file: ProvedFile, link: Path) -> None:
    """Put the hashed file at `link`: the same inode, else a copy that is hashed on the way.

    Blocking.

    Raises:
        Refused: `digest_mismatch`, `state_path_unsafe`.
        EnvironmentUnavailable: `disk_unavailable`.
    """
    private_folder(link.parent)
    if _is_same_inode(file, link):
        return
    source = f"/proc/self/fd/{file.descriptor}" if sys.platform == "linux" else file.path
    try:
        link.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # another file system, or one without links
            # With a folder's descriptor, here unused, Python takes linkat(2), which follows.
            os.link(source, link, src_dir_fd=file.descriptor, follow_symlinks=True)
        if not _is_same_inode(file, link):
            link.unlink(missing_ok=True)
            _copy(file, link)
    except OSError as error:
        raise EnvironmentUnavailable(Reason.DISK_UNAVAILABLE) from error


def check_copy(path: Path, model: VerifiedModel) -> None:
    """Require that a file the backend keeps is one of the verified ones, by inode or digest.

    Blocking.

    Raises:
        Refused: `digest_mismatch`, also when there is no such file.
    """
    if any(_is_same_inode(file, path) for file in model.files):
        return
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise Refused(Reason.DIGEST_MISMATCH) from error
    try:
        with open(descriptor, "rb", closefd=False) as copy:
            digest = hashlib.file_digest(copy, "sha256").hexdigest()
    except OSError as error:  # a folder, or a disk that fails
        raise Refused(Reason.DIGEST_MISMATCH) from error
    finally:
        os.close(descriptor)
    if digest not in {file.sha256 for file in model.files}:
        raise Refused(Reason.DIGEST_MISMATCH)


def _is_same_inode(file: ProvedFile, path: Path) -> bool:
    try:
        there, hashed = path.lstat(), os.fstat(file.descriptor)
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (hashed.st_dev, hashed.st_ino)


def _copy(file: ProvedFile, link: Path) -> None:
    temporary = link.with_name(f".{link.name}.{secrets.token_hex(4)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    digest, at = hashlib.sha256(), 0
    try:
        with open(os.open(temporary, flags, 0o600), "wb") as copy:  # noqa: PTH123 - made exclusively
            while chunk := os.pread(file.descriptor, _CHUNK_BYTES, at):
                digest.update(chunk)
                copy.write(chunk)
                at += len(chunk)
        if digest.hexdigest() != file.sha256:
            raise Refused(Reason.DIGEST_MISMATCH)
        temporary.replace(link)
    finally:
        temporary.unlink(missing_ok=True)
