"""The owner-only socket that status, exec, token, metrics and down talk to.

The socket lies in a 0700 folder with mode 0600 and the peer's uid is checked, so what it
answers (the session token among it) stays with the person. Nothing on the gateway manages
anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

from companion_core.control import MAX_LINE, peer_of
from companion_core.egress import ProcessIdentity
from companion_core.errors import CompanionError, EnvironmentUnavailable, Reason
from companion_core.paths import InstancePaths
from companion_core.portable import user_id
from companion_core.state_files import write_private

__all__ = ["ControlServer"]

READ_DEADLINE_SECONDS: Final = 5.0
WRITE_DEADLINE_SECONDS: Final = 5.0
CLOSE_SECONDS: Final = 1.0
PAUSE_SECONDS: Final = 0.1

Handler = Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]]


class ControlServer:
    """Answers the person's own commands while a companion runs."""

    def __init__(self, paths: InstancePaths, handlers: Mapping[str, Handler]) -> None:
        self._paths = paths
        self._handlers = handlers
        self._listener: socket.socket | None = None
        self._socket_path: Path | None = None
        self._answering: set[asyncio.Task[None]] = set()

    async def start(self, identity: ProcessIdentity) -> None:
        """Listen, and write the state file that leads commands here."""
        if sys.platform == "win32":
            raise EnvironmentUnavailable(
                Reason.CONTROL_UNAVAILABLE, "the control pipe of Windows is not written yet"
            )
        path = self._paths.run_folder() / "control.sock"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            path.unlink(missing_ok=True)  # the lock is held: a socket there is a dead one
            listener.bind(str(path))
            path.chmod(0o600)
            listener.listen()
            listener.settimeout(0)
        except OSError as error:
            listener.close()
            raise EnvironmentUnavailable(Reason.CONTROL_UNAVAILABLE) from error
        self._listener, self._socket_path = listener, path
        self._listen()
        state = {
            "pid": identity.pid,
            "start_time": identity.start_time,
            "control_socket": str(path),
        }
        write_private(self._paths.state_file, json.dumps(state).encode())

    async def close(self) -> None:
        """Stop listening, let answers get out, and remove the socket and the state file."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        if self._answering:
            _, late = await asyncio.wait(self._answering, timeout=CLOSE_SECONDS)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
        for path in (self._paths.state_file, self._socket_path):
            if path is not None:
                path.unlink(missing_ok=True)

    def _listen(self) -> None:
        if (listener := self._listener) is not None:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            # The peer left again, or no descriptor is free, which asking at once would not change.
            loop = asyncio.get_running_loop()
            loop.remove_reader(listener)
            loop.call_later(PAUSE_SECONDS, self._listen)
            return
        task = asyncio.ensure_future(self._serve(connection))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _serve(self, connection: socket.socket) -> None:
        # A peer that leaves or is silent, and one that is not the person, gets no answer.
        with connection, contextlib.suppress(OSError, TimeoutError):
            if peer_of(connection)[1] != user_id():
                return
            connection.settimeout(0)
            async with asyncio.timeout(READ_DEADLINE_SECONDS):
                line = await _read_line(connection)
            answer = json.dumps(await self._answer(line)).encode() + b"\n"
            async with asyncio.timeout(WRITE_DEADLINE_SECONDS):
                await asyncio.get_running_loop().sock_sendall(connection, answer)

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


async def _read_line(connection: socket.socket) -> bytes:
    """Return what came up to the first line's end, or the limit, or the peer's end."""
    line = b""
    while b"\n" not in line and len(line) < MAX_LINE:
        part = await asyncio.get_running_loop().sock_recv(connection, MAX_LINE)
        if not part:
            break
        line += part
    return line
