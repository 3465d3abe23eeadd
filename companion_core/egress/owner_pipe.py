r"""Named pipes of Windows that one person alone can open; written from documentation, not run.

Rules: the pipe's access list names the person alone and inherits nothing; the name is random at
each start, and the first end must be the first of that name, so no program can have waited under
it; connections from other machines are refused. One message goes each way, through the standard
library's `multiprocessing.connection.PipeConnection`.
"""

from __future__ import annotations

import ctypes
import importlib
import secrets
from typing import Any, Final

__all__ = ["OwnerPipes", "PipeEnd", "new_pipe_name"]

_DUPLEX_OVERLAPPED: Final = 0x3 | 0x40000000
_FIRST_OF_ITS_NAME: Final = 0x00080000
_MESSAGES_FROM_THIS_MACHINE: Final = 0x4 | 0x2 | 0x8
_MOST_ENDS: Final = 16
_BUFFER_BYTES: Final = 64 * 1024
_READ_WRITE: Final = 0x80000000 | 0x40000000
_OPEN_EXISTING: Final = 3
# The server may learn which user the client is, but not act as that user.
_OVERLAPPED_IDENTIFY_ONLY: Final = 0x40000000 | 0x00100000 | 0x00010000
_TOKEN_QUERY, _TOKEN_USER, _SDDL_REVISION = 0x8, 1, 1
_ERROR_NO_DATA, _ERROR_PIPE_BUSY = 232, 231


def new_pipe_name() -> str:
    """Return a name that no program can guess."""
    return rf"\\.\pipe\companion-{secrets.token_hex(16)}"


class _SecurityAttributes(ctypes.Structure):
    _fields_ = (
        ("length", ctypes.c_uint32),
        ("descriptor", ctypes.c_void_p),
        ("inherit", ctypes.c_int),
    )


