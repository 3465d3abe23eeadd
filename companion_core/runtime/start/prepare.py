"""The requests that a plan asks for before its health check: one connection each, bounded answers.

They are HTTP/1.0 on purpose: the answer ends with the connection, so there is no framing to parse.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterable
from typing import Final, cast

from companion_core.egress.backend_channel import BackendChannel
from companion_core.egress.interface import Egress
from companion_core.errors import EnvironmentUnavailable, Reason, error_for
from companion_core.models.store import ProvedFile
from companion_core.providers import BackendRequest, Expected
from companion_core.runtime.start.listener import NOBODY, StartListener
from companion_core.system.os_compat import read_at
from companion_core.system.secret import Secret

__all__ = ["send_prepare"]

_MAX_HEAD_BYTES: Final = 64 * 1024
_TAIL_BYTES: Final = 64 * 1024
_MOST_JSON_BYTES: Final = 16 * 2**20  # an answer of which something is expected is read whole
_CHUNK_BYTES: Final = 256 * 1024
_SERVER_ERROR: Final = 500


class _Answer(asyncio.Protocol):
    """Collects the head and the end of one answer, and slows the sender down."""

    def __init__(self, keep: int = _TAIL_BYTES) -> None:
        self._keep = keep
        self.transport: asyncio.Transport | None = None
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.head = b""
        self.tail = b""
        self._head_complete = False
        self._may_write = asyncio.Event()
        self._may_write.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's transport is no subclass

    def data_received(self, data: bytes) -> None:
        if not self._head_complete:
            self.head, found, data = (self.head + data).partition(b"\r\n\r\n")
            self._head_complete = bool(found)
            if len(self.head) > _MAX_HEAD_BYTES and self.transport is not None:
                self.transport.abort()
        self.tail = (self.tail + data)[-self._keep :]

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - an answer that was cut lacks its status or last line
        self._may_write.set()
        if not self.done.done():
            self.done.set_result(None)

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    async def write(self, data: bytes) -> None:
        """Send, and wait while the backend reads more slowly."""
        await self._may_write.wait()
        if self.transport is not None and not self.done.done():
            self.transport.write(data)

    def status(self) -> int:
        """Return the status code, 0 when there is no complete head."""
        parts = self.head.split(b" ", 2)
        known = self._head_complete and len(parts) > 1 and parts[0].startswith(b"HTTP/1.")
        return int(parts[1]) if known and parts[1].isdigit() else 0

    def last_line(self) -> str:
        """Return the last line of the body that is not empty."""
        return self.tail.decode("utf-8", "replace").rstrip().rpartition("\n")[2].strip()

    def unmet(self, expected: Iterable[Expected]) -> Expected | None:
        """Return the first of these that the answer does not say; None when it says all."""
        answer: object = None
        with contextlib.suppress(ValueError, RecursionError):
            answer = json.loads(self.tail)
        for one in expected:
            text = answer.get(one.member) if isinstance(answer, dict) else None
            if not isinstance(text, str) or text == one.unlike:
                return one
            lines = [" ".join(line.split()) for line in text.splitlines()]
            if one.line is not None and one.line not in lines:
                return one
        return None


async def send_prepare(
    egress: Egress,
    channel: BackendChannel,
    request: BackendRequest,
    *,
    key: Secret | None,
    model: ProvedFile | None = None,
    listener: StartListener = NOBODY,
) -> None:
    """Send one request of the plan and require the answer it names.

    The listener hears `connectable` when the backend has the whole request and works on it. Where
    the backend says that it failed itself (RFC 9110 section 15.6) the listener hears
    `not_connectable`, and the request is sent once more: a process that the backend starts for a
    model may lose a race for a port.

    Raises:
        EnvironmentUnavailable: `spawn_failed`, naming the request.
        CompanionError: the reason of what the plan expects the answer to say, and it does not.
    """
    for last in (False, True):
        try:
            answer = await _send_once(
                egress, channel, request, key=key, model=model, listener=listener
            )
        except OSError:
            break
        status, wanted = answer.status(), request.expect_last_line
        if status in request.expect_status and wanted in {None, answer.last_line()}:
            unmet = answer.unmet(request.expect)
            if unmet is None:
                return
            raise error_for(unmet.reason, f"{request.method} {request.path}")
        if last or status < _SERVER_ERROR:
            break
        listener.not_connectable()
    raise EnvironmentUnavailable(Reason.SPAWN_FAILED, f"{request.method} {request.path}")


async def _send_once(
    egress: Egress,
    channel: BackendChannel,
    request: BackendRequest,
    *,
    key: Secret | None,
    model: ProvedFile | None,
    listener: StartListener,
) -> _Answer:
    body = (request.json or "").encode()
    upload = model if request.send_model else None
    length = len(body) if upload is None else upload.size
    kind = "application/octet-stream" if request.send_model else "application/json"
    head = [
        f"{request.method} {request.path} HTTP/1.0",
        "Host: localhost",
        f"Content-Type: {kind}",
        f"Content-Length: {length}",
    ]
    if key is not None:
        head.append(f"Authorization: Bearer {key.reveal()}")
    answer = await egress.connect_backend(
        lambda: _Answer(_MOST_JSON_BYTES if request.expect else _TAIL_BYTES), channel
    )
    try:
        await answer.write("\r\n".join([*head, "", ""]).encode() + body)
        if upload is not None:
            await _send_file(answer, upload)
        listener.connectable()
        await answer.done
    finally:
        if answer.transport is not None:
            answer.transport.abort()
    return answer


async def _send_file(answer: _Answer, model: ProvedFile) -> None:
    at = 0
    while at < model.size and not answer.done.done():
        chunk = read_at(model.descriptor, min(_CHUNK_BYTES, model.size - at), at)
        if not chunk:
            return  # the file is shorter now: the backend gets less than announced and says so
        await answer.write(chunk)
        at += len(chunk)
