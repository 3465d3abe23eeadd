"""The one-shot listener of a browser's redirect (RFC 8252 7.3 and 8.3).

It has a port of its own on 127.0.0.1 for the length of one attempt. What is no answer of this
attempt gets a status and consumes nothing; the first right one closes the listener. Pages are
fixed texts: nothing of a request is ever shown.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from http import HTTPStatus
from typing import Final

from companion_core.decisions.oauth import (
    AuthorizationCode,
    read_callback,
    validate_authorization_response,
)
from companion_core.decisions.oauth.callback import MAX_HEAD_BYTES
from companion_core.decisions.verdict import Verdict, refuse
from companion_core.errors import EnvironmentUnavailable, Reason

__all__ = ["RedirectListener", "listen"]

_HOST: Final = "127.0.0.1"
# A browser opens a few connections ahead. Above this the oldest one goes, so that silent ones do
# not keep the browser out.
MAX_CONNECTIONS: Final = 32
HEAD_SECONDS: Final = 10.0
LAST_PAGE_SECONDS: Final = 1.0
ACCEPT_SECONDS: Final = 0.02
_BLOCK: Final = 4096
# Answers with another state, after which this is no accident any more.
MAX_WRONG_ANSWERS: Final = 50
_NOT_OURS: Final = frozenset({Reason.STATE_MISSING, Reason.STATE_MISMATCH})

_DONE: Final = "The sign-in goes on in companion. You can close this page."
_FAILED: Final = "The sign-in did not succeed. You can close this page; the companion says why."
_TEXTS: Final[Mapping[int, str]] = {
    200: _DONE,
    400: "This is no answer to a sign-in that waits here.",
    403: "This address is not reached by that name.",
    404: "There is nothing here.",
    405: "This address is only read.",
}


class RedirectListener:
    """Waits for the browser; made by `listen`.

    Attributes:
        redirect_uri: the address that the browser is sent back to.
    """

    def __init__(self, port: int, path: str) -> None:
        self.redirect_uri = f"http://{_HOST}:{port}{path}"
        self._host = f"{_HOST}:{port}"
        self._path = path
        self._answer: asyncio.Future[AuthorizationCode | Verdict] = (
            asyncio.get_running_loop().create_future()
        )
        self._state: str | None = None
        self._issuer: str | None = None
        self._wrong = 0
        self._last: Verdict | None = None
        self._connections: dict[asyncio.Task[None], socket.socket] = {}

    def expect(self, *, state: str, issuer: str) -> None:
        """Take the answer of this attempt from now on; until then every request is a stray."""
        self._state, self._issuer = state, issuer

    async def wait(self, seconds: float) -> AuthorizationCode | Verdict:
        """Return the code, or why there is none.

        When the time is over, the reason is that of the last answer that was refused, and
        `sign_in_timeout` if there was none.
        """
        try:
            async with asyncio.timeout(seconds):
                return await self._answer
        except TimeoutError:
            return self._last or refuse(Reason.SIGN_IN_TIMEOUT)
        finally:
            self._state = None  # of one use, whatever came

    def _judge(self, head: bytes) -> tuple[int, str]:
        """Return the status and the page for a request; the right one ends the wait."""
        request = read_callback(head, host=self._host, path=self._path)
        if self._state is None or self._answer.done():
            status = HTTPStatus.BAD_REQUEST if request.params is not None else request.status
            return status, _TEXTS[status]
        if request.malformed:
            self._count(refuse(Reason.MALFORMED_INPUT))
        if request.params is None:
            return request.status, _TEXTS[request.status]
        outcome = validate_authorization_response(
            request.params, expected_state=self._state, expected_issuer=self._issuer
        )
        if isinstance(outcome, Verdict) and outcome.reason in _NOT_OURS:
            self._count(outcome)
            return HTTPStatus.BAD_REQUEST, _TEXTS[HTTPStatus.BAD_REQUEST]
        self._state = None
        self._answer.set_result(outcome)
        if isinstance(outcome, Verdict):
            return HTTPStatus.BAD_REQUEST, _FAILED
        return HTTPStatus.OK, _DONE

    def _count(self, wrong: Verdict) -> None:
        self._wrong += 1
        self._last = wrong
        if self._wrong >= MAX_WRONG_ANSWERS and not self._answer.done():
            self._answer.set_result(wrong)

    async def accept(self, bound: socket.socket) -> None:
        """Serve each connection in a task of its own, until this is cancelled.

        asyncio's own server loses a connection that it accepts while it is closed. Here nothing
        comes between the acceptance of one and its place in the table.
        """
        while True:
            try:
                client, _ = bound.accept()
            except OSError:  # none waits now
                await asyncio.sleep(ACCEPT_SECONDS)
                continue
            client.settimeout(0)
            task = asyncio.ensure_future(self._serve(client))
            self._connections[task] = client
            task.add_done_callback(self._forget)
            if len(self._connections) > MAX_CONNECTIONS:
                next(iter(self._connections)).cancel()  # the oldest has had its time
            await asyncio.sleep(0)  # a flood of connections leaves the others their turn

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._connections.pop(task).close()  # also where it was cancelled before its first step
        if not task.cancelled():
            task.exception()  # nobody waits for it

    async def _serve(self, client: socket.socket) -> None:
        """Answer one request on one connection."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError, TimeoutError):  # it sent none; the attempt goes on
            async with asyncio.timeout(HEAD_SECONDS):
                head = await _read_head(client)
                if head is not None:
                    await loop.sock_sendall(client, _page(*self._judge(head)))
                    await _let_read(client)

    async def close(self) -> None:
        """End every connection; the page of the right answer is sent to its end."""
        tasks = set(self._connections)
        if tasks:
            await asyncio.wait(tasks, timeout=LAST_PAGE_SECONDS if self._answer.done() else 0.0)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


