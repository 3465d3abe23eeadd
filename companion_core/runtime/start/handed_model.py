"""What one start hands a runtime of the model: files that it can read and cannot change.

Each start opens the proved files anew. The open file description under which a file was hashed
stays the companion's alone, so a runtime can neither give up the lease on it nor choose the signal
that tells of a writer. In the bubblewrap tier not even the new descriptor reaches the runtime: the
file is mounted read-only.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from companion_core.decisions.isolation import Tier
from companion_core.errors import CompanionError, Reason, Refused, error_for
from companion_core.models.proof import reopen
from companion_core.models.store import VerifiedModel
from companion_core.providers import ModelFile

__all__ = ["HandedModel", "hand_on"]

# A folder in the runtime's own file system, where nothing else has this name.
_MOUNTED: Final = "/verified-model"


@dataclass(slots=True)
class HandedModel:
    """The files of one start, until `close`.

    Attributes:
        files: as the runtime opens them.
        reached_by: the path under which each file is reached, and the descriptor that leads to
            it; none on Windows.
    """

    files: tuple[ModelFile, ...] = ()
    reached_by: tuple[tuple[str, int], ...] = ()
    _open: list[int] = field(default_factory=list, repr=False)

    def reached_at(self, link: str | None, tier: Tier) -> tuple[tuple[str, int], ...]:
        """Return `reached_by` for a plan whose backend looks for the first file at `link`.

        Bubblewrap mounts the file there, and Landlock lets it be read through the link. Without
        either the link is enough, and no descriptor is handed on.
        """
        if link is None or tier is Tier.LANDLOCK:
            return self.reached_by
        if tier is not Tier.BUBBLEWRAP:
            return ()
        (_, descriptor), *others = self.reached_by
        return ((link, descriptor), *others)

    def close(self) -> None:
        """Close the descriptors; a second call does nothing."""
        while self._open:
            os.close(self._open.pop())


def hand_on(model: VerifiedModel, folder: Path, tier: Tier) -> HandedModel:
    """Open the model's files for one start, and say where the runtime finds them.

    On Windows, which has no paths of descriptors, the files are opened by their own paths: an open
    file cannot be replaced there. Where the model has several files each keeps its name, since
    runtimes derive the names from one another: as a mount, else as a link in `folder` to the
    descriptor.

    Raises:
        Refused: `digest_mismatch`, `state_path_unsafe`; nothing is open.
        CompanionError: `model_removed`, there is nothing to mount any more; the model is closed.
    """
    if not model.is_open:
        raise Refused(Reason.DIGEST_MISMATCH)
    handed = HandedModel()
    files = []
    try:
        for file in model.files:
            path = file.path
            if sys.platform != "win32":
                descriptor = reopen(file.descriptor, file.path)
                handed._open.append(descriptor)  # noqa: SLF001 - this function makes the object
                path = _path_of(descriptor, file.name, tier)
                handed.reached_by += ((path, descriptor),)
            if len(model.files) > 1 and tier is not Tier.BUBBLEWRAP:
                path = _link(folder / "model" / file.name, path)
            files.append(
                ModelFile(
                    name=file.name,
                    path=path,
                    sha256=file.sha256,
                    size=file.size,
                    role=file.role.value,
                )
            )
    except BaseException as error:
        handed.close()
        if isinstance(error, CompanionError) and error.reason is Reason.MODEL_REMOVED:
            model.close()
        raise
    handed.files = tuple(files)
    return handed


def _path_of(descriptor: int, name: str, tier: Tier) -> str:
    if tier is Tier.BUBBLEWRAP:
        _require_a_name(descriptor)
        return f"{_MOUNTED}/{name}"
    return f"{'/proc/self/fd' if sys.platform == 'linux' else '/dev/fd'}/{descriptor}"


def _require_a_name(descriptor: int) -> None:
    """Require that the file still has its name, which a mount needs; bubblewrap checks it again."""
    try:
        named = os.stat(os.readlink(f"/proc/self/fd/{descriptor}"))  # noqa: PTH115, PTH116 - a Path would change the text of the link
    except OSError as error:
        raise error_for(Reason.MODEL_REMOVED) from error
    if not os.path.samestat(named, os.fstat(descriptor)):
        raise error_for(Reason.MODEL_REMOVED)


def _link(link: Path, path: str) -> str:
    link.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if sys.platform == "win32":
        link.hardlink_to(path)
    else:
        link.symlink_to(path)
    return str(link)
