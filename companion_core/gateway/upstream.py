"""The backend's side: which connection a request is sent on, and how long one is kept for it.

No request is sent on a connection whose end may be on its way. What a backend does after each
kind of answer (status and framing) is learned from it: a kind that was once followed by an end
is never followed by another request. After a kind that has not been seen, the pool waits for
`SETTLE_SECONDS`; only after a whole answer with status 200 and a stated length is the backend
believed from the first one on, which is HTTP/1.1's rule (RFC 9112 section 9.3). Before each use
the socket itself is polled. `backend_connection` says what is sent again in spite of all that.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

from companion_core.egress.backend_channel import BackendChannel
from companion_core.egress.interface import Egress
from companion_core.errors import CompanionError
from companion_core.gateway.backend_connection import BackendConnection
from companion_core.gateway.http.response_head import ResponseHead, answer_kind
from companion_core.gateway.interface import Outgoing, Sink
from companion_core.system.running_clock import running_timeout

__all__ = ["BackendPool"]

CONNECT_SECONDS: Final = 5.0
# A backend may end a connection at once, or while this program is held up.
CONNECTS: Final = 5
# Servers close idle connections after some seconds (llama.cpp: five); staying well below
# keeps a request from being written into a connection that is just being closed.
IDLE_SECONDS: Final = 2.0
# A backend that ends a connection after an answer does so at once; a busy machine takes longer.
SETTLE_SECONDS: Final = 0.5
MAX_IDLE_CONNECTIONS: Final = 64
# The half of what a backend announces is for the way; the half of this is `IDLE_SECONDS`.
_LONG_ENOUGH: Final = 2 * IDLE_SECONDS
_WHOLE: Final = answer_kind(200, chunked=False)


class BackendPool:
    """Connections to one listener; made when needed, kept for `IDLE_SECONDS`.

    Attributes:
        closed_for_good: no connection is wanted any more.
        unused: a connection that was made ahead.
    """

    __slots__ = (
        "_awaited",
        "_channel",
        "_connect_seconds",
        "_connecting",
        "_egress",
        "_idle",
        "_most_idle",
        "_open",
        "_settling",
        "_stays_after",
        "closed_for_good",
        "now",
        "unused",
    )

    def __init__(
        self,
        channel: BackendChannel,
        egress: Egress,
        clock: Callable[[], float],
        *,
        connect_seconds: float = CONNECT_SECONDS,
    ) -> None:
        self.now = clock
        self._channel = channel
        self._egress = egress
        self._connect_seconds = connect_seconds
        self._idle: list[BackendConnection] = []
        self._settling: list[BackendConnection] = []  # their end may be on its way; oldest first
        # By kind: whether connections stay open after such an answer; once False, always False.
        self._stays_after: dict[int | None, bool] = {_WHOLE: True}
        self._open: set[BackendConnection] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        # The `first` of a connection that is being made ahead.
        self._awaited: list[Outgoing] | None = None
        self.unused: BackendConnection | None = None
        self.closed_for_good = False
        self._most_idle = MAX_IDLE_CONNECTIONS

    @property
    def is_empty(self) -> bool:
        """Whether there is no connection, and none is being made."""
        return not (self._open or self._connecting)

    def take_idle(self, now: float) -> BackendConnection | None:
        """Return an idle connection that shows no sign of its end; None without one."""
        if self._settling:
            self._settle(now)
        idle = self._idle
        while idle:
            connection = idle[-1]
            if now >= connection.idle_until:
                idle.pop()
                connection.abort()
            elif connection.is_silent():
                return idle.pop()
            else:
                self.ended_idle(connection)
                connection.abort()
        return None

    def _settle(self, now: float) -> None:
        """Use again what has stayed open for long enough after its answer."""
        horizon = now - SETTLE_SECONDS
        while self._settling and self._settling[0].idle_since <= horizon:
            connection = self._settling[0]
            if connection.is_silent() and self._stays_after.get(connection.kind, True):
                self._settling.pop(0)
                self._idle.append(connection)
                self._stays_after[connection.kind] = True
            else:
                self.learn_end(connection)
                self._settling.pop(0)
                connection.abort()

    def open_and_send(self, sink: Sink, request: bytes, *, check: bool = False) -> None:
        """Send a whole request on a connection of its own; `sink` learns what becomes of it.

        Args:
            sink: receives the answer.
            request: all of it.
            check: see `Outgoing`.
        """
        connection, self.unused = self.unused, None
        if connection is not None and not connection.is_silent():
            connection.abort()
            connection = None
        if connection is None and self._awaited is not None:
            self._awaited.append(Outgoing(sink, request, check))
            self._awaited = None
        elif connection is None:
            self.connect_and_send(Outgoing(sink, request, check))
        elif sink.upstream_bound(connection):
            connection.send(sink, request, check=check)
        else:
            self.keep(connection, self.now())

    def connect_and_send(self, outgoing: Outgoing) -> None:
        """As `open_and_send`, on a connection that is made now."""
        self._start_connecting([outgoing])

    def open_ahead(self) -> None:
        """Make a connection that waits for the next request, however long that takes."""
        self._awaited = []
        self._start_connecting(self._awaited)

    def _start_connecting(self, first: list[Outgoing]) -> None:
        task = asyncio.get_running_loop().create_task(self._connect(first))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, first: list[Outgoing]) -> None:
        with contextlib.suppress(OSError, CompanionError):
            async with running_timeout(self._connect_seconds):
                connection = await self._connected()
            self._use(connection, first)
        if first is self._awaited:
            self._awaited = None
        for outgoing in first:  # it was not sent
            outgoing.sink.response_failed()

    async def _connected(self) -> BackendConnection:
        """Return a connection that the backend has not ended meanwhile.

        Raises:
            OSError: the backend does not accept any, or ended each.
        """
        for _ in range(CONNECTS):
            connection = await self._egress.connect_backend(
                lambda: BackendConnection(self), self._channel
            )
            if self.closed_for_good or connection.is_open():
                return connection
            connection.abort()
        raise ConnectionResetError

    def keep_after(self, connection: BackendConnection, head: ResponseHead, now: float) -> None:
        """Keep a connection after an answer, if what is known of the backend allows it."""
        kind = connection.kind = head.kind
        stays = self._stays_after.get(kind)
        kept = self._idle if stays else self._settling
        if stays is False or len(kept) >= self._most_idle:
            connection.abort()
            return
        connection.waited = True
        connection.idle_since = now
        connection.idle_until = now + IDLE_SECONDS
        if head.keep_alive_seconds < _LONG_ENOUGH:
            connection.idle_until = now + head.keep_alive_seconds / 2
        kept.append(connection)

    def keep(self, connection: BackendConnection, now: float) -> None:
        """Keep a connection that nothing was sent on for the next request."""
        if len(self._idle) >= self._most_idle:
            connection.abort()
            return
        connection.waited = True
        connection.idle_since = now
        connection.idle_until = now + IDLE_SECONDS
        self._idle.append(connection)

    def ended_idle(self, connection: BackendConnection) -> None:
        """Forget a connection that the backend ended, or spoke on, while it was idle."""
        if connection in self._idle or connection in self._settling:
            self.learn_end(connection)
        self.closed(connection)

    def learn_end(self, connection: BackendConnection) -> None:
        """Use no connection again after such an answer as this one ended after."""
        kind = connection.kind
        if kind is not None and self.now() - connection.idle_since <= SETTLE_SECONDS:
            self._stays_after[kind] = False

    def opened(self, connection: BackendConnection) -> None:
        """Take note of a connection that was made; nothing may be sent on it yet.

        uvloop closes the descriptor of a transport that ends inside `connection_made` twice, the
        second time when it may be another connection's.
        """
        self._open.add(connection)

    def _use(self, connection: BackendConnection, first: list[Outgoing]) -> None:
        """Use a connection that was made; from now on nothing is put into `first` for it."""
        if first is self._awaited:
            self._awaited = None
        if self.closed_for_good:  # the backend was replaced meanwhile
            connection.abort()
        elif not first:
            connection.waited = True
            self.unused = connection
        elif first[0].sink.upstream_bound(connection):
            outgoing = first.pop()
            connection.send(
                outgoing.sink, outgoing.request, check=outgoing.check, second=outgoing.second
            )
        else:
            first.clear()
            self.keep(connection, self.now())

    def closed(self, connection: BackendConnection) -> None:
        """Forget a connection; harmless when it is forgotten already."""
        self._open.discard(connection)
        if connection is self.unused:
            self.unused = None
        for kept in (self._idle, self._settling):
            if connection in kept:
                kept.remove(connection)

    def close_idle(self, now: float) -> None:
        """Close what has been idle for too long."""
        self._settle(now)
        for connection in [idle for idle in self._idle if idle.idle_until <= now]:
            connection.abort()

    def close(self) -> None:
        """Close every connection; each sink that waits for an answer learns that it failed."""
        self.closed_for_good = True
        self._most_idle = 0
        for connection in list(self._open):
            connection.transport.abort()
