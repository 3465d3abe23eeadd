"""Bring the bytes of one file from the addresses that may give them, never more than signed for.

The manifest's rule has admitted every address; a redirect names a new one, which is checked
(I-03). A transfer brings what is missing beside the bytes that this run or an earlier one
received, if the address still has the same file or each piece can be proved by itself.
`store.py` decides later, over the whole file, whether the bytes are right.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import BinaryIO, Final

from companion_core.decisions.hub_answers import admit_redirect
from companion_core.decisions.redirect import name_address, resolve_redirect
from companion_core.decisions.source import SourceUrl
from companion_core.decisions.verdict import Verdict
from companion_core.errors import EnvironmentUnavailable, PluginFault, Reason, Refused, error_for
from companion_core.models.byte_pump import BLOCKS, BytePump, Pace
from companion_core.models.claims import Claim, Claims
from companion_core.models.crew import Crew
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
# An attempt that brought so much is worth as many further ones as the first.
_MUCH_BYTES: Final = 64 << 20
_FURTHER_BLOCKS: Final = 2  # in the ring of a further connection

Download = Callable[[DownloadRequest], BinaryIO]


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """How bytes are brought.

    Attributes:
        allowed: the sources that a redirect may lead to.
        download: a downloader's `open`; `plugin` is who is named when it misbehaves.
        sleep: waits between attempts.
        cancelled: ends the work.
        ends_at: by `time.monotonic`; nothing more is asked for then.
        advance: told how many bytes are there, from any thread, in order.
        resumes: told after how many bytes it goes on, once the address has agreed to that.
        watch: told now and then how many bytes are missing; raises if the disk has no room.
    """

    allowed: Sequence[str]
    download: Download
    plugin: str
    pace: Pace
    sleep: Callable[[float], object]
    cancelled: threading.Event
    ends_at: float
    advance: Callable[[int], None]
    watch: Callable[[int], object]
    resumes: Callable[[int], None] = lambda _received: None


def receive(partial: Partial, urls: Sequence[SourceUrl], transfer: Transfer) -> None:
    """Bring what `partial` lacks from the first address that answers; never beyond its size.

    Raises:
        Refused: a redirect leads elsewhere, or the stream is longer or announced otherwise.
        EnvironmentUnavailable: `download_failed` when no address gives them;
            `disk_unavailable`.
        OSError: of the disk.
    """
    if partial.complete:
        return
    least = transfer.pace.spread.least_bytes
    claims = Claims(partial, advance=transfer.advance, watch=transfer.watch, least=least)
    said: list[str] = []
    failure: _HopFailed | None = None
    # First the one that gave what is there, where any other would have to begin anew.
    alike = partial.pieces is not None
    in_turn = sorted(urls, key=lambda url: not (alike or partial.came_from(url.text)))
    last = in_turn[-1]
    for url in in_turn:
        try:
            _try_address(claims, url, transfer)
        except _HopFailed as error:
            failure = error
            said.append(explain_problem(error.problem, error.host))
        except Refused as error:
            # Another file of that name; the next address may have the right one.
            if error.reason is not Reason.SIZE_MISMATCH or url is last:
                raise
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ask:
    """What one request is for: the whole file, or a claim of it."""

    claim: Claim
    whole: bool
    validator: str | None


def _try_address(claims: Claims, url: SourceUrl, transfer: Transfer) -> None:
    """Bring all that is missing from one address, in as many attempts as it is worth."""
    partial = claims.partial
    refused: tuple[int, str | None] | None = None
    broken = _HopFailed(url.host, TransferProblem(TransferFault.BROKEN_ANSWER))

    def further(claim: Claim, stop: threading.Event) -> None:
        quiet = replace(transfer, cancelled=stop, resumes=lambda _received: None)
        lane = _Lane(claims=claims, source=url, transfer=quiet, blocks=_FURTHER_BLOCKS)
        ask = _Ask(claim=claim, whole=False, validator=partial.resume_point(url.text)[1])
        for _ in lane.attempt(ask):
            pass

    first = _Lane(claims=claims, source=url, transfer=transfer)
    tries, there = iter(RETRY_PAUSES), partial.received
    with Crew(claims, further, transfer.pace.spread, transfer.cancelled) as crew:
        while (claim := crew.next_claim()) is not None:
            in_part, validator = partial.resume_point(url.text)
            point = claim.at, validator
            ask = _Ask(claim=claim, whole=not in_part or point == refused, validator=validator)
            if ask.whole:
                crew.dismiss()
            try:
                for _ in first.attempt(ask):
                    if partial.resume_point(url.text)[0]:
                        crew.look()
            except ResumeRefused as error:
                crew.settle()
                if ask.whole or next(tries, None) is None:
                    raise broken from error
                refused = point  # what is there is dropped once another answer has begun
            except _HopFailed as error:
                if partial.complete:
                    return  # it broke after the last byte
                partial.doubtful = False
                if partial.received - there >= _MUCH_BYTES:
                    tries, there = iter(RETRY_PAUSES), partial.received
                pause = next(tries, None)
                asked = error.problem.retry_after or 0
                if not error.retryable or pause is None or asked > MAX_PAUSE_SECONDS:
                    raise
                transfer.sleep(max(pause, asked))
            finally:
                claims.give_back(claim)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lane:
    """One connection at a time to one address; `blocks` are in its ring."""

    claims: Claims
    source: SourceUrl
    transfer: Transfer
    blocks: int = BLOCKS

    def attempt(self, ask: _Ask) -> Iterator[None]:
        """Bring what is asked for, hop by hop; yields after each block."""
        url, transfer = self.source, self.transfer
        for _ in range(MAX_REDIRECTS + 1):
            request = self._request(ask, url)
            pump = BytePump(
                transfer.download,
                request,
                plugin=transfer.plugin,
                pace=transfer.pace,
                cancelled=transfer.cancelled,
                ends_at=transfer.ends_at,
            )
            try:
                with pump:
                    yield from self._take(ask, request, pump)
            except Redirect as redirect:
                url = _admit_redirect(self.source, url, redirect.url, transfer)
            except DownloadFailed as error:
                problem = known_problem(error.problem)
                # A link that a redirect signed for a while has ended; the address gives another.
                ended = url is not self.source and problem.fault is TransferFault.FORBIDDEN
                raise _HopFailed(url.host, problem, retryable=error.retryable or ended) from error
            else:
                return
        raise _HopFailed(self.source.host, TransferProblem(TransferFault.TOO_MANY_REDIRECTS))

    def _request(self, ask: _Ask, url: SourceUrl) -> DownloadRequest:
        if ask.whole:
            return DownloadRequest(url=url.text)
        partial, claim = self.claims.partial, ask.claim
        # Where each piece can be proved, a range may be asked for by its length alone.
        bounded = partial.pieces is not None or claim.end < partial.spec.size
        return DownloadRequest(
            url=url.text,
            offset=claim.at,
            validator=ask.validator,
            length=claim.count if bounded else None,
        )

    def _take(self, ask: _Ask, request: DownloadRequest, pump: BytePump) -> Iterator[None]:
        claims, size = self.claims, self.claims.partial.spec.size
        if ask.whole:
            if pump.length not in {None, size}:
                raise Refused(Reason.SIZE_MISMATCH)
            claims.begin(ask.claim, self.source.text, pump.validator)
        else:
            if pump.length not in {None, size - request.offset, request.length}:
                raise ResumeRefused  # the whole may still be right
            claims.go_on(self.source.text, pump.validator)
            self.transfer.resumes(claims.partial.received)
        for block in pump.blocks(self.blocks):
            if not claims.put(ask.claim, block):
                return
            yield
        if ask.claim.count:
            # Without a length a stream that was cut off looks like one that ended.
            problem = TransferProblem(TransferFault.CUT_OFF)
            raise DownloadFailed(Reason.DOWNLOAD_FAILED, retryable=True, problem=problem)


def _admit_redirect(
    source: SourceUrl, hop: SourceUrl, location: object, transfer: Transfer
) -> SourceUrl:
    """Return proof that the address a hop leads to may be fetched; a refusal names both."""
    if type(location) is not str:
        raise PluginFault(Reason.PLUGIN_RESULT_INVALID, transfer.plugin)
    address = resolve_redirect(hop.text, location)
    admitted = admit_redirect(source, address, transfer.allowed)
    if not isinstance(admitted, Verdict):
        return admitted
    if address is None or admitted.reason is Reason.MALFORMED_SPEC:
        raise _HopFailed(hop.host, TransferProblem(TransferFault.UNREADABLE_REDIRECT))
    raise error_for(admitted.reason, f"{hop.host} redirects to {name_address(address)}")
