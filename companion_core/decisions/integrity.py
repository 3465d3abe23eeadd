"""Rules: bytes are a model only when their SHA-256 and exact size are the ones signed for.

A check is used once, counts before it hashes, and answers every call. Imports `hashlib` and
`hmac` for their arithmetic alone; never raises.

`decisions/manifest.py` makes the `ModelSpec`, and `models/proof.py` checks the bytes against it.
Only the known answers of `tests/vectors` ask `verify_model_bytes`.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from typing import Final

from companion_core.decisions.evidence import Evidence
from companion_core.decisions.source import check_source_url
from companion_core.decisions.verdict import OK, Verdict, refuse
from companion_core.errors import Reason

__all__ = [
    "MAX_SIZE",
    "IntegrityAccumulator",
    "ModelSpec",
    "digests_equal",
    "parse_model_spec",
    "verify_model_bytes",
]

# Above this, sizes cannot be compared exactly by every reader of a manifest (RFC 8259 section 6).
MAX_SIZE: Final = 2**53 - 1
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ModelSpec(Evidence):
    """The digest (64 lower-case hex digits) and the size in bytes that a file must have.

    Made by `parse_model_spec` alone.
    """

    sha256: str
    size: int


def parse_model_spec(sha256: object, size: object) -> ModelSpec | Verdict:
    """Return the parsed pair, or `malformed_spec`."""
    if type(sha256) is not str or _DIGEST.fullmatch(sha256) is None:
        return refuse(Reason.MALFORMED_SPEC)
    if type(size) is not int or not 0 < size <= MAX_SIZE:
        return refuse(Reason.MALFORMED_SPEC)
    return ModelSpec(sha256, size)


def digests_equal(a: object, b: object) -> bool:
    """Compare two digests in constant time; anything but two non-empty texts is unequal."""
    if type(a) is not str or type(b) is not str or not a:
        return False
    # surrogatepass keeps the comparison total and injective for any text.
    return hmac.compare_digest(a.encode(errors="surrogatepass"), b.encode(errors="surrogatepass"))


class IntegrityAccumulator:
    """Counts and hashes a stream, and says at the end whether it is the model (I-01).

    Call `update` as often as there are bytes and `finalize` once. The `update` that brings too
    many bytes refuses, and does not hash them.
    """

    __slots__ = ("_aborted", "_finalized", "_hash", "_received", "_spec")

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._hash = hashlib.sha256()
        self._received = 0
        self._aborted = False
        self._finalized = False

    @property
    def received_bytes(self) -> int:
        """The number of bytes that were offered before the check ended."""
        return self._received

    def update(self, chunk: object) -> Verdict:
        """Take the next bytes; anything else ends the check."""
        ended = self._ended()
        if ended is not None:
            return ended
        if not isinstance(chunk, bytes | bytearray | memoryview):
            return self.abort()
        if isinstance(chunk, memoryview) and not chunk.contiguous:
            return self.abort()
        self._received += memoryview(chunk).nbytes
        if self._received > self._spec.size:
            return refuse(Reason.SIZE_MISMATCH)
        self._hash.update(chunk)
        return OK

    def finalize(self) -> Verdict:
        """Return the verdict; a second call is refused."""
        if self._aborted:
            return refuse(Reason.ACCUMULATOR_ABORTED)
        if self._finalized:
            return refuse(Reason.ACCUMULATOR_FINALIZED)
        self._finalized = True
        if self._received != self._spec.size:
            return refuse(Reason.SIZE_MISMATCH)
        if not digests_equal(self._hash.hexdigest(), self._spec.sha256):
            return refuse(Reason.DIGEST_MISMATCH)
        return OK

    def abort(self) -> Verdict:
        """Give the check up for good."""
        self._aborted = True
        return refuse(Reason.ACCUMULATOR_ABORTED)

    def _ended(self) -> Verdict | None:
        if self._aborted:
            return refuse(Reason.ACCUMULATOR_ABORTED)
        if self._finalized:
            return refuse(Reason.ACCUMULATOR_FINALIZED)
        return refuse(Reason.SIZE_MISMATCH) if self._received > self._spec.size else None


def verify_model_bytes(
    data: object, *, sha256: object, size: object, source: object, allowed: object
) -> Verdict:
    """Judge a whole model in memory: source, specification, type, size, digest."""
    admitted = check_source_url(source, allowed)
    if not admitted.ok:
        return admitted
    spec = parse_model_spec(sha256, size)
    if isinstance(spec, Verdict):
        return spec
    accumulator = IntegrityAccumulator(spec)
    if accumulator.update(data).reason is Reason.ACCUMULATOR_ABORTED:
        return refuse(Reason.MALFORMED_SPEC)
    return accumulator.finalize()
