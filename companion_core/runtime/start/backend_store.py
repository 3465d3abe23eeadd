"""What a backend stores of the model: proved before each start, else removed and made anew (I-01).

The backend may write to the folder, so nothing in it is believed, and no name of the proved inode
is left in it: the owner of a file can set its mode through any name and then open it for writing.
Where the backend looks for the model it finds an empty file, over which the tier mounts the model
read-only, else a symbolic link to the companion's own store. Where neither can be had there is a
copy, which is hashed. Every other file must have its digest in the record, which is written after
a start that succeeded, where the backend cannot reach it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from companion_core.errors import CompanionError, EnvironmentUnavailable, Reason, Refused
from companion_core.models.store import ProvedFile, VerifiedModel
from companion_core.providers import BackendRequest, SpawnPlan
from companion_core.runtime.start.model_link import (
    beside,
    files_below,
    is_empty_file,
    is_same_inode,
    leads_to,
    make_link,
    put_empty_file,
)
from companion_core.system.os_compat import BINARY, NO_FOLLOW, NON_BLOCKING, read_at
from companion_core.system.removal import remove_tree, set_aside
from companion_core.system.state_files import private_folder, read_private, write_private

__all__ = ["BackendStore"]

_CHUNK_BYTES: Final = 1024 * 1024
# Of the files beside the model itself: beyond these limits, rebuild instead of verifying.
_MOST_FILES: Final = 256
_MOST_BYTES: Final = 64 * 1024 * 1024
_RECORD_BYTES: Final = 256 * 1024
_NEVER: Final = threading.Event()


class BackendStore:
    """The store of one plan. Blocking throughout: files are hashed.

    Each method takes an event; once it is set, the method ends early with `interrupted`.

    Args:
        plan: a checked plan.
        model: what is to run.
        data_dir: the runtime's own folder, which the core made; the store lies in it.
        record: the file with the store's digests, outside the plan's data folder.
        binary_sha256: of the program that makes the store; another program may store differently.
        mounted: the tier mounts the model over whatever lies at the plan's `model_link`.
    """

    def __init__(
        self,
        plan: SpawnPlan,
        model: VerifiedModel,
        *,
        data_dir: Path,
        record: Path,
        binary_sha256: str | None,
        mounted: bool = False,
    ) -> None:
        self._plan = plan
        self._model = model
        self._data_dir = data_dir
        self._mounted = mounted
        self._cancelled = _NEVER
        self._record = record
        self._link = None if plan.model_link is None else Path(plan.model_link)
        self._folder = None if plan.store is None else Path(plan.store)
        self._maker = _digest_of_text([binary_sha256, model.files[0].sha256, *_texts_of(plan)])

    def prove(self, cancelled: threading.Event = _NEVER) -> tuple[BackendRequest, ...]:
        """Put the model in its place, remove what is not proved, and return which requests to send.

        Raises:
            Refused: `digest_mismatch`, `state_path_unsafe`.
            EnvironmentUnavailable: `disk_unavailable`.
        """
        self._cancelled = cancelled
        try:
            unchanged = self._make_usable()
            placed = self._link is not None and self._place(self._link)
        except OSError as error:
            raise EnvironmentUnavailable(Reason.DISK_UNAVAILABLE) from error
        return tuple(
            request
            for request in self._plan.prepare
            if not (request.unless_stored and (placed if request.send_model else unchanged))
        )

    @property
    def has_links_alone(self) -> bool:
        """Whether the backend reads the hashed file in each copy's place. Reads no content."""
        return all(self._is_link(Path(copy)) for copy in self._plan.model_copies)

    def require_model(self, cancelled: threading.Event = _NEVER) -> None:
        """Require that the backend's copies are the model.

        Raises:
            Refused: `digest_mismatch`, also where a copy is missing.
        """
        self._cancelled = cancelled
        digests = {file.sha256 for file in self._model.files}
        for copy in map(Path, self._plan.model_copies):
            if not self._is_link(copy) and self._digest(copy) not in digests:
                raise Refused(Reason.DIGEST_MISMATCH)

    def write_down(self, cancelled: threading.Event = _NEVER) -> None:
        """Write down what the backend stored; the next start keeps a store that has not changed.

        Raises:
            CompanionError: `interrupted`; nothing is written down.
            EnvironmentUnavailable: `disk_unavailable`.
        """
        self._cancelled = cancelled
        if self._folder is not None:
            content = {"maker": self._maker, "files": self._survey()}
            self._require_wanted()
            write_private(self._record, json.dumps(content).encode(), durable=False)

    def _make_usable(self) -> bool:
        """Leave nothing that leads out, no name of the model, and no file that is not proved.

        A backend can fill its folder so that nobody can look through it or empty it. Such a folder
        is set aside where no backend reaches it, and a start goes on with a new one.

        Returns:
            Whether the store is what an earlier start left.
        """
        try:
            self._remove_links_out()
            self._remove_names()
            unchanged = self._is_unchanged()
            if not unchanged:
                self._clear()
        except OSError:
            set_aside(self._data_dir)
            for folder in (self._data_dir, self._folder):
                if folder is not None:
                    private_folder(folder)
            return False
        return unchanged

    def _remove_links_out(self) -> None:
        """Remove each link that stands in the place of one of the store's folders.

        Through such a link a backend could have the person's own files removed, or have the model
        put somewhere else.
        """
        for end in (self._folder, None if self._link is None else self._link.parent):
            at = self._data_dir
            for name in () if end is None else end.relative_to(at).parts:
                at /= name
                if _leads_elsewhere(at):
                    at.unlink()

    def _remove_names(self) -> None:
        """Remove every name of the proved files in the folders that the runtime writes to.

        An earlier version, or a runtime without a tier, may have made one anywhere below; the
        folder of a start is new each time. A share mode keeps writers out on Windows.
        """
        if sys.platform == "win32":
            return
        for file in self._model.files:
            if os.fstat(file.descriptor).st_nlink > 1:
                with file.proof.own_change():
                    for entry in files_below(self._data_dir):
                        path = Path(entry.path)
                        if is_same_inode(file, path):
                            path.unlink()

    def _place(self, link: Path) -> bool:
        """Put the model there, or what leads to it; return False where a request has to send it."""
        private_folder(link.parent)
        file = self._model.files[0]
        if self._is_link(link):
            return True
        if self._mounted:
            put_empty_file(link)
            return True
        with file.proof.own_change():
            linked = make_link(file, link)
        if linked:
            return True
        if self._digest(link) == file.sha256:
            return True
        link.unlink(missing_ok=True)
        if any(each.send_model and each.unless_stored for each in self._plan.prepare):
            return False
        self._copy(file, link)
        return True

    def _is_link(self, path: Path) -> bool:
        """Tell whether the backend that opens the path reads the hashed file."""
        if path != self._link:
            return False
        if self._mounted:
            return is_empty_file(path)
        return leads_to(self._model.files[0], path)

    def _is_unchanged(self) -> bool:
        """Tell whether the store is what a start with the same requests left when it succeeded."""
        raw = None if self._folder is None else read_private(self._record, _RECORD_BYTES)
        if raw is None:
            return False
        try:
            content = json.loads(raw)
        except ValueError:
            return False
        found = self._survey()
        return bool(found) and content == {"maker": self._maker, "files": found}

    def _clear(self) -> None:
        """Remove everything in the store except the model's file, which is proved on its own."""
        self._record.unlink(missing_ok=True)
        if self._folder is None:
            return
        above = () if self._link is None else self._link.parents
        with contextlib.suppress(FileNotFoundError):
            for entry in [*_entries(self._folder, frozenset(map(str, above)))]:
                if entry.is_dir(follow_symlinks=False):
                    if not remove_tree(Path(entry.path)):
                        raise OSError(errno.ENOTEMPTY, "it cannot be removed")
                elif self._link is None or entry.path != str(self._link):
                    os.unlink(entry.path)  # noqa: PTH108 - an entry has its path as text

    def _survey(self) -> dict[str, str] | None:
        """Return the digest of each file but the model's; None for a store that is not worth it."""
        folder, found, size = self._folder, dict[str, str](), 0
        if folder is None:
            return None
        try:
            for entry in files_below(folder) if folder.is_dir() else ():
                path = Path(entry.path)
                if path == self._link:
                    continue
                size += entry.stat(follow_symlinks=False).st_size
                if len(found) >= _MOST_FILES or size > _MOST_BYTES:
                    return None
                digest = self._digest(path)
                if digest is None:  # a link or a pipe, which no backend needs here
                    return None
                found[str(path.relative_to(folder))] = digest
        except OSError:  # nobody can look through it
            return None
        return found

    def _digest(self, path: Path) -> str | None:
        """Return the digest of an ordinary file, None for anything else."""
        flags = os.O_RDONLY | NO_FOLLOW | NON_BLOCKING | BINARY
        digest = hashlib.sha256()
        try:
            with open(os.open(path, flags), "rb") as file:  # noqa: PTH123 - a Path would follow a link
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    return None
                while chunk := file.read(_CHUNK_BYTES):
                    self._require_wanted()
                    digest.update(chunk)
        except OSError:  # there is no such file, or the disk fails
            return None
        return digest.hexdigest()

    def _copy(self, file: ProvedFile, link: Path) -> None:
        temporary = beside(link)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_FOLLOW | BINARY
        digest, at = hashlib.sha256(), 0
        try:
            with open(os.open(temporary, flags, 0o600), "wb") as copy:  # noqa: PTH123 - a Path would follow a link
                while chunk := read_at(file.descriptor, _CHUNK_BYTES, at):
                    self._require_wanted()
                    digest.update(chunk)
                    copy.write(chunk)
                    at += len(chunk)
            if digest.hexdigest() != file.sha256:
                raise Refused(Reason.DIGEST_MISMATCH)
            temporary.replace(link)
        finally:
            temporary.unlink(missing_ok=True)

    def _require_wanted(self) -> None:
        if self._cancelled.is_set():
            raise CompanionError(Reason.INTERRUPTED)


def _leads_elsewhere(path: Path) -> bool:
    """Tell whether a path is a link or, on Windows, a junction."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISLNK(status.st_mode) or getattr(status, "st_reparse_tag", 0) != 0


def _texts_of(plan: SpawnPlan) -> list[str | None]:
    made = [each for each in plan.prepare if each.unless_stored]
    return [text for each in made for text in (each.method, each.path, each.json)]


def _digest_of_text(parts: list[str | None]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _entries(folder: Path, opened: frozenset[str]) -> Iterator[os.DirEntry[str]]:
    """Yield the entries of `folder`, and those of a folder in `opened` in its place."""
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False) and entry.path in opened:
            yield from _entries(Path(entry.path), opened)
        else:
            yield entry
