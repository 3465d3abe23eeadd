"""Prove the bytes of one file through one descriptor, which is what runs later (I-01, I-04).

Opened once, held against writers where the system can, then hashed: nothing that happens to
the name afterwards changes what the descriptor is.
"""

from __future__ import annotations

import os
import stat
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from companion_core.decisions.integrity import IntegrityAccumulator, ModelSpec
from companion_core.decisions.verdict import Verdict
from companion_core.errors import CompanionError, Reason, Refused, error_for
from companion_core.models.byte_pump import BLOCK_BYTES
from companion_core.models.lease import release
from companion_core.models.windows_file import open_for_reading_alone
from companion_core.system.os_compat import (
    BINARY,
    CLOSE_ON_EXEC,
    NO_FOLLOW,
    user_id,
)
from companion_core.system.state_files import open_to_others

__all__ = ["Hold", "Identity", "Proof", "Prover", "identify"]

# Holds an open file against writers, waiting with the function it is given; False: cannot.
Hold = Callable[[int, Callable[[float], object]], bool]
# Device, inode, size and modification time.
Identity = tuple[int, int, int, int]

_READ = os.O_RDONLY | NO_FOLLOW | CLOSE_ON_EXEC | BINARY


@dataclass(frozen=True, slots=True)
class Proof:
    """An open descriptor of exactly the bytes that were asked for."""

    descriptor: int
    identity: Identity
    held: bool

    def discard(self) -> None:
        """Let go of the file."""
        release(self.descriptor)
        os.close(self.descriptor)


@dataclass(frozen=True, slots=True)
class Prover:
    """Proves files to be `spec`; `cancelled` ends the work at the next block."""

    spec: ModelSpec
    cancelled: threading.Event
    hold: Hold

    def prove(self, path: Path, *, sync: bool = False) -> Proof:
        """Open, hold and hash the file; with `sync`, have the disk take it meanwhile.

        Raises:
            Refused: `state_path_unsafe`, `size_mismatch` or `digest_mismatch`, the last also
                while somebody has it open for writing; nothing is open.
            OSError: the disk.
        """
        try:
            descriptor = _open(path)
        except OSError as error:
            raise Refused(Reason.STATE_PATH_UNSAFE) from error
        try:
            held = self._hold(descriptor)
            reason = _synced(descriptor, self._judge) if sync else self._judge(descriptor)
            proof = Proof(descriptor, identify(os.fstat(descriptor)), held)
        except BaseException:
            release(descriptor)
            os.close(descriptor)
            raise
        if reason is not Reason.OK:
            proof.discard()
            raise error_for(reason)
        return proof

    def _hold(self, descriptor: int) -> bool:
        try:
            return self.hold(descriptor, self.cancelled.wait)
        except BlockingIOError as error:
            raise Refused(Reason.DIGEST_MISMATCH) from error

    def _judge(self, descriptor: int) -> Reason:
        before = os.fstat(descriptor)
        foreign = os.name == "posix" and (before.st_uid != user_id() or open_to_others(before))
        if foreign or not stat.S_ISREG(before.st_mode):
            return Reason.STATE_PATH_UNSAFE
        if before.st_size != self.spec.size:
            return Reason.SIZE_MISMATCH
        verdict = self._hash(descriptor)
        # Written to while it was read: what was hashed is not what is there now.
        changed = identify(os.fstat(descriptor)) != identify(before)
        return Reason.DIGEST_MISMATCH if verdict.ok and changed else verdict.reason

    def _hash(self, descriptor: int) -> Verdict:
        accumulator = IntegrityAccumulator(self.spec)
        buffer = memoryview(bytearray(min(BLOCK_BYTES, self.spec.size + 1)))
        with open(descriptor, "rb", buffering=0, closefd=False) as file:
            while count := file.readinto(buffer):
                if self.cancelled.is_set():
                    raise CompanionError(Reason.INTERRUPTED)
                if not accumulator.update(buffer[:count]).ok:
                    break
            file.seek(0)
        return accumulator.finalize()


def _open(path: Path) -> int:
    return open_for_reading_alone(path) if sys.platform == "win32" else os.open(path, _READ)


def identify(status: os.stat_result) -> Identity:
    """Return what changes when a file is replaced or written to."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _synced(descriptor: int, judge: Callable[[int], Reason]) -> Reason:
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
        reason = judge(descriptor)
    finally:
        thread.join()
    if failures:
        raise failures[0]
    return reason
