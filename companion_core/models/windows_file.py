"""Open a file so that nobody writes to it, renames or deletes it: not run on Windows yet.

Windows refuses every opening that does not fit how those before it share the file; who shares
reading alone holds the file for as long as the descriptor is open (CreateFileW, `dwShareMode`).
"""

from __future__ import annotations

import ctypes
import os
import sys
from ctypes import wintypes
from pathlib import Path
from typing import Any, Final

from companion_core.system.os_compat import BINARY

__all__ = ["open_for_reading_alone"]

_GENERIC_READ: Final = 0x80000000
_SHARE_READ: Final = 0x1
_OPEN_EXISTING: Final = 3
_OPEN_LINK_ITSELF: Final = 0x00200000  # a link is opened, and then refused as no plain file
_INVALID: Final = ctypes.c_void_p(-1).value


def open_for_reading_alone(path: Path, library: Any = None, adopt: Any = None) -> int:
    """Return a descriptor of the file, which nobody can change before it is closed.

    Args:
        path: of an ordinary file.
        library: `kernel32`; the system's own by default.
        adopt: makes a descriptor of a handle; `msvcrt.open_osfhandle` by default.

    Raises:
        OSError: there is none, or somebody has it open for writing.
    """
    if sys.platform == "win32" and library is None:
        import msvcrt  # noqa: PLC0415 - exists there only

        library = ctypes.WinDLL("kernel32", use_last_error=True)
        adopt = msvcrt.open_osfhandle
    library.CreateFileW.restype = wintypes.HANDLE
    library.CreateFileW.argtypes = (
        wintypes.LPCWSTR,
        wintypes.DWORD,
        wintypes.DWORD,
        ctypes.c_void_p,
        wintypes.DWORD,
        wintypes.DWORD,
        wintypes.HANDLE,
    )
    handle = library.CreateFileW(
        str(path), _GENERIC_READ, _SHARE_READ, None, _OPEN_EXISTING, _OPEN_LINK_ITSELF, None
    )
    if handle is None or handle == _INVALID:
        raise OSError
    descriptor: int = adopt(handle, os.O_RDONLY | BINARY)
    return descriptor