@contextlib.asynccontextmanager
async def listen(path: str) -> AsyncIterator[RedirectListener]:
    """Listen on a free port of 127.0.0.1 inside the context; afterwards nothing does.

    Raises:
        EnvironmentUnavailable: `listener_not_bound`.
    """
    try:
        bound = _bind()
    except OSError as error:
        raise EnvironmentUnavailable(Reason.LISTENER_NOT_BOUND) from error
    with bound:
        listener = RedirectListener(bound.getsockname()[1], path)
        accepting = asyncio.ensure_future(listener.accept(bound))
        try:
            yield listener
        finally:
            accepting.cancel()
            bound.close()
            await asyncio.wait({accepting})
            await listener.close()


async def _read_head(client: socket.socket) -> bytes | None:
    """Return a request's head without the empty line; None if the connection ends before it."""
    loop, head = asyncio.get_running_loop(), b""
    while (end := head.find(b"\r\n\r\n")) < 0 and len(head) <= MAX_HEAD_BYTES:
        piece = await loop.sock_recv(client, _BLOCK)
        if not piece:
            return None
        head += piece
    return head if end < 0 else head[:end]


async def _let_read(client: socket.socket) -> None:
    """Let the other side read the page: a close with unread bytes would take it away again."""
    client.shutdown(socket.SHUT_WR)
    loop, left = asyncio.get_running_loop(), MAX_HEAD_BYTES
    async with asyncio.timeout(LAST_PAGE_SECONDS):
        while left > 0 and (piece := await loop.sock_recv(client, _BLOCK)):
            left -= len(piece)


def _bind() -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        if sys.platform == "win32":  # else another program could listen on the same port
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        bound.bind((_HOST, 0))
        bound.listen(MAX_CONNECTIONS)
        bound.settimeout(0)
    except BaseException:
        bound.close()
        raise
    return bound


def _page(status: int, text: str) -> bytes:
    body = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>companion</title>'
        f"<p>{text}</p></html>\n"
    ).encode("ascii")
    allow = "Allow: GET\r\n" if status == HTTPStatus.METHOD_NOT_ALLOWED else ""
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
        "Content-Type: text/html; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\n"
        f"{allow}"
        "Cache-Control: no-store\r\n"
        "Content-Security-Policy: default-src 'none'; frame-ancestors 'none'; sandbox\r\n"
        "Cross-Origin-Opener-Policy: same-origin\r\n"
        "Cross-Origin-Resource-Policy: same-origin\r\n"
        "Referrer-Policy: no-referrer\r\n"
        "X-Content-Type-Options: nosniff\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode("ascii") + body
