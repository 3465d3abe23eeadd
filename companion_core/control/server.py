"""The owner-only socket that status, exec, token, metrics, down and up --model talk to.

The socket has mode 0600 in a 0700 folder and the peer's uid is checked, so its answers, the session
token among them, stay with the person. On Windows it is a named pipe that only the person can open.
The gateway manages nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any, Final

from companion_core.config.paths import InstancePaths
from companion_core.control.client import MAX_LINE
from companion_core.egress.owner_pipe import OwnerPipes, PipeEnd, new_pipe_name
from companion_core.egress.process_identity import ProcessIdentity
from companion_core.egress.unix_socket import peer_of
from companion_core.errors import CompanionError, Reason
from companion_core.system.lacks import lack_of
from companion_core.system.os_compat import user_id
from companion_core.system.owner_socket import listen_owner_only
from companion_core.system.state_files import write_private

__all__ = ["ControlServer", "Handler", "PipeDoor"]

READ_DEADLINE_SECONDS: Final = 5.0
WRITE_DEADLINE_SECONDS: Final = 5.0
CLOSE_SECONDS: Final = 1.0
PAUSE_SECONDS: Final = 0.1

Handler = Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]]
Answer = Callable[[bytes], Coroutine[Any, Any, bytes]]


class ControlServer:
    """Answers the person's own commands while a companion runs."""

    def __init__(self, paths: InstancePaths, handlers: Mapping[str, Handler]) -> None:
        self._paths = paths
        self._handlers = handlers
        self._door: SocketDoor | PipeDoor | None = None

    async def start(self, identity: ProcessIdentity) -> None:
        """Listen, and write the state file that leads commands here.

        Raises:
            EnvironmentUnavailable: `control_unavailable`, `disk_unavailable`.
        """
        try:
            if sys.platform == "win32":
                self._door = PipeDoor(OwnerPipes.of_this_system(), self._answer)
            else:
                self._door = SocketDoor(self._paths.run_folder() / "control.sock", self._answer)
        except OSError as error:
            raise lack_of(error, Reason.CONTROL_UNAVAILABLE) from error
        state = {
            "pid": identity.pid,
            "start_time": identity.start_time,
            "control_socket": self._door.address,
        }
        write_private(self._paths.state_file, json.dumps(state).encode())

    async def close(self) -> None:
        """Stop listening, let running answers end, and remove the socket and the state file."""
        try:
            if self._door is not None:
                await self._door.close()
        finally:
            self._paths.state_file.unlink(missing_ok=True)

    async def _answer(self, line: bytes) -> bytes:
        return json.dumps(await self._reply(line)).encode() + b"\n"

    async def _reply(self, line: bytes) -> Mapping[str, Any]:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            request = None
        handler = self._handlers.get(str(request.get("op"))) if isinstance(request, dict) else None
        if handler is None:
            return {"ok": False, "reason": Reason.USAGE.value}
        try:
            return {"ok": True, **await handler(request)}
        except CompanionError as error:
            return {"ok": False, "reason": error.reason.value}


class SocketDoor:
    """Listens on a Unix socket, on the event loop.

    Raises:
        OSError: the socket cannot be made.
    """

    def __init__(self, path: Path, answer: Answer) -> None:
        self._answer = answer
        self._path = path
        self._answering: set[asyncio.Task[None]] = set()
        # We have the lock, so nobody listens on a socket there.
        self._listener: socket.socket | None = listen_owner_only(path)
        self._listen()

    @property
    def address(self) -> str:
        """The socket's path."""
        return str(self._path)

    async def close(self) -> None:
        """Stop listening, let running answers end, and remove the socket."""
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
        self._path.unlink(missing_ok=True)

    def _listen(self) -> None:
        if (listener := self._listener) is not None:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            # The peer has left, or no descriptor is free: trying again at once would not help.
            loop = asyncio.get_running_loop()
            loop.remove_reader(listener)
            loop.call_later(PAUSE_SECONDS, self._listen)
            return
        task = asyncio.ensure_future(self._serve(connection))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _serve(self, connection: socket.socket) -> None:
        # No answer for a peer that leaves, is silent, or is not the person.
        with connection, contextlib.suppress(OSError, TimeoutError):
            if peer_of(connection)[1] != user_id():
                return
            connection.settimeout(0)
            async with asyncio.timeout(READ_DEADLINE_SECONDS):
                line = await _read_line(connection)
            answer = await self._answer(line)
            async with asyncio.timeout(WRITE_DEADLINE_SECONDS):
                await asyncio.get_running_loop().sock_sendall(connection, answer)


async def _read_line(connection: socket.socket) -> bytes:
    """Return what was received until a line ended, the limit was reached, or the peer left."""
    line = b""
    while b"\n" not in line and len(line) < MAX_LINE:
        part = await asyncio.get_running_loop().sock_recv(connection, MAX_LINE)
        if not part:
            break
        line += part
    return line


class PipeDoor:
    """Listens on a named pipe, in threads: its calls block. Not run on Windows.

    Raises:
        OSError: the pipe cannot be made.
    """

    def __init__(self, pipes: OwnerPipes, answer: Answer) -> None:
        self.address = new_pipe_name()
        self._pipes = pipes
        self._answer = answer
        self._loop = asyncio.get_running_loop()
        self._closing = threading.Event()
        first = pipes.listen(self.address, first=True)
        self._thread = threading.Thread(
            target=self._accept, args=(first,), name="companion-control", daemon=True
        )
        self._thread.start()

    async def close(self) -> None:
        """Stop listening; running answers end if the process lasts long enough."""
        self._closing.set()
        await asyncio.to_thread(self._thread.join, CLOSE_SECONDS)

    def _accept(self, first: int) -> None:
        handle: int | None = first
        while not self._closing.is_set():
            try:
                if handle is None:
                    handle = self._pipes.listen(self.address, first=False)
                end = self._pipes.wait_for_client(handle, PAUSE_SECONDS)
            except OSError:  # every end is in use, or this one is broken
                self._drop(handle)
                end = handle = None
                self._closing.wait(PAUSE_SECONDS)
            if end is not None:
                handle = None
                threading.Thread(target=self._serve, args=(end,), daemon=True).start()
        self._drop(handle)

    def _drop(self, handle: int | None) -> None:
        if handle is not None:
            with contextlib.suppress(OSError):
                self._pipes.close(handle)

    def _serve(self, end: PipeEnd) -> None:
        # No answer for a peer that leaves or is silent, nor for anybody once the loop has ended.
        with contextlib.closing(end), contextlib.suppress(OSError, CancelledError):
            line = end.receive(MAX_LINE, READ_DEADLINE_SECONDS)
            end.send(asyncio.run_coroutine_threadsafe(self._answer(line), self._loop).result())
