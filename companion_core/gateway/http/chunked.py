"""Rules for this file: follow the chunked coding of RFC 9112 section 7.1 to its end; no I/O.

Extensions and trailers are refused: the gateway needs neither, and parsers differ about both.
One class serves both directions: a request is collected, a response is only followed.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

__all__ = ["ChunkError", "ChunkFramer"]

_HEX: Final = b"0123456789abcdefABCDEF"
_MAX_SIZE_DIGITS: Final = 8


class ChunkError(ValueError):
    """The bytes are not plainly chunked."""


class ChunkFramer:
    """Feed it bytes until `done`.

    Attributes:
        done: the last chunk and its empty trailer have been seen.
        payload: what the chunks carried, if `collect` was asked for.
        size: bytes that the chunks announced so far.
    """

    __slots__ = ("_collect", "_last", "_line", "_remaining", "_tail", "done", "payload", "size")

    def __init__(self, *, collect: bool = False) -> None:
        self.done = False
        self.payload = bytearray()
        self._collect = collect
        self.size = 0
        self._last = False  # the chunk of size zero has been seen
        self._line = b""  # an unfinished size line
        self._remaining = 0  # bytes of the current chunk that are still to come
        self._tail = b""  # what must follow literally: CR LF, or its second half

    @property
    def at_rest(self) -> bool:
        """Whether the next byte begins a chunk, and the body has not ended."""
        return not (self.done or self._remaining or self._tail or self._line)

    def feed(self, data: bytes) -> int:
        """Follow `data` and return how many of its bytes belong to this body.

        Raises:
            ChunkError: an extension, a trailer, or anything that is not a chunk.
        """
        position, end = 0, len(data)
        while position < end and not self.done:
            if self._remaining:
                position = self._skip_data(data, position)
            elif self._tail:
                position = self._skip_tail(data, position)
            else:
                position = self._skip_whole_chunks(data, position)
                if position < end:
                    position = self._read_size(data, position)
        return position

    def _skip_whole_chunks(self, data: bytes, position: int) -> int:
        """Skip the chunks that lie in `data` from size line to CR LF: a streamed event is one."""
        if self._line or self._collect:
            return position
        while True:
            stop = data.find(b"\r\n", position, position + _MAX_SIZE_DIGITS + 2)
            if stop < 0:
                return position
            size = _chunk_size(data[position:stop])
            after = stop + 2 + size
            if not size or data[after : after + 2] != b"\r\n":
                return position
            self.size += size
            position = after + 2

    def _skip_data(self, data: bytes, position: int) -> int:
        taken = min(self._remaining, len(data) - position)
        if self._collect:
            self.payload += data[position : position + taken]
        self._remaining -= taken
        return position + taken

    def _skip_tail(self, data: bytes, position: int) -> int:
        taken = data[position : position + len(self._tail)]
        if not self._tail.startswith(taken):
            raise ChunkError("chunk not followed by CR LF")
        self._tail = self._tail[len(taken) :]
        self.done = self._last and not self._tail
        return position + len(taken)

    def _read_size(self, data: bytes, position: int) -> int:
        stop = data.find(b"\r\n", position)
        if self._line or stop < 0:
            return self._read_split_size(data, position)
        self._start_chunk(data[position:stop])
        return stop + 2

    def _read_split_size(self, data: bytes, position: int) -> int:
        stop = data.find(b"\n", position) + 1 or len(data)
        self._line += data[position:stop]
        if len(self._line) > _MAX_SIZE_DIGITS + 2:
            raise ChunkError("chunk size too long")
        if self._line.endswith(b"\n"):
            line, self._line = self._line, b""
            if not line.endswith(b"\r\n"):
                raise ChunkError("bare LF")
            self._start_chunk(line[:-2])
        return stop

    def _start_chunk(self, digits: bytes) -> None:
        size = _chunk_size(digits)
        self._remaining = size
        self.size += size
        self._last = size == 0
        self._tail = b"\r\n"


@lru_cache(maxsize=256)
def _chunk_size(digits: bytes) -> int:
    # `int` would also take a sign, an underscore or 0x.
    if not 0 < len(digits) <= _MAX_SIZE_DIGITS or digits.strip(_HEX):
        raise ChunkError("chunk size")
    return int(digits, 16)
