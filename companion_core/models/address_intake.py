"""Fetch a file whose digest nobody states, so that its bytes can be recorded as they came."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from companion_core.decisions.integrity import ModelSpec, parse_model_spec
from companion_core.decisions.source import SourceUrl
from companion_core.decisions.verdict import Verdict
from companion_core.errors import CompanionError, EnvironmentUnavailable, Reason, error_for
from companion_core.models.byte_pump import Pace
from companion_core.models.fetch import CUT_OFF
from companion_core.models.intake import Taken, hash_file
from companion_core.models.kept_parts import make_room
from companion_core.models.partial import Partial
from companion_core.models.transfer import Download, Transfer, receive
from companion_core.system.folder_lock import lock_folder
from companion_core.system.lacks import lack_of
from companion_core.system.state_files import fsync_folder, private_folder

__all__ = ["take_address"]


def take_address(
    url: SourceUrl,
    size: int,
    folder: Path,
    *,
    allowed: Sequence[str],
    download: Download,
    plugin: str,
    progress: Callable[[int, int], None],
    cancelled: threading.Event,
    pace: Pace | None = None,
) -> Taken:
    """Fetch a file into the store, and say which bytes came. Blocking.

    A fetch that was stopped goes on where it was, if the host says that it still has the same
    file: what has come is kept under a name made of the address.

    Args:
        url: what the person named.
        size: that its host stated, in bytes; neither more nor less is taken.
        folder: the store; made, owner-only.
        allowed: where redirects may lead.
        download: a downloader's `open`.
        plugin: who is named when `download` misbehaves.
        progress: called with bytes done and bytes in all.
        cancelled: ends the work at the next block.
        pace: how long a downloader may take.

    Raises:
        EnvironmentUnavailable: `download_failed`, `disk_unavailable`.
        Refused: `size_mismatch`; a redirect leads elsewhere.
        CompanionError: `interrupted`.
    """
    private_folder(folder)
    place = _place(url, size)
    chosen = Pace() if pace is None else pace

    def watch(missing: int) -> None:
        if not make_room(folder, missing, wanted={place.sha256}):
            raise EnvironmentUnavailable(Reason.DISK_UNAVAILABLE)

    transfer = Transfer(
        allowed=allowed,
        download=download,
        plugin=plugin,
        pace=chosen,
        ends_at=time.monotonic() + chosen.whole_seconds,
        sleep=cancelled.wait,
        cancelled=cancelled,
        advance=lambda received: progress(received, size),
        watch=watch,
    )
    try:
        with lock_folder(folder, cancelled):
            return _take(folder, place, url, transfer)
    except OSError as error:
        raise lack_of(OSError(error.errno, error.strerror)) from error


def _place(url: SourceUrl, size: int) -> ModelSpec:
    """Return what stands for the unknown bytes: never a digest of any, so nothing ever proves."""
    name = hashlib.sha256(b"companion-core address\0" + url.text.encode()).hexdigest()
    spec = parse_model_spec(name, size)
    if isinstance(spec, Verdict):
        raise error_for(spec.reason)
    return spec


def _take(folder: Path, place: ModelSpec, url: SourceUrl, transfer: Transfer) -> Taken:
    partial = Partial(folder, place)
    kept = False
    try:
        try:
            transfer.watch(place.size - partial.received)
            receive(partial, [url], transfer)
            partial.sync()
        except OSError:
            kept = partial.worth_keeping  # the disk is full, and what came is as good as before
            raise
        finally:
            partial.close()
        return _name(partial, folder, transfer.cancelled)
    except CompanionError as error:
        cut_off = error.reason in CUT_OFF
        kept = (cut_off or not partial.doubtful) and partial.worth_keeping
        raise
    finally:
        if not kept:
            partial.remove()


def _name(partial: Partial, folder: Path, cancelled: threading.Event) -> Taken:
    """Hash what came, and give it the name of its bytes."""
    with partial.path.open("rb") as file:
        taken = hash_file(file.fileno(), cancelled=cancelled)
        if sys.platform != "win32":
            os.fchmod(file.fileno(), 0o400)
            os.fsync(file.fileno())
    partial.path.replace(folder / taken.sha256)
    fsync_folder(folder)
    return taken
