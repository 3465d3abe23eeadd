"""Bring the bytes of one file from the addresses that may give them, never more than signed for.

The manifest's rule has admitted every address; a redirect names a new one, which is checked
(I-03). A transfer resumes after the bytes that this run or an earlier one received, if the
address still has the same file. `store.py` decides later, over the whole file, whether the
bytes are right.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Final

from companion_core.decisions.redirect import name_address, resolve_redirect
from companion_core.decisions.source import SourceUrl, admit_source
from companion_core.decisions.verdict import Verdict
from companion_core.errors import EnvironmentUnavailable, PluginFault, Reason, Refused, error_for
from companion_core.models.byte_pump import BytePump, Pace
from companion_core.models.partial import Partial
from companion_core.providers import DownloadFailed, DownloadRequest, Redirect, ResumeRefused
from companion_core.transfer_fault import (
    TransferFault,
    TransferProblem,
    explain_problem,
    known_problem,
)

__all__ = ["Download", "Transfer", "receive"]

MAX_REDIRECTS: Final = 5
# Pauses in seconds before each further attempt at one address.
RETRY_PAUSES: Final = (0.5, 2.0)
# A host that asks for a longer pause than this gets no further attempt in this run.
MAX_PAUSE_SECONDS: Final = 60

Download = Callable[[DownloadRequest], BinaryIO]


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """How bytes are brought.

    Attributes:
        allowed: the sources that a redirect may lead to.
        download: a downloader's `open`; `plugin` is who is named when it misbehaves.
        sleep: waits between attempts.
        cancelled: ends the work.
        advance: told how many bytes are there.
        resumes: told after how many bytes it goes on, once the address has agreed to that.
    """

    allowed: Sequence[str]
    download: Download
    plugin: str
    pace: Pace
    sleep: Callable[[float], object]
    cancelled: threading.Event
    advance: Callable[[int], None]
    resumes: Callable[[int], None]


def receive(partial: Partial, urls: Sequence[SourceUrl], transfer: Transfer) -> None:
    """Bring what `partial` lacks from the first address that answers; never beyond its size.

    Raises:
        Refused: a redirect leads elsewhere, or the stream is longer or announced otherwise.
        EnvironmentUnavailable: `download_failed` when no address gives them.
        OSError: of the disk.
    """
    if partial.complete:
        return
    said: list[str] = []
    failure: _HopFailed | None = None
    # First the one that gave what is there: any other begins anew.
    for url in sorted(urls, key=lambda url: not partial.came_from(url.text)):
        try:
            _try_address(partial, url, transfer)
        except _HopFailed as error:
            failure = error
            said.append(explain_problem(error.problem, error.host))
        else:
            return
    detail = "; ".join(dict.fromkeys(said))  # two addresses of one host may say the same
    raise EnvironmentUnavailable(Reason.DOWNLOAD_FAILED, detail) from failure


class _HopFailed(Exception):
    """A host on the way gave nothing: the address's own, or one that it redirects to."""

    def __init__(self, host: str, problem: TransferProblem, *, retryable: bool = False) -> None:
        super().__init__(problem.fault.value)
        self.host = host
        self.problem = problem
        self.retryable = retryable


def _try_address(partial: Partial, url: SourceUrl, transfer: Transfer) -> None:
    refused: tuple[int, str | None] | None = None
    broken = _HopFailed(url.host, TransferProblem(TransferFault.BROKEN_ANSWER))
    for pause in (*RETRY_PAUSES, None):
        offset, validator = point = partial.resume_point(url.text)
        if point == refused:
            offset, validator = 0, None
        try:
            _attempt(partial, url, offset, validator, transfer)
        except ResumeRefused as error:
            if not offset:
                raise broken from error
            refused = point  # what is there is dropped once another answer has begun
        except _HopFailed as error:
            if partial.complete:
                return  # it broke after the last byte
            partial.doubtful = False
            asked = error.problem.retry_after or 0
            if not error.retryable or pause is None or asked > MAX_PAUSE_SECONDS:
                raise
            transfer.sleep(max(pause, asked))
        else:
            return
    raise broken


def _attempt(
    partial: Partial, source: SourceUrl, offset: int, validator: str | None, transfer: Transfer
) -> None:
    url = source
    for _ in range(MAX_REDIRECTS + 1):
        pump = BytePump(
            transfer.download,
            DownloadRequest(url=url.text, offset=offset, validator=validator),
            plugin=transfer.plugin,
            pace=transfer.pace,
            cancelled=transfer.cancelled,
        )
        try:
            with pump:
                _take(partial, source, offset, pump, transfer)
        except Redirect as redirect:
            url = _admit_redirect(url, redirect.url, transfer)
        except DownloadFailed as error:
            problem = known_problem(error.problem)
            # A link that a redirect signed for a while has ended; the address gives another one.
            ended = url is not source and problem.fault is TransferFault.FORBIDDEN
            raise _HopFailed(url.host, problem, retryable=error.retryable or ended) from error
        else:
            return
    raise _HopFailed(source.host, TransferProblem(TransferFault.TOO_MANY_REDIRECTS))


def _admit_redirect(hop: SourceUrl, location: object, transfer: Transfer) -> SourceUrl:
    """Return proof that the address a hop leads to may be fetched; a refusal names both."""
    if type(location) is not str:
        raise PluginFault(Reason.PLUGIN_RESULT_INVALID, transfer.plugin)
    address = resolve_redirect(hop.text, location)
    admitted = admit_source(address, transfer.allowed)
    if not isinstance(admitted, Verdict):
        return admitted
    if address is None or admitted.reason is Reason.MALFORMED_SPEC:
        raise _HopFailed(hop.host, TransferProblem(TransferFault.UNREADABLE_REDIRECT))
    raise error_for(admitted.reason, f"{hop.host} redirects to {name_address(address)}")


def _take(
    partial: Partial, source: SourceUrl, offset: int, pump: BytePump, transfer: Transfer
) -> None:
    expected = partial.spec.size
    if pump.length is not None and offset + pump.length != expected:
        if offset:
            raise ResumeRefused  # the whole may still be right
        raise Refused(Reason.SIZE_MISMATCH)
    if offset:
        partial.go_on(pump.validator)
        transfer.resumes(offset)
    else:
        partial.begin(source.text, pump.validator)
    for block in pump.blocks():
        # Counted before it is written: never more on the disk than was signed for.
        if partial.received + len(block) > expected:
            raise Refused(Reason.SIZE_MISMATCH)
        partial.append(block)
        transfer.advance(partial.received)
    if pump.length is None and not partial.complete:
        # Without a length a stream that was cut off looks like one that ended.
        problem = TransferProblem(TransferFault.CUT_OFF)
        raise DownloadFailed(Reason.DOWNLOAD_FAILED, retryable=True, problem=problem)
