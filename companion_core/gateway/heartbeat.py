"""A stream that is never silent for long, between an exchange and its client.

A request may wait for its place, or for a long prompt to be read, for minutes. Clients and proxies
take such a silence for a dead connection. With `gateway.heartbeat_seconds` the head of a stream's
answer is sent after that time, and then a comment whenever nothing else came. What would have been
an error answer is an event of the stream from then on. No comment comes inside an event or a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from companion_core.errors import Reason
from companion_core.gateway.http.chunked import ChunkError, ChunkFramer
from companion_core.gateway.http.response_head import ResponseHead
from companion_core.gateway.http.responses import error_parts
from companion_core.gateway.http.stream_events import (
    BEAT,
    LAST_CHUNK,
    STREAM_HEAD,
    chunk,
    error_event,
    is_event_stream,
)
from companion_core.gateway.interface import Downstream

__all__ = ["Heartbeat", "StreamingClient"]

ANTHROPIC_PATH: Final = "/v1/messages"
# An event ends with an empty line, and a chunk with CR LF.
_EVENT_ENDS: Final = (b"\n\n", b"\r\n\r\n", b"\r\r")
_CHUNK_AND_EVENT_END: Final = tuple(end + b"\r\n" for end in _EVENT_ENDS)
_LONGEST_END: Final = 6
_MOST_COLLECTED: Final = 2**20


class StreamingClient(Downstream, Protocol):
    """A client's connection, as a heartbeat uses it."""

    def beat(self, data: bytes) -> None:
        """Write without renewing a deadline; nothing while the client does not read."""
        ...

    def end_stream(self, reason: Reason, data: bytes) -> None:
        """Write the end of a stream that failed; the connection goes on."""
        ...


class Heartbeat:
    """The `Downstream` of one request for a stream.

    Args:
        client: whose request it is.
        path: of the request; it says in which form an error is told.
        seconds: the longest silence.
        clock: the gateway's.
    """

    __slots__ = (
        "_anthropic",
        "_begun",
        "_client",
        "_clock",
        "_collected",
        "_committed",
        "_framer",
        "_last",
        "_seconds",
        "_status",
        "_tail",
        "_wraps",
    )

    def __init__(
        self, client: StreamingClient, path: str, seconds: float, clock: Callable[[], float]
    ) -> None:
        self._client = client
        self._anthropic = path == ANTHROPIC_PATH
        self._seconds = seconds
        self._clock = clock
        self._last = clock()
        self._committed = False  # the head was sent before the backend answered
        self._begun = False  # the backend has answered
        self._status = 0
        self._collected: bytearray | None = None  # the body of an error
        self._framer: ChunkFramer | None = None  # of a stream that is relayed
        self._wraps = False  # the backend frames its stream otherwise than in chunks
        self._tail = b""  # the last bytes of the stream, as they came

    def beat(self, now: float) -> None:
        """Write a comment if nothing was written for too long, and one may come here."""
        if now - self._last < self._seconds:
            return
        if not self._begun:
            if not self._committed:
                self._committed = True
                self._client.answer_started(STREAM_HEAD, b"")
        elif not self._is_between_events():
            return
        self._last = now
        self._client.beat(BEAT)

    def _is_between_events(self) -> bool:
        if self._collected is not None:
            return True
        if self._wraps:
            return not self._tail or self._tail.endswith(_EVENT_ENDS)
        if self._framer is None or not self._framer.at_rest:
            return False
        return not self._tail or self._tail.endswith(_CHUNK_AND_EVENT_END)

    # --- what the exchange tells; see `Downstream` -----------------------------------------

    def answer_started(self, head: ResponseHead, body: bytes) -> None:
        """Pass the head on, or go on with the stream that has begun."""
        self._begun = True
        self._status = head.status
        stream = is_event_stream(head)
        if not self._committed:
            if stream and head.chunked:
                self._framer = ChunkFramer()
            self._client.answer_started(head, body)
            self._follow(body)
            return
        if not stream:
            self._collected = bytearray()
            self._framer = ChunkFramer(collect=True) if head.chunked else None
        elif head.chunked:
            self._framer = ChunkFramer()
        else:
            self._wraps = True
        self.answer_data(body)

    def answer_data(self, data: bytes) -> None:
        """Pass on more of the body, in the framing that was begun."""
        self._last = self._clock()
        if self._collected is not None:
            self._collect(data)
        elif self._wraps:
            self._tail = (self._tail + data)[-_LONGEST_END:]
            self._client.answer_data(chunk(data))
        else:
            self._client.answer_data(data)
            self._follow(data)

    def _follow(self, data: bytes) -> None:
        if self._framer is None or not data:
            return
        try:
            self._framer.feed(data)
        except ChunkError:  # the backend's connection refuses it too, and ends the answer
            self._framer = None
        self._tail = (self._tail + data)[-_LONGEST_END:]

    def _collect(self, data: bytes) -> None:
        collected = self._collected
        if collected is None:
            return
        if self._framer is not None:
            self._framer.feed(data)
            data = bytes(self._framer.payload)
            self._framer.payload.clear()
        if len(collected) + len(data) <= _MOST_COLLECTED:
            collected += data

    def answer_ended(self, now: float) -> None:
        """End the stream; an answer that was none is told as an event."""
        if self._collected is not None:
            event = error_event(self._status, bytes(self._collected), anthropic=self._anthropic)
            self._client.answer_data(chunk(event) + LAST_CHUNK)
        elif self._wraps:
            self._client.answer_data(LAST_CHUNK)
        self._client.answer_ended(now)

    def refuse(self, reason: Reason) -> None:
        """Answer with an error, or tell it in the stream that has begun."""
        if not self._committed:
            self._client.refuse(reason)
            return
        status, body = error_parts(reason)
        event = error_event(status, body, anthropic=self._anthropic)
        self._client.end_stream(reason, chunk(event) + LAST_CHUNK)

    def break_off(self, reason: Reason) -> None:
        """End the connection: the client sees that the answer is incomplete."""
        self._client.break_off(reason)

    def wait_for_backend(self, deadline: float) -> None:
        """Leave the request to the exchange until `deadline`."""
        self._client.wait_for_backend(deadline)

    def count_from(self, now: float) -> None:
        """Let the request have begun now."""
        self._client.count_from(now)

    def body_sent(self) -> None:
        """Count the request's body no more."""
        self._client.body_sent()

    def serve_next(self) -> None:
        """Serve what the client has sent since."""
        self._client.serve_next()
