"""From a signed entry to proved bytes: the one place that makes a `VerifiedModel` (I-01, I-04).

Bytes go into a file that no other user can make. That file is hashed whole through a descriptor
that stays open, and only then gets its name. A failure leaves no name that anything runs
(`partial.py`); a later run continues with the bytes and hashes the whole. A broken piece of a file
whose pieces are known is fetched alone.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from companion_core.decisions.evidence import Evidence
from companion_core.decisions.integrity import ModelSpec
from companion_core.decisions.manifest import ManifestFile, ManifestModel
from companion_core.decisions.manifest_kind import Role
from companion_core.decisions.model_files import in_order
from companion_core.decisions.pieces import Pieces
from companion_core.errors import CompanionError, EnvironmentUnavailable, Reason, Refused
from companion_core.models.byte_pump import Pace
from companion_core.models.fetch import Fetch, prove_stored
from companion_core.models.kept_parts import make_room, split_kept
from companion_core.models.lease import release
from companion_core.models.proof import BrokenPieces, Hold, Proof, Prover
from companion_core.models.transfer import Download, Transfer
from companion_core.system.clock import wall_now
from companion_core.system.folder_lock import lock_folder
from companion_core.system.lacks import lack_of
from companion_core.system.state_files import private_folder

__all__ = ["ModelStore", "ProvedFile", "VerifiedModel"]

Progress = Callable[[int, int], None]

# The way on for a model of the person's own, whose file is here alone.
_ADD_AGAIN: Final = "; companion models remove it, then add it again"
_NEVER: Final = threading.Event()
_AT_ONCE: Final = threading.Event()
_AT_ONCE.set()


def _hold_nothing(_descriptor: int, _pause: Callable[[float], object]) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class ProvedFile(Evidence):
    """One file whose bytes were hashed through `descriptor`, which is open for reading.

    Attributes:
        spec: what the manifest signed for, and what was found.
        path: its name in the store; the descriptor is the proof, the name is not.
        role: what a runtime does with it, as the manifest signed.
        pieces: by which it is proved again, where the manifest lists them.
        proof: renewed when the file is proved again.
    """

    name: str
    spec: ModelSpec
    path: str
    proof: Proof = field(repr=False, compare=False)
    role: Role = Role.MODEL
    pieces: Pieces | None = field(default=None, repr=False, compare=False)

    @property
    def sha256(self) -> str:
        """In small letters."""
        return self.spec.sha256

    @property
    def size(self) -> int:
        """In bytes."""
        return self.spec.size

    @property
    def descriptor(self) -> int:
        """What the bytes were hashed through; never handed to another process."""
        return self.proof.descriptor

    @property
    def held(self) -> bool:
        """It was hashed under a lease, so that a writer has to wait and is noticed."""
        return self.proof.held


@dataclass(frozen=True, slots=True)
class VerifiedModel(Evidence):
    """Proof that every file of a model is what the manifest signed for (I-01).

    Attributes:
        files: as `in_order` sorts them: a runtime opens the first one.
    """

    model_id: str
    format: str
    chat_template: str | None
    files: tuple[ProvedFile, ...]
    _open: list[int] = field(repr=False, compare=False)
    _hold: Hold = field(default=_hold_nothing, repr=False, compare=False)

    @property
    def is_open(self) -> bool:
        """Whether it may be used: it was neither closed nor found changed."""
        return bool(self._open)

    def close(self) -> None:
        """Give the leases up and close the descriptors; a second call does nothing."""
        while self._open:
            descriptor = self._open.pop()
            release(descriptor)
            os.close(descriptor)

    def prove_again(self, cancelled: threading.Event = _NEVER) -> None:
        """Require what was proved; to be asked right before each start. Blocks.

        A file whose lease was never lost and whose identity is the same is what it was. Any
        other is hashed again, by its pieces if it has any. A model with a file that is refused
        is closed: nothing is ever started from it again.

        Args:
            cancelled: ends the work at the next block.

        Raises:
            Refused: `digest_mismatch`, `size_mismatch`, `state_path_unsafe`.
            EnvironmentUnavailable: `disk_unavailable`.
            CompanionError: `model_in_use`; `interrupted`.
        """
        if not self._open:
            raise Refused(Reason.DIGEST_MISMATCH)
        try:
            for file in self.files:
                with _disk_errors():
                    prover = Prover(file.spec, cancelled, self._hold, file.pieces)
                    prover.prove_again(file.proof)
        except CompanionError as error:
            if isinstance(error, Refused) or error.reason is Reason.MODEL_IN_USE:
                self.close()
            raise


class ModelStore:
    """The folder of verified files, each named by its SHA-256.

    Args:
        folder: absolute; made 0700 and refused when it is not the person's alone.
        pace: how long a downloader may take.
        sleep: waits before another attempt; by default a wait that cancelling ends.
        hold: holds what is being proved against writers; by default nothing does.
    """

    def __init__(
        self,
        folder: Path,
        *,
        pace: Pace | None = None,
        sleep: Callable[[float], object] | None = None,
        hold: Hold = _hold_nothing,
    ) -> None:
        self._folder = folder
        self._pace = Pace() if pace is None else pace
        self._sleep = sleep
        self._hold = hold

    def stage(
        self,
        model: ManifestModel,
        *,
        allowed_sources: Sequence[str],
        download: Download,
        progress: Progress | None = None,
        resumed: Progress | None = None,
        repairs: Callable[[str], object] | None = None,
        cancelled: threading.Event | None = None,
        plugin: str = "https",
    ) -> VerifiedModel:
        """Return the proved model, downloading what is not in the store. Blocks.

        Args:
            model: from a verified manifest.
            allowed_sources: the manifest's; a redirect has to stay within them.
            download: a downloader's `open`.
            progress: called with bytes done and bytes in all.
            resumed: the same, whenever it goes on with what it had received before.
            repairs: told which pieces of which file are wrong, before they are fetched again.
            cancelled: ends the work at the next block.
            plugin: who is named when `download` misbehaves.

        Raises:
            Refused: by the source or the integrity rule, or an unsafe folder.
            EnvironmentUnavailable: `download_failed` or `disk_unavailable`.
            PluginFault: the downloader broke its contract.
            CompanionError: `interrupted`.
        """
        if not self._folder.is_absolute():
            raise Refused(Reason.STATE_PATH_UNSAFE)
        private_folder(self._folder)
        total = sum(file.size for file in model.files)
        done = 0
        event = threading.Event() if cancelled is None else cancelled
        ends_at = time.monotonic() + self._pace.whole_seconds
        wanted = {file.sha256 for file in model.files}
        proved: list[ProvedFile] = []
        try:
            for file in in_order(model.files):
                base = done

                def tell(received: int, to: Progress | None, base: int = base) -> None:
                    if to is not None:
                        to(base + received, total)

                transfer = Transfer(
                    allowed=allowed_sources,
                    download=download,
                    plugin=plugin,
                    pace=self._pace,
                    sleep=self._sleep or event.wait,
                    cancelled=event,
                    ends_at=ends_at,
                    advance=functools.partial(tell, to=progress),
                    resumes=functools.partial(tell, to=resumed),
                    watch=functools.partial(self._require_room, wanted=wanted),
                )
                proved.append(self._obtain(file, transfer, wanted, repairs or _tell_nobody))
                done += file.size
        except BaseException:
            for earlier in proved:
                release(earlier.descriptor)
                os.close(earlier.descriptor)
            raise
        descriptors = [file.descriptor for file in proved]
        return VerifiedModel(
            model.id, model.format, model.chat_template, tuple(proved), descriptors, self._hold
        )

    def _obtain(
        self,
        file: ManifestFile,
        transfer: Transfer,
        wanted: Collection[str],
        repairs: Callable[[str], object],
    ) -> ProvedFile:
        path = self._folder / file.sha256
        prover = Prover(file.spec, transfer.cancelled, self._hold, file.pieces)
        with _disk_errors():
            self._tidy(wanted)
            # A stored file is only read, so as many companions as there are prove it at once.
            proof = prove_stored(path, prover)
            if not isinstance(proof, Proof) and not file.urls:
                raise _cannot_be_fetched(file, proof)
            if not isinstance(proof, Proof):
                with lock_folder(self._folder, transfer.cancelled):
                    proof = Fetch(self._folder, file, prover, transfer, repairs).run()
            transfer.advance(file.size)
        return ProvedFile(file.name, file.spec, str(path), proof, file.role, file.pieces)

    def _require_room(self, missing: int, *, wanted: Collection[str]) -> None:
        if not make_room(self._folder, missing, wanted=wanted):
            raise EnvironmentUnavailable(Reason.DISK_UNAVAILABLE)

    def _tidy(self, wanted: Collection[str]) -> None:
        """Remove parts of downloads that nobody will go on with, unless another writes now."""
        with contextlib.suppress(CompanionError), lock_folder(self._folder, _AT_ONCE):
            for left in split_kept(self._folder, now=wall_now(), wanted=wanted)[1]:
                left.unlink(missing_ok=True)


def _tell_nobody(_text: str) -> None:
    pass


def _cannot_be_fetched(file: ManifestFile, found: Refused | None) -> Refused:
    """Say what became of a file of which the stored bytes were all there was (I-03)."""
    which = f" ({found.detail})" if isinstance(found, BrokenPieces) else ""
    what = "is gone" if found is None else f"was changed{which}"
    detail = f"{file.name}: the stored file {what}{_ADD_AGAIN}"
    return Refused(Reason.DIGEST_MISMATCH, detail)


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    """Let no error of the system out with its path (I-15)."""
    try:
        yield
    except OSError as error:
        raise lack_of(OSError(error.errno, error.strerror)) from error
