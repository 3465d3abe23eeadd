"""Hash a stream whole and piece by piece at once: `hashlib` lets two threads run."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Final, Self

__all__ = ["PiecewiseHash"]

# Below this a hand-over to another thread takes longer than the hash.
_LEAST_BYTES: Final = 64 * 1024


class PiecewiseHash:
    """The SHA-256 of a stream and of each of its pieces, as a context.

    Attributes:
        size: bytes so far.
    """

    def __init__(self, piece_bytes: int) -> None:
        self._piece_bytes = piece_bytes
        self._whole = hashlib.sha256()
        self._piece = hashlib.sha256()
        self._pieces: list[bytes] = []
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="companion-pieces")
        self.size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._worker.shutdown()

    def update(self, block: bytes | memoryview) -> None:
        """Take the next bytes; the block may be used again afterwards."""
        view = memoryview(block)
        if len(view) < _LEAST_BYTES:
            self._whole.update(view)
            self._cut(view)
        else:
            cutting = self._worker.submit(self._cut, view)
            self._whole.update(view)
            cutting.result()

    @property
    def sha256(self) -> str:
        """Of the whole, in lower-case hex."""
        return self._whole.hexdigest()

    @property
    def pieces(self) -> bytes:
        """The SHA-256 of each piece, one after the other."""
        last = [self._piece.digest()] if self.size % self._piece_bytes else []
        return b"".join([*self._pieces, *last])

    def _cut(self, view: memoryview) -> None:
        while view:
            part = view[: self._piece_bytes - self.size % self._piece_bytes]
            self._piece.update(part)
            self.size += len(part)
            view = view[len(part) :]
            if self.size % self._piece_bytes == 0:
                self._pieces.append(self._piece.digest())
                self._piece = hashlib.sha256()
