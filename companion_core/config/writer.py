"""Write the configuration file of a person, without taking anything of theirs away."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from companion_core.config.reader import read_document
from companion_core.errors import Reason, UsageError
from companion_core.system.os_compat import user_id
from companion_core.system.state_files import OWNER_ONLY, private_folder, write_private

__all__ = ["write_config"]


def write_config(path: Path, text: str, *, before: str | None) -> None:
    """Write the file if it still is as it was read; a link to it stays, and so does its mode.

    Args:
        path: of the file.
        text: its new content.
        before: the content that was read; None if there was no file.

    Raises:
        UsageError: `configuration_invalid`: it was changed in the meantime, or is not yours.
        CompanionError: as `write_private`.
    """
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise _refused(f"{path}: a path is no text, and cannot be written into it") from error
    real, mode = Path(os.path.realpath(path)), OWNER_ONLY
    if before is None:
        if os.path.lexists(path):
            raise _refused(f"{path}: it was made in the meantime; nothing was changed")
        if not real.parent.exists():
            private_folder(real.parent)
    else:
        if read_document(path)[1] != before:
            raise _refused(f"{path}: it was changed in the meantime; nothing was changed")
        status = real.stat()
        if os.name == "posix" and status.st_uid != user_id():
            raise _refused(f"{path}: it belongs to someone else")
        mode = stat.S_IMODE(status.st_mode)
    write_private(real, data, mode=mode)


def _refused(detail: str) -> UsageError:
    return UsageError(Reason.CONFIGURATION_INVALID, detail)
