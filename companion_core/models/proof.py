"""Prove the bytes of one file through one descriptor that nobody else gets (I-01, I-04).

The file is opened once, held against writers where the system can do that, then hashed: nothing
that happens to its name afterwards changes what the descriptor leads to. Bytes that were just
received are hashed whole. What has its name in the store was; later proofs hash its pieces on all
cores, where the manifest lists their digests. A lease, its signal and
the place in the file belong to the open file description (open(2)), and any process that shares
it could change them. A runtime gets a description of its own, which `reopen` makes of the file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from companion_core.decisions.integrity import ModelSpec
from companion_core.decisions.pieces import Pieces
from companion_core.decisions.verdict import Verdict
from companion_core.errors import Reason, Refused, error_for
from companion_core.models.hashing import hash_whole, wrong_pieces
from companion_core.models.lease import is_held, release
from companion_core.models.windows_file import open_for_reading_alone
from companion_core.system.known_file import Identity, identify
from companion_core.system.os_compat import BINARY, CLOSE_ON_EXEC, NO_FOLLOW, user_id
from companion_core.system.state_files import open_to_others

__all__ = ["BrokenPieces", "Hold", "Proof", "Prover", "reopen"]

# Holds an open file against writers, waiting with the function it is given; False: cannot.
Hold = Callable[[int, Callable[[float], object]], bool]

# A file whose mode or links alone changed while it was hashed is hashed once more.
_ATTEMPTS: Final = 2
_MOST_NAMED: Final = 8
# Opening fails so whatever the file is.
_LACKING: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO})
_READ = os.O_RDONLY | NO_FOLLOW | CLOSE_ON_EXEC | BINARY


class BrokenPieces(Refused):
    """`digest_mismatch`, where it is known which pieces are wrong; the detail names them.

    Attributes:
        broken: their numbers, from 0 on, in order.
    """

    def __init__(self, broken: tuple[int, ...], pieces: Pieces) -> None:
        shown = ", ".join(str(index + 1) for index in broken[:_MOST_NAMED])
        more = f" and {len(broken) - _MOST_NAMED} more" if len(broken) > _MOST_NAMED else ""
        noun = "piece" if len(broken) == 1 else "pieces"
        super().__init__(Reason.DIGEST_MISMATCH, f"{noun} {shown}{more} of {len(pieces)}")
        self.broken = broken


@dataclass(slots=True)
class Proof:
    """An open descriptor of exactly the bytes that were asked for.

    Attributes:
        descriptor: of a description that no other process shares.
        identity: at the end of the newest proof.
        held: it was hashed under a lease, which may have been lost since: ask `is_sound`.
    """

    descriptor: int
    identity: Identity
    held: bool

    @property
    def is_sound(self) -> bool:
        """Whether nothing has happened since that could have changed a byte.

        A lease that is there was never lost: none is taken twice without another proof. Without
        one nothing can be said: a program that has the file mapped for writing can change bytes
        of it, and the system sets the time of change only when it writes the page out.
        """
        held = self.held and is_held(self.descriptor)
        return held and identify(os.fstat(self.descriptor)) == self.identity

    @contextlib.contextmanager
    def own_change(self) -> Iterator[None]:
        """Link, rename or change the mode of the file ourselves: no byte of it changes.

        A lease shows that nobody else wrote meanwhile. Without one the proof is not sound
        afterwards, and the file is hashed again before it is used.
        """
        sound = self.is_sound
        yield
        identity = identify(os.fstat(self.descriptor))
        if sound and self.held and is_held(self.descriptor):
            self.identity = identity

    def discard(self) -> None:
        """Let go of the file."""
        release(self.descriptor)
        os.close(self.descriptor)


@dataclass(frozen=True, slots=True)
class Prover:
    """Proves files to be `spec`; `cancelled` ends the work at the next block.

    Attributes:
        pieces: of the file, where the manifest lists them.
    """

    spec: ModelSpec
    cancelled: threading.Event
    hold: Hold
    pieces: Pieces | None = None

    def prove(self, path: Path, *, sync: bool = False) -> Proof:
        """Open, hold and hash the file, whole; with `sync`, have the disk take it meanwhile.

        Raises:
            Refused: `state_path_unsafe`, `size_mismatch` or `digest_mismatch`; nothing is open.
            CompanionError: `model_in_use`, somebody writes to it or has it open for writing.
            OSError: the disk.
        """
        return self._prove(path, _synced if sync else _judged, self._judge_whole)

    def prove_stored(self, path: Path) -> Proof:
        """Prove a file that was proved whole when it got its name; by its pieces if it has any.

        Raises:
            BrokenPieces: the wrong pieces are known.
            CompanionError: as `prove`.
            OSError: the disk.
        """
        return self._prove(path, _judged, self._judge)

    def find_broken(self, path: Path, among: Collection[int] | None = None) -> tuple[int, ...]:
        """Return the pieces of a file that are wrong; none where no pieces are known.

        Args:
            path: of the file, complete or not.
            among: the pieces to look at; by default all of them.

        Raises:
            CompanionError: `interrupted`.
            OSError: the disk.
        """
        if self.pieces is None:
            return ()
        descriptor = _open(path)
        try:
            return wrong_pieces(descriptor, self.pieces, self.cancelled, among)
        finally:
            os.close(descriptor)

    def _prove(
        self,
        path: Path,
        run: Callable[[int, Callable[[int], Identity]], Identity],
        judge: Callable[[int], Identity],
    ) -> Proof:
        try:
            descriptor = _open(path)
        except OSError as error:
            if error.errno in _LACKING:
                raise
            raise Refused(Reason.STATE_PATH_UNSAFE) from error
        try:
            held = self._hold(descriptor)
            identity = run(descriptor, judge)
        except BaseException:
            release(descriptor)
            os.close(descriptor)
            raise
        return Proof(descriptor, identity, held)

    def prove_again(self, proof: Proof) -> None:
        """Hash the file again, by its pieces if it has any, unless the proof is sound.

        Raises:
            Refused: as `prove`; the file stays open.
            OSError: the disk.
        """
        if proof.is_sound:
            return
        if not (proof.held and is_held(proof.descriptor)):
            release(proof.descriptor)  # whoever waits to write gets in, and is seen below
            proof.held = False
            proof.held = self._hold(proof.descriptor)
        if proof.held:
            _close_to_others(proof.descriptor)
        proof.identity = self._judge(proof.descriptor)

    def _hold(self, descriptor: int) -> bool:
        try:
            return self.hold(descriptor, self.cancelled.wait)
        except BlockingIOError as error:
            raise error_for(Reason.MODEL_IN_USE) from error

    def _judge(self, descriptor: int) -> Identity:
        return self._identity_of(descriptor, self._require_pieces)

    def _judge_whole(self, descriptor: int) -> Identity:
        return self._identity_of(descriptor, self._require_whole)

    def _identity_of(self, descriptor: int, require: Callable[[int], None]) -> Identity:
        """Return the identity of the file whose bytes are right."""
        for _ in range(_ATTEMPTS):
            before = os.fstat(descriptor)
            identity = identify(before)
            foreign = os.name == "posix" and (
                before.st_uid != user_id() or open_to_others(before, descriptor)
            )
            if foreign or not stat.S_ISREG(before.st_mode):
                raise Refused(Reason.STATE_PATH_UNSAFE)
            if before.st_size != self.spec.size:
                raise Refused(Reason.SIZE_MISMATCH)
            require(descriptor)
            if identify(os.fstat(descriptor)) == identity:
                return identity
        # Written to while it was read: what was hashed is not what is there now.
        raise error_for(Reason.MODEL_IN_USE)

    def _require_whole(self, descriptor: int) -> None:
        verdict = self._hash(descriptor)
        if not verdict.ok:
            raise error_for(verdict.reason)

    def _require_pieces(self, descriptor: int) -> None:
        if self.pieces is None:
            return self._require_whole(descriptor)
        broken = wrong_pieces(descriptor, self.pieces, self.cancelled)
        # The digest of the whole decides where its signer's pieces are not those of the file.
        if broken and not self._hash(descriptor).ok:
            raise BrokenPieces(broken, self.pieces)
        return None

    def _hash(self, descriptor: int) -> Verdict:
        return hash_whole(descriptor, self.spec, self.cancelled)


def _close_to_others(descriptor: int) -> None:
    """Set the mode back of a file of ours under a lease, which nobody has open for writing.

    A runtime that may only read the file can still set its mode.
    """
    status = os.fstat(descriptor)
    if sys.platform == "win32" or status.st_uid != user_id():
        return
    if open_to_others(status, descriptor):
        os.fchmod(descriptor, 0o400)


def _open(path: Path) -> int:
    return open_for_reading_alone(path) if sys.platform == "win32" else os.open(path, _READ)


def reopen(descriptor: int, path: str) -> int:
    """Return a descriptor of a new open file description, for reading, of the same file.

    Args:
        descriptor: of the file.
        path: its name, which only serves where the system opens descriptors as the same
            description.

    Raises:
        Refused: `digest_mismatch` where the name leads to another file; `state_path_unsafe`
            where the file cannot be opened.
    """
    try:
        if sys.platform == "linux":  # it leads to the file, whatever becomes of the name
            opened = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | CLOSE_ON_EXEC)
        else:
            opened = os.open(path, _READ)
    except OSError as error:
        raise Refused(Reason.STATE_PATH_UNSAFE) from error
    if not os.path.samestat(os.fstat(opened), os.fstat(descriptor)):
        os.close(opened)
        raise Refused(Reason.DIGEST_MISMATCH)
    return opened


def _judged(descriptor: int, judge: Callable[[int], Identity]) -> Identity:
    return judge(descriptor)


def _synced(descriptor: int, judge: Callable[[int], Identity]) -> Identity:
    """Judge while the disk takes what was written; a descriptor for reading can sync too."""
    failures: list[OSError] = []

    def sync() -> None:
        try:
            os.fsync(descriptor)
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=sync, name="companion-fsync")
    thread.start()
    try:
        identity = judge(descriptor)
    finally:
        thread.join()
    if failures:
        raise failures[0]
    return identity
