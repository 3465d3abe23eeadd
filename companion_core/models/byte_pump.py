"""Pump bytes from a downloader into a ring of buffers, beside the thread that writes them.

The network is read in a daemon thread, so that one that hangs, in a plugin or in the system,
costs a deadline and not the program. The ring bounds what is in memory: a slow disk slows
the network down.
"""

from __future__ import annotations

import contextlib
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final, Self

from companion_core.errors import CompanionError, PluginFault, Reason
from companion_core.providers import DownloadFailed, DownloadRequest, Redirect, ResumeRefused
from companion_core.system.deadline import call_with_deadline
from companion_core.system.lacks import is_limit, lack_of
from companion_core.system.muted_output import mute_output
from companion_core.transfer_fault import TransferFault, TransferProblem

__all__ = ["BLOCKS", "BytePump", "Pace", "Spread"]

BLOCK_BYTES: Final = 512 << 10
BLOCKS: Final = 4
_POLL_SECONDS: Final = 0.1
_CLOSE_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Spread:
    """When further connections are tried.

    Attributes:
        connections: the most that are open at once.
        look_seconds: how long a rate is measured.
        least_bytes: no connection gets less to bring.
    """

    connections: int = 4
    look_seconds: float = 2.0
    least_bytes: int = 8 << 20


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a downloader may take.

    Attributes:
        open_seconds: until the answer's head is there.
        block_seconds: for each 512 KiB of the body; the default is a floor of about 9 kB/s.
        whole_seconds: for a whole model; what came until then is there for the next run.
        spread: when more connections than one are tried.
    """

    open_seconds: float = 60.0
    block_seconds: float = 60.0
    whole_seconds: float = 24 * 3600.0
    spread: Spread = field(default_factory=Spread)


@dataclass(frozen=True, slots=True)
class _Opened:
    length: int | None
    validator: str | None


class BytePump:
    """One request, as a context: inside it, `blocks` yields the body.

    Entering and reading raise what the downloader may raise (`Redirect` only on entering),
    `DownloadFailed` when it is too slow, `PluginFault` when it does anything else, and
    `interrupted` when `cancelled` is set.

    Attributes:
        length: the bytes announced from the offset on, None when unknown.
        validator: what a later request may resume with.
    """

    def __init__(
        self,
        download: Callable[[DownloadRequest], BinaryIO],
        request: DownloadRequest,
        *,
        plugin: str,
        pace: Pace,
        cancelled: threading.Event,
        ends_at: float = math.inf,
    ) -> None:
        self._download = download
        self._request = request
        self._plugin = plugin
        self._pace = pace
        self._cancelled = cancelled
        self._ends_at = ends_at
        self._stopped = threading.Event()
        self._free: queue.SimpleQueue[memoryview | None] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[_Opened | memoryview | BaseException | None]
        self._ready = queue.SimpleQueue()
        self._stream: Any = None
        self._thread = threading.Thread(target=self._run, name="companion-download", daemon=True)
        self.length: int | None = None
        self.validator: str | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            opened = self._next(self._pace.open_seconds)
        except BaseException:
            self._stop()
            raise
        assert isinstance(opened, _Opened)  # noqa: S101 - the thread's first word
        self.length, self.validator = opened.length, opened.validator
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def blocks(self, count: int = BLOCKS) -> Iterator[memoryview]:
        """Yield the body; a block is valid until the next one is asked for.

        Args:
            count: how many blocks the ring has.
        """
        for _ in range(count):
            self._free.put(memoryview(bytearray(BLOCK_BYTES)))
        while True:
            block = self._next(self._pace.block_seconds)
            if block is None:
                return
            assert isinstance(block, memoryview)  # noqa: S101 - a fault of this file
            yield block
            whole = block.obj
            self._free.put(memoryview(whole) if isinstance(whole, bytearray) else None)

    def _next(self, seconds: float) -> _Opened | memoryview | None:
        deadline = min(time.monotonic() + seconds, self._ends_at)
        while True:
            if self._cancelled.is_set():
                raise CompanionError(Reason.INTERRUPTED)
            try:
                item = self._ready.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                if time.monotonic() < deadline:
                    continue
                late = TransferProblem(TransferFault.TIMED_OUT)
                again = time.monotonic() < self._ends_at
                raise DownloadFailed(
                    Reason.DOWNLOAD_FAILED, retryable=again, problem=late
                ) from None
            if not isinstance(item, BaseException):
                return item
            if isinstance(item, DownloadFailed | Redirect | ResumeRefused | CompanionError):
                raise item
            if is_limit(item):
                raise lack_of(item) from item
            raise PluginFault(Reason.PLUGIN_CALL_FAILED, self._plugin) from item

    def _stop(self) -> None:
        self._stopped.set()
        self._free.put(None)
        self._thread.join(timeout=0.01)
        if self._thread.is_alive() and self._stream is not None:
            # It waits for the network: hanging up wakes it.
            with contextlib.suppress(Exception):
                call_with_deadline(self._stream.close, seconds=_CLOSE_SECONDS)

    # --- the thread -------------------------------------------------------------------------

    def _run(self) -> None:
        with mute_output():  # the downloader and the stream are a plugin's
            self._transfer()

    def _transfer(self) -> None:
        try:
            stream: Any = self._download(self._request)
            self._stream = stream
            try:
                self._ready.put(_describe(stream))
                self._pump(stream)
            finally:
                with contextlib.suppress(Exception):
                    stream.close()
        except BaseException as error:  # noqa: BLE001 - told to the thread that asked
            self._ready.put(error)

    def _pump(self, stream: Any) -> None:
        while not self._stopped.is_set():
            block = self._free.get()
            if block is None:
                return
            filled = 0
            try:
                while filled < len(block) and (count := self._read(stream, block[filled:])):
                    filled += count
            finally:
                # What came before a failure is good for resuming.
                if filled:
                    self._ready.put(block[:filled])
            if filled < len(block):
                self._ready.put(None)
                return

    def _read(self, stream: Any, buffer: memoryview) -> int:
        count = stream.readinto(buffer)
        if type(count) is not int or not 0 <= count <= len(buffer):
            raise PluginFault(Reason.PLUGIN_RESULT_INVALID, self._plugin)
        return count


def _describe(stream: Any) -> _Opened:
    """Read the optional attributes of a stream; what is not of their type is not there."""
    length = getattr(stream, "length", None)
    validator = getattr(stream, "validator", None)
    return _Opened(
        length if type(length) is int and length >= 0 else None,
        validator if type(validator) is str else None,
    )