class OwnerPipes:
    """Makes both ends of such pipes.

    Args:
        winapi: the interpreter's own module `_winapi`.
        connections: the module `multiprocessing.connection`.
        kernel32, advapi32: the system's libraries, as `ctypes.WinDLL` loads them.

    Every method raises `OSError` when the system refuses.
    """

    def __init__(self, winapi: Any, connections: Any, kernel32: Any, advapi32: Any) -> None:
        self._winapi = winapi
        self._connections = connections
        self._kernel32 = kernel32
        self._advapi32 = advapi32

    @classmethod
    def of_this_system(cls) -> OwnerPipes:
        """Return the pipes of this system, which must be Windows."""
        load: Any = vars(ctypes)["WinDLL"]
        return cls(
            importlib.import_module("_winapi"),
            importlib.import_module("multiprocessing.connection"),
            load("kernel32", use_last_error=True),
            load("advapi32", use_last_error=True),
        )

    def listen(self, name: str, *, first: bool) -> int:
        """Return the handle of a new end of `name` that a client can connect to.

        Args:
            name: from `new_pipe_name`.
            first: refuse if there is a pipe of this name already.
        """
        descriptor = self._owner_only()
        try:
            attributes = _SecurityAttributes(ctypes.sizeof(_SecurityAttributes), descriptor, 0)
            handle: int = self._winapi.CreateNamedPipe(
                name,
                _DUPLEX_OVERLAPPED | (_FIRST_OF_ITS_NAME if first else 0),
                _MESSAGES_FROM_THIS_MACHINE,
                _MOST_ENDS,
                _BUFFER_BYTES,
                _BUFFER_BYTES,
                0,
                ctypes.addressof(attributes),
            )
        finally:
            self._kernel32.LocalFree(ctypes.c_void_p(descriptor))
        return handle

    def wait_for_client(self, handle: int, seconds: float) -> PipeEnd | None:
        """Return the connection of a client; None if no client came in time.

        After None the handle still belongs to the caller, after success to the connection.
        """
        try:
            coming = self._winapi.ConnectNamedPipe(handle, overlapped=True)
        except OSError as error:
            if getattr(error, "winerror", None) != _ERROR_NO_DATA:
                raise
            return self._end(handle)  # the client came and left: a read reports that
        try:
            waited = self._winapi.WaitForMultipleObjects([coming.event], 0, round(seconds * 1000))
            if waited == self._winapi.WAIT_TIMEOUT:
                coming.cancel()
        finally:
            _, outcome = coming.GetOverlappedResult(1)
        return None if outcome else self._end(handle)

    def close(self, handle: int) -> None:
        """Close an end that no client connected to."""
        self._winapi.CloseHandle(handle)

    def connect(self, name: str, seconds: float) -> PipeEnd:
        """Return a connection to the pipe of that name."""
        try:
            handle = self._open(name)
        except OSError as error:
            if getattr(error, "winerror", None) != _ERROR_PIPE_BUSY:
                raise
            self._winapi.WaitNamedPipe(name, round(seconds * 1000))
            handle = self._open(name)
        self._winapi.SetNamedPipeHandleState(handle, 0x2, None, None)  # whole messages
        return self._end(handle, seconds)

    def _open(self, name: str) -> int:
        handle: int = self._winapi.CreateFile(
            name, _READ_WRITE, 0, 0, _OPEN_EXISTING, _OVERLAPPED_IDENTIFY_ONLY, 0
        )
        return handle

    def _end(self, handle: int, seconds: float = 0.0) -> PipeEnd:
        return PipeEnd(self._connections.PipeConnection(handle), self._server_of(handle), seconds)

    def _server_of(self, handle: int) -> int:
        pid = ctypes.c_uint32(0)
        self._kernel32.GetNamedPipeServerProcessId(ctypes.c_void_p(handle), ctypes.byref(pid))
        return pid.value

    def _owner_only(self) -> int:
        """Return a security descriptor that admits the person alone; the caller frees it."""
        descriptor = ctypes.c_void_p()
        rights = f"D:P(A;;GA;;;{self._own_sid()})"
        made = self._advapi32.ConvertStringSecurityDescriptorToSecurityDescriptorW(
            ctypes.c_wchar_p(rights), _SDDL_REVISION, ctypes.byref(descriptor), None
        )
        if not made or descriptor.value is None:
            raise OSError("the pipe's access list cannot be made")
        return descriptor.value

    def _own_sid(self) -> str:
        """Return the person's security identifier as text, such as S-1-5-21-…-1001."""
        token, text = ctypes.c_void_p(), ctypes.c_wchar_p()
        self._kernel32.GetCurrentProcess.restype = ctypes.c_void_p
        process = ctypes.c_void_p(self._kernel32.GetCurrentProcess())
        if not self._advapi32.OpenProcessToken(process, _TOKEN_QUERY, ctypes.byref(token)):
            raise OSError("the person's token cannot be read")
        try:
            user, used = ctypes.create_string_buffer(256), ctypes.c_uint32(0)
            read = self._advapi32.GetTokenInformation(
                token, _TOKEN_USER, user, ctypes.sizeof(user), ctypes.byref(used)
            )
            # TOKEN_USER begins with the pointer to the identifier.
            sid = ctypes.c_void_p.from_buffer(user)
            if not read or not self._advapi32.ConvertSidToStringSidW(sid, ctypes.byref(text)):
                raise OSError("the person's identifier cannot be read")
            return text.value or ""
        finally:
            if text.value is not None:
                self._kernel32.LocalFree(text)
            self._kernel32.CloseHandle(token)


class PipeEnd:
    """A connected end; satisfies `companion_core.egress.control_link.ControlLink`."""

    def __init__(self, connection: Any, server_pid: int, seconds: float) -> None:
        self._connection = connection
        self._server_pid = server_pid
        self._seconds = seconds

    def peer(self) -> tuple[int, int]:
        """Return the server's pid, and 0 for the user: the access list admits the person alone."""
        return self._server_pid, 0

    def ask(self, line: bytes, limit: int) -> bytes:
        """See `ControlLink`."""
        self.send(line)
        return self.receive(limit, self._seconds)

    def send(self, line: bytes) -> None:
        """Send one message."""
        self._connection.send_bytes(line)

    def receive(self, limit: int, seconds: float) -> bytes:
        """Return one message; raise `OSError` if none comes in time or it is too long."""
        if not self._connection.poll(seconds):
            raise TimeoutError
        try:
            message: bytes = self._connection.recv_bytes(limit)
        except EOFError as error:
            raise ConnectionResetError from error
        return message

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
