"""Hash a file through its descriptor: the whole on one core, or its pieces on all of them.

`hashlib` and the reads let other threads run, so threads are enough. Each has one small buffer,
which stays in its core's cache between the read and the hash.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from companion_core.decisions.integrity import IntegrityAccumulator, ModelSpec
from companion_core.decisions.pieces import Pieces
from companion_core.decisions.verdict import Verdict
from companion_core.errors import CompanionError, Reason

__all__ = ["hash_whole", "wrong_pieces"]

_BUFFER_BYTES: Final = 256 * 1024
_MOST_THREADS: Final = 16


def hash_whole(descriptor: int, spec: ModelSpec, cancelled: threading.Event) -> Verdict:
    """Judge all bytes of a file; the place in it is set back to its beginning.

    Raises:
        CompanionError: `interrupted`.
        OSError: the disk.
    """
    accumulator = IntegrityAccumulator(spec)
    buffer = memoryview(bytearray(min(_BUFFER_BYTES, spec.size + 1)))
    with open(descriptor, "rb", buffering=0, closefd=False) as file:
        file.seek(0)
        while count := file.readinto(buffer):
            if cancelled.is_set():
                raise CompanionError(Reason.INTERRUPTED)
            if not accumulator.update(buffer[:count]).ok:
                break
        file.seek(0)
    return accumulator.finalize()


def wrong_pieces(
    descriptor: int,
    pieces: Pieces,
    cancelled: threading.Event,
    among: Collection[int] | None = None,
) -> tuple[int, ...]:
    """Return the pieces whose bytes are not what was signed for, in order.

    Args:
        descriptor: of the file, open for reading.
        pieces: of the file.
        cancelled: ends the work at the next block.
        among: look at these alone; by default at all of them.

    Raises:
        CompanionError: `interrupted`.
        OSError: the disk.
    """
    wanted = range(len(pieces)) if among is None else among
    threads = min(_cores(), len(wanted), _MOST_THREADS)
    turns = iter(wanted)  # which hands out each number once, to whichever thread asks
    if threads <= 1:
        return tuple(sorted(_wrong(descriptor, pieces, turns, cancelled)))
    with ThreadPoolExecutor(threads, thread_name_prefix="companion-hash") as pool:
        parts = [pool.submit(_wrong, descriptor, pieces, turns, cancelled) for _ in range(threads)]
        return tuple(sorted(index for part in parts for index in part.result()))


def _wrong(
    descriptor: int, pieces: Pieces, turns: Iterator[int], cancelled: threading.Event
) -> list[int]:
    buffer = memoryview(bytearray(min(_BUFFER_BYTES, pieces.size)))
    return [
        index
        for index in turns
        if not pieces.is_right(index, _digest(descriptor, *pieces.extent(index), buffer, cancelled))
    ]


def _digest(
    descriptor: int, at: int, count: int, buffer: memoryview, cancelled: threading.Event
) -> bytes:
    """Return the SHA-256 of `count` bytes from `at` on, or of what there is of them."""
    digest = hashlib.sha256()
    while count:
        if cancelled.is_set():
            raise CompanionError(Reason.INTERRUPTED)
        got = _read_into(descriptor, buffer[: min(count, len(buffer))], at)
        if not got:
            break
        digest.update(buffer[:got])
        at, count = at + got, count - got
    return digest.digest()


def _read_into(descriptor: int, buffer: memoryview, at: int) -> int:
    if sys.platform != "win32":
        return os.preadv(descriptor, [buffer], at)
    os.lseek(descriptor, at, os.SEEK_SET)
    data = os.read(descriptor, len(buffer))
    buffer[: len(data)] = data
    return len(data)


def _cores() -> int:
    """Return how many cores this process may use; one where threads cannot share a descriptor."""
    if sys.platform == "win32":
        return 1  # reading moves the descriptor's own place there
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
