"""The integrity check against digests that nobody here computed (NIST CAVP)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from companion_core.decisions.integrity import IntegrityAccumulator, ModelSpec, parse_model_spec
from companion_core.errors import Reason

pytestmark = pytest.mark.unit

NIST = Path(__file__).resolve().parents[2] / "vectors" / "nist"
CASE = re.compile(r"Len = (\d+)\nMsg = ([0-9a-f]+)\nMD = ([0-9a-f]{64})")


def messages(file: str) -> Iterator[tuple[bytes, str]]:
    for bits, message, digest in CASE.findall((NIST / file).read_text(encoding="ascii")):
        yield bytes.fromhex(message)[: int(bits) // 8], digest


def verdict_on(message: bytes, digest: str, step: int) -> Reason:
    spec = parse_model_spec(digest, len(message))
    assert isinstance(spec, ModelSpec)
    accumulator = IntegrityAccumulator(spec)
    for start in range(0, len(message), step):
        accumulator.update(message[start : start + step])
    return accumulator.finalize().reason


@pytest.mark.parametrize(("file", "count"), [("SHA256ShortMsg.rsp", 65), ("SHA256LongMsg.rsp", 64)])
def test_every_message_has_its_digest_in_pieces_of_any_size(file: str, count: int) -> None:
    cases = list(messages(file))
    assert len(cases) == count
    for message, digest in cases:
        if not message:
            continue  # no model is empty: a size of zero is malformed
        for step in (1, 64, len(message)):
            assert verdict_on(message, digest, step) is Reason.OK
        flipped = bytes([message[0] ^ 1]) + message[1:]
        assert verdict_on(flipped, digest, len(message)) is Reason.DIGEST_MISMATCH


def test_the_monte_carlo_chain_holds() -> None:
    """SHA-VS section 6.4: each digest of a thousand is of the three before it."""
    text = (NIST / "SHA256Monte.rsp").read_text(encoding="ascii")
    seed = bytes.fromhex(re.findall(r"Seed = ([0-9a-f]{64})", text)[0])
    checkpoints = re.findall(r"COUNT = \d+\nMD = ([0-9a-f]{64})", text)
    assert len(checkpoints) == 100
    for checkpoint in checkpoints[:3]:
        chain = [seed, seed, seed]
        for _ in range(999):
            chain = [*chain[1:], digest_of(b"".join(chain))]
        assert verdict_on(b"".join(chain), checkpoint, 96) is Reason.OK
        seed = bytes.fromhex(checkpoint)


def digest_of(message: bytes) -> bytes:
    spec = parse_model_spec("0" * 64, len(message))
    assert isinstance(spec, ModelSpec)
    accumulator = IntegrityAccumulator(spec)
    accumulator.update(message)
    return accumulator._hash.digest()
