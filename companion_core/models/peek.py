"""Look at the beginning of a file that lies elsewhere, before all of it is fetched."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from companion_core.decisions.gguf import HEAD_BYTES, GgufHead, parse_gguf
from companion_core.decisions.redirect import name_address, resolve_redirect
from companion_core.decisions.source import SourceUrl, admit_source
from companion_core.decisions.verdict import Verdict
from companion_core.errors import EnvironmentUnavailable, PluginFault, Reason, error_for
from companion_core.models.byte_pump import BytePump, Pace
from companion_core.models.transfer import MAX_REDIRECTS, RETRY_PAUSES, Download
from companion_core.providers import DownloadFailed, DownloadRequest, Redirect
from companion_core.transfer_fault import (
    TransferFault,
    TransferProblem,
    explain_problem,
    known_problem,
)

__all__ = ["Peeked", "admit_any", "peek"]

Admit = Callable[[str | None], SourceUrl | Verdict]
_FIRST_LOOK: Final = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Peeked:
    """What the beginning of a file says.

    Attributes:
        head: as far as it was read; None if it is no GGUF file.
        size: of the whole file, in bytes; None if its host does not say.
        hops: the addresses on the way, the named one first.
    """

    head: GgufHead | None
    size: int | None
    hops: Sequence[SourceUrl]


def admit_any(url: str | None) -> SourceUrl | Verdict:
    """Admit every https address: a person named it, or the host that they named leads there."""
    plain = "" if url is None else url.partition("#")[0].partition("?")[0]
    return admit_source(url, [plain])


def peek(
    url: SourceUrl,
    *,
    admit: Admit,
    download: Download,
    plugin: str,
    cancelled: threading.Event,
    pace: Pace | None = None,
) -> Peeked:
    """Return what the beginning of a file says; no more than that is fetched. Blocks.

    Args:
        url: where it is.
        admit: decides whether a redirect is followed.
        download: a downloader's `open`.
        plugin: who is named when `download` misbehaves.
        cancelled: ends the work.
        pace: how long a downloader may take.

    Raises:
        EnvironmentUnavailable: `download_failed`: it cannot be had.
        Refused: a redirect leads elsewhere.
        CompanionError: `interrupted`.
    """
    hops, failures = [url], 0
    while True:
        if len(hops) > MAX_REDIRECTS + 1:
            raise _failed(url.host, TransferProblem(TransferFault.TOO_MANY_REDIRECTS))
        hop = hops[-1]
        pump = BytePump(
            download,
            DownloadRequest(url=hop.text),
            plugin=plugin,
            pace=Pace() if pace is None else pace,
            cancelled=cancelled,
        )
        try:
            with pump:
                return Peeked(head=_read_head(pump), size=pump.length, hops=tuple(hops))
        except Redirect as redirect:
            hops.append(_next_hop(hop, redirect.url, admit, plugin))
        except DownloadFailed as error:
            problem = known_problem(error.problem)
            # A link that a redirect signed for a while has ended; the address gives another one.
            ended = len(hops) > 1 and problem.fault is TransferFault.FORBIDDEN
            if not (error.retryable or ended) or failures == len(RETRY_PAUSES):
                raise _failed(hop.host, problem) from error
            cancelled.wait(RETRY_PAUSES[failures])
            failures += 1
            del hops[1:]


def _read_head(pump: BytePump) -> GgufHead | None:
    """Read until the head is whole, or enough of it is there to say something."""
    data, head, next_look = bytearray(), None, _FIRST_LOOK
    for block in pump.blocks():
        data += block
        if len(data) >= next_look:  # it is parsed from its start each time
            head = parse_gguf(data)
            if head is None or head.complete or len(data) >= HEAD_BYTES:
                return head
            next_look = 2 * len(data)
    return parse_gguf(data)


def _next_hop(hop: SourceUrl, location: object, admit: Admit, plugin: str) -> SourceUrl:
    if type(location) is not str:
        raise PluginFault(Reason.PLUGIN_RESULT_INVALID, plugin)
    address = resolve_redirect(hop.text, location)
    admitted = admit(address)
    if not isinstance(admitted, Verdict):
        return admitted
    if address is None or admitted.reason is Reason.MALFORMED_SPEC:
        raise _failed(hop.host, TransferProblem(TransferFault.UNREADABLE_REDIRECT))
    raise error_for(admitted.reason, f"{hop.host} redirects to {name_address(address)}")


def _failed(host: str, problem: TransferProblem) -> EnvironmentUnavailable:
    return EnvironmentUnavailable(Reason.DOWNLOAD_FAILED, explain_problem(problem, host))
