"""Prove a runtime program before it is executed (I-05).

The program is executed under its configured name, so that name and the path to which it resolves
are both proved: the person or root owns every component, and no other user can replace one.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from companion_core.decisions.evidence import Evidence
from companion_core.decisions.integrity import digests_equal
from companion_core.errors import EnvironmentUnavailable, Reason, Refused
from companion_core.system.interpreter import Interpreter, running_interpreter
from companion_core.system.known_file import Identity, identify
from companion_core.system.os_compat import BINARY, CLOSE_ON_EXEC, NON_BLOCKING
from companion_core.system.state_files import check_owned, open_to_others

__all__ = ["EMBEDDED", "ProvedBinary", "check_unreplaceable", "digest_binary", "prove_binary"]

EMBEDDED: Final = "embedded"


@dataclass(frozen=True, slots=True)
class ProvedBinary(Evidence):
    """A program that nobody else can replace.

    Attributes:
        path: the name to execute it under.
        embedded: it is the running interpreter.
        identity: of the file whose bytes were hashed; None for the interpreter.
    """

    path: str
    embedded: bool
    identity: Identity | None = None

    def require_unchanged(self) -> None:
        """Require that its name still leads to what was hashed; asked right before it is executed.

        Raises:
            Refused: `runtime_changed`.
        """
        if self.identity is None:
            return
        try:
            same = identify(Path(self.path).stat()) == self.identity
        except OSError:
            same = False
        if not same:
            raise Refused(Reason.RUNTIME_CHANGED, self.path)


def prove_binary(
    binary: str, sha256: str | None = None, *, interpreter: Interpreter | None = None
) -> ProvedBinary:
    """Prove a configured program, or give the interpreter for `"embedded"`.

    Blocking: it may hash the file. A sticky folder such as /tmp is accepted above the program's
    folder, since nobody can replace another user's entry there. It is refused as that folder
    itself: runtimes load libraries from their own folder, and anyone could add one there.

    Args:
        binary: an absolute path, or `"embedded"`. The interpreter that runs this very code is not
            proved: an attacker who could replace it would have won already.
        sha256: lower-case hex as recorded at set-up; only `"embedded"` needs none.
        interpreter: runs an embedded runtime; None for the one that runs this code.

    Raises:
        EnvironmentUnavailable: `runtime_not_found`, `interpreter_missing`.
        Refused: `runtime_unsafe`, `runtime_changed`.
    """
    if binary == EMBEDDED:
        return ProvedBinary((interpreter or running_interpreter()).program, embedded=True)
    resolved = _resolve_unreplaceable(binary)
    with _open_program(resolved, binary) as file:
        if sha256 is None:
            raise Refused(Reason.RUNTIME_CHANGED, "runtime.binary_sha256 is not recorded")
        identity = identify(os.fstat(file.fileno()))  # from before the bytes are read
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digests_equal(digest, sha256):
        raise Refused(Reason.RUNTIME_CHANGED, binary)
    return ProvedBinary(str(Path(binary)), embedded=False, identity=identity)


def digest_binary(binary: str) -> str:
    """Return the SHA-256 of a program that nobody else can replace, to be recorded. Blocking.

    Raises:
        EnvironmentUnavailable: `runtime_not_found`.
        Refused: `runtime_unsafe`.
    """
    with _open_program(_resolve_unreplaceable(binary), binary) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _resolve_unreplaceable(binary: str) -> Path:
    """Return the file to which an absolute path leads; nobody else can replace any of it."""
    path = Path(binary)
    if not path.is_absolute() or ".." in path.parts:
        raise Refused(Reason.RUNTIME_UNSAFE, binary)
    try:
        resolved = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise EnvironmentUnavailable(Reason.RUNTIME_NOT_FOUND, binary) from error
    for name in (path, resolved):
        check_unreplaceable(name)
    return resolved


def check_unreplaceable(path: Path) -> None:
    """Require that no other user can put another file in the place of this one.

    Raises:
        Refused: `runtime_unsafe`.
    """
    try:
        check_owned(path)
    except Refused as error:
        raise Refused(Reason.RUNTIME_UNSAFE, error.detail) from error  # it names the folder
    if os.name == "posix" and open_to_others(path.parent.stat(), path.parent):
        raise Refused(Reason.RUNTIME_UNSAFE, f"{path.parent} can be changed by others")


@contextlib.contextmanager
def _open_program(resolved: Path, binary: str) -> Iterator[io.BufferedReader]:
    """Open an ordinary file that nobody else can write to."""
    try:
        descriptor = os.open(resolved, os.O_RDONLY | NON_BLOCKING | CLOSE_ON_EXEC | BINARY)
    except OSError as error:
        raise Refused(Reason.RUNTIME_UNSAFE, binary) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or open_to_others(status, descriptor):
            raise Refused(Reason.RUNTIME_UNSAFE, binary)
        with open(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)
