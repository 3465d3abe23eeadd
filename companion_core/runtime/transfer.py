"""Bring the bytes of one file from the addresses that may give them, never more than signed for.

Every address is admitted by the source rule, at each redirect again (I-03). Whether the bytes
are right is decided later, over the file (`staging.py`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Final

from companion_core.decisions.integrity import ModelSpec
from companion_core.decisions.source import admit_source
from companion_core.decisions.verdict import Verdict
from companion_core.errors import EnvironmentUnavailable, Reason, Refused, error_for
from companion_core.providers import DownloadFailed, DownloadRequest, Redirect, ResumeRefused
from companion_core.runtime.byte_pump import BytePump, Pace

__all__ = ["Download", "Transfer", "receive"]

MAX_REDIRECTS: Final = 5
# Pauses in seconds before each further attempt at one address.
RETRY_PAUSES: Final = (0.5, 2.0)

Download = Callable[[DownloadRequest], BinaryIO]


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """How bytes are brought.

    Attributes:
        allowed: the sources that the rule admits.
        download: a downloader's `open`; `plugin` is who is named when it misbehaves.
        sleep: waits between attempts.
        cancelled: ends the work.
        advance: told how many bytes are there.
    """

    allowed: Sequence[str]
    download: Download
    plugin: str
    pace: Pace
    sleep: Callable[[float], object]
    cancelled: threading.Event
    advance: Callable[[int], None]


def receive(writer: int, spec: ModelSpec, urls: Sequence[str], transfer: Transfer) -> None:
    """Fill the open file `writer` from the first address that answers; never beyond its size.

    Raises:
        Refused: an address is not admitted, or the stream is longer or announced otherwise.
        EnvironmentUnavailable: `download_failed` when no address gives them.
        OSError: of the disk.
    """
    failure = DownloadFailed(Reason.DOWNLOAD_FAILED, retryable=False)
    for url in urls:
        try:
            _Attempts(writer, spec, transfer).run(url)
        except DownloadFailed as error:
            failure = error
        else:
            return
    raise EnvironmentUnavailable(Reason.DOWNLOAD_FAILED) from failure


class _Attempts:
    """The attempts at one address; what an earlier one received is kept when it can be."""

    def __init__(self, writer: int, spec: ModelSpec, transfer: Transfer) -> None:
        self._writer = writer
        self._spec = spec
        self._transfer = transfer
        self._received = 0
        self._validator: str | None = None
        self._restart()

    def run(self, url: str) -> None:
        for pause in (*RETRY_PAUSES, None):
            try:
                self._attempt(url)
            except ResumeRefused as error:
                if not self._received:
                    raise DownloadFailed(Reason.DOWNLOAD_FAILED, retryable=False) from error
                self._restart()
            except DownloadFailed as error:
                if not error.retryable or pause is None:
                    raise
                self._transfer.sleep(pause)
                if self._validator is None:
                    self._restart()
            else:
                return
        raise DownloadFailed(Reason.DOWNLOAD_FAILED, retryable=False)

    def _restart(self) -> None:
        self._received = 0
        self._validator = None
        os.ftruncate(self._writer, 0)
        os.lseek(self._writer, 0, os.SEEK_SET)

    def _attempt(self, url: str) -> None:
        for _ in range(MAX_REDIRECTS + 1):
            admitted = admit_source(url, self._transfer.allowed)
            if isinstance(admitted, Verdict):
                raise error_for(admitted.reason)
            request = DownloadRequest(
                url=admitted.text, offset=self._received, validator=self._validator
            )
            pump = BytePump(
                self._transfer.download,
                request,
                plugin=self._transfer.plugin,
                pace=self._transfer.pace,
                cancelled=self._transfer.cancelled,
            )
            try:
                with pump:
                    self._take(pump)
            except Redirect as redirect:
                url = redirect.url
            else:
                return
        raise DownloadFailed(Reason.DOWNLOAD_FAILED, retryable=False)

    def _take(self, pump: BytePump) -> None:
        expected = self._spec.size
        if pump.length is not None and self._received + pump.length != expected:
            raise Refused(Reason.SIZE_MISMATCH)
        self._validator = pump.validator
        for block in pump.blocks():
            # Counted before it is written: never more on the disk than was signed for.
            if self._received + len(block) > expected:
                raise Refused(Reason.SIZE_MISMATCH)
            _write(self._writer, block)
            self._received += len(block)
            self._transfer.advance(self._received)


def _write(descriptor: int, block: memoryview) -> None:
    while block:
        block = block[os.write(descriptor, block) :]
