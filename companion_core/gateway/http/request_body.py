"""Rules for this file: collect one request's body that did not come in one piece with its head.

Its end is known from its length or its last chunk, and it never grows beyond the limit. No I/O.
"""

from __future__ import annotations

from companion_core.errors import Reason
from companion_core.gateway.http.chunked import ChunkError, ChunkFramer

__all__ = ["RequestBody"]


class RequestBody:
    """Feed it bytes until it answers.

    Attributes:
        payload: the body, when it is complete.
        rest: what follows it: the beginning of the next request.
    """

    __slots__ = ("_framer", "_length", "_limit", "payload", "rest")

    def __init__(self, length: int | None, limit: int) -> None:
        """Collect `length` bytes; None for a chunked body of at most `limit`."""
        self._length = length
        self._limit = limit
        self._framer = ChunkFramer(collect=True) if length is None else None
        self.payload = bytearray()
        self.rest = b""

    def feed(self, data: bytes) -> Reason | None:
        """Take more; None while it is incomplete, then OK or why it is refused."""
        framer = self._framer
        if framer is None:
            self.payload += data
            if len(self.payload) < (self._length or 0):
                return None
            self.rest = bytes(self.payload[self._length :])
            del self.payload[self._length :]
            return Reason.OK
        try:
            taken = framer.feed(data)
        except ChunkError:
            return Reason.MALFORMED_REQUEST
        if framer.size > self._limit:
            return Reason.BODY_TOO_LARGE
        if not framer.done:
            return None
        self.payload, self.rest = framer.payload, data[taken:]
        return Reason.OK
