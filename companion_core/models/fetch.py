"""Bring one file of a model into the store: reuse what is right, fetch what is not, prove it.

Nothing gets its name before the whole was hashed. Where the pieces are known, what is there is
proved piece by piece, and a broken piece is fetched alone; wrong bytes of one address are sought
at the next. The caller holds the store's lock.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from companion_core.decisions.manifest import ManifestFile
from companion_core.decisions.source import SourceUrl
from companion_core.errors import CompanionError, Reason, Refused
from companion_core.models.partial import Partial
from companion_core.models.proof import BrokenPieces, Proof, Prover
from companion_core.models.transfer import Transfer, receive
from companion_core.system.state_files import fsync_folder

__all__ = ["CUT_OFF", "Fetch", "prove_stored"]

# These say nothing against the bytes that are there.
CUT_OFF: Final = frozenset(
    {
        Reason.DOWNLOAD_FAILED,
        Reason.INTERRUPTED,
        Reason.DISK_UNAVAILABLE,
        Reason.LIMIT_REACHED,
    }
)
_WRONG_BYTES: Final = frozenset({Reason.DIGEST_MISMATCH, Reason.SIZE_MISMATCH})


class Fetch:
    """One file on its way into the store.

    Args:
        folder: the store, locked.
        file: what the bytes have to be, and where they may be had.
        prover: of this file.
        transfer: how bytes are brought.
        repairs: told which pieces of which file are wrong.
    """

    def __init__(
        self,
        folder: Path,
        file: ManifestFile,
        prover: Prover,
        transfer: Transfer,
        repairs: Callable[[str], object],
    ) -> None:
        self._folder = folder
        self._file = file
        self._prover = prover
        self._transfer = transfer
        self._repairs = repairs
        self._path = folder / file.sha256

    def run(self) -> Proof:
        """Return the proof of the stored file, fetching what is not there or wrong. Blocks.

        A file that another program writes to is neither right nor wrong: it stays, and nothing is
        fetched.

        Raises:
            CompanionError: as `ModelStore.stage`.
            OSError: the disk.
        """
        found = prove_stored(self._path, self._prover)  # another may have brought it meanwhile
        if isinstance(found, Proof):
            return found
        if not (isinstance(found, BrokenPieces) and self._adopt(found)):
            self._path.unlink(missing_ok=True)
        return self._bring()

    def _adopt(self, found: BrokenPieces) -> bool:
        """Go on with the right pieces of a stored file; False where that cannot be done."""
        pieces = self._file.pieces
        if pieces is None or not Partial.adopt(self._folder, self._file.spec, pieces, found.broken):
            return False
        self._tell(found)
        return True

    def _bring(self) -> Proof:
        """Fetch until the whole is proved; wrong bytes of an earlier run cost one try."""
        urls, rounds = list(self._file.urls), 0
        while True:
            partial = Partial(self._folder, self._file.spec, self._file.pieces)
            try:
                return self._complete(partial, urls)
            except Refused as error:
                given_up = [url for url in urls if partial.came_from(url.text)]
                others = [url for url in urls if url not in given_up]
                if isinstance(error, BrokenPieces):  # the right ones are kept
                    rounds += 1
                    urls = others + given_up
                    if rounds > len(urls):
                        raise
                elif not (partial.doubtful and error.reason in _WRONG_BYTES):
                    raise
                elif not partial.resumed:  # and what begins with nothing is not `resumed`
                    urls = others
                    if not urls or not given_up:
                        raise

    def _complete(self, partial: Partial, urls: Sequence[SourceUrl]) -> Proof:
        cut_off = False
        try:
            try:
                self._prove_pieces_of(partial)
                self._transfer.watch(partial.spec.size - partial.received)
                if partial.received:
                    self._transfer.advance(partial.received)
                receive(partial, urls, self._transfer)
                partial.sync()
            except OSError:
                cut_off = True  # the disk is full, and what came is as good as before
                raise
            finally:
                partial.close()  # no file is held against writers while there is one
            proof = self._prove(partial)
            return _name(partial.path, self._path, proof, self._prover)
        except CompanionError as error:
            cut_off = error.reason in CUT_OFF
            raise
        finally:
            sound = cut_off or not partial.doubtful
            if not (sound and partial.worth_keeping):
                with contextlib.suppress(OSError):
                    partial.remove()

    def _prove_pieces_of(self, partial: Partial) -> None:
        """Count the wrong pieces of what an earlier run received as missing."""
        if not (partial.resumed and partial.pieces):
            return
        broken = self._prover.find_broken(partial.path, among=partial.whole_pieces())
        if broken:
            self._tell(BrokenPieces(broken, partial.pieces))
            partial.drop(broken)

    def _prove(self, partial: Partial) -> Proof:
        """Prove the whole of what came; where that fails, keep the pieces that are right."""
        try:
            return self._prover.prove(partial.path, sync=os.name == "posix")
        except Refused as error:
            pieces = partial.pieces
            if error.reason is not Reason.DIGEST_MISMATCH or pieces is None:
                raise
            broken = self._prover.find_broken(partial.path)
            if not 0 < len(broken) < len(pieces):
                raise
            partial.drop(broken)
            found = BrokenPieces(broken, pieces)
            self._tell(found)
            raise found from error

    def _tell(self, found: BrokenPieces) -> None:
        self._repairs(f"{self._file.name}: {found.detail}")


def prove_stored(path: Path, prover: Prover) -> Proof | Refused | None:
    """Return the proof of a stored file, or why it is none; None if there is no such file.

    Raises:
        CompanionError: `model_in_use`, `interrupted`.
        OSError: the disk.
    """
    if not os.path.lexists(path):
        return None
    try:
        return prover.prove_stored(path)
    except Refused as error:
        return error


def _name(temporary: Path, path: Path, proof: Proof, prover: Prover) -> Proof:
    """Give a proved file its name, durably, and return what proves it."""
    if sys.platform == "win32":
        # An open file cannot be renamed there, so it is proved once more under its name.
        proof.discard()
        temporary.replace(path)
        return prover.prove(path)
    try:
        with proof.own_change():
            temporary.replace(path)
            os.fchmod(proof.descriptor, 0o400)
        fsync_folder(path.parent)
    except BaseException:
        proof.discard()
        raise
    return proof
