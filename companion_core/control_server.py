"""The owner-only socket that status, exec, token, metrics and down talk to.

The socket lies in a 0700 folder with mode 0600 and the peer's uid is checked, so what it
answers (the session token among it) stays with the person. Nothing on the gateway manages
anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

from companion_core.control import MAX_LINE
from companion_core.egress import ProcessIdentity
from companion_core.errors import CompanionError, EnvironmentUnavailable, Reason
from companion_core.paths import InstancePaths
from companion_core.state_files import write_private

__all__ = ["ControlServer"]

READ_DEADLINE_SECONDS: Final = 5.0

Handler = Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]]


class ControlServer:
    """Answers the person's own commands while a companion runs."""

    def __init__(self, paths: InstancePaths, handlers: Mapping[str, Handler]) -> None:
        self._paths = paths
        self._handlers = handlers
        self._server: asyncio.Server | None = None
        self._socket_path: Path | None = None

    async def start(self, identity: ProcessIdentity) -> None:
        """Listen, and write the state file that leads commands here."""
        if sys.platform == "win32":
            raise EnvironmentUnavailable(
                Reason.CONTROL_UNAVAILABLE, "the control pipe of Windows is not written yet"
            )
        path = self._paths.run_folder() / "control.sock"
        path.unlink(missing_ok=True)  # the lock is held: a socket there is a dead one
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(str(path))
            path.chmod(0o600)
            self._server = await asyncio.start_unix_server(
                self._serve, sock=listener, limit=MAX_LINE
            )
        except OSError as error:
            listener.close()
            raise EnvironmentUnavailable(Reason.CONTROL_UNAVAILABLE) from error
        self._socket_path = path
        state = {
            "pid": identity.pid,
            "start_time": identity.start_time,
            "control_socket": str(path),
        }
        write_private(self._paths.state_file, json.dumps(state).encode())

    async def close(self) -> None:
        """Stop listening and remove the socket and the state file."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for path in (self._paths.state_file, self._socket_path):
            if path is not None:
                path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if _peer_uid(writer.get_extra_info("socket")) == os.geteuid():
                async with asyncio.timeout(READ_DEADLINE_SECONDS):
                    line = await reader.readline()
                answer = await self._answer(line)
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        except (OSError, ValueError, TimeoutError):
            pass  # the peer left, or sent no line: there is nobody to answer
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, line: bytes) -> Mapping[str, Any]:
        try:
            request = json.loads(line)
        except ValueError:
            request = None
        handler = self._handlers.get(str(request.get("op"))) if isinstance(request, dict) else None
        if handler is None:
            return {"ok": False, "reason": Reason.USAGE.value}
        try:
            return {"ok": True, **await handler(request)}
        except CompanionError as error:
            return {"ok": False, "reason": error.reason.value}


def _peer_uid(connection: Any) -> int:
    """Return the uid at the other end; -1 when the system does not tell."""
    if sys.platform == "linux":
        size = struct.calcsize("3i")
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        return int(struct.unpack("3i", raw)[1])
    # LOCAL_PEERCRED of macOS and the BSDs: struct xucred {version, uid, ngroups, groups[16]}.
    raw = connection.getsockopt(0, 0x001, struct.calcsize("IIh16I"))
    return int(struct.unpack_from("II", raw)[1]) if len(raw) >= struct.calcsize("II") else -1
