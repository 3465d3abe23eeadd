from __future__ import annotations

import hashlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion_core.decisions.integrity import (
    MAX_SIZE,
    IntegrityAccumulator,
    ModelSpec,
    digests_equal,
    parse_model_spec,
    verify_model_bytes,
)
from companion_core.decisions.verdict import Verdict
from companion_core.errors import Reason

pytestmark = pytest.mark.unit

anything = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()


def spec_of(data: bytes) -> ModelSpec:
    spec = parse_model_spec(hashlib.sha256(data).hexdigest(), len(data))
    assert isinstance(spec, ModelSpec)
    return spec


@given(sha256=anything, size=anything)
def test_a_specification_is_parsed_or_malformed(sha256: object, size: object) -> None:
    spec = parse_model_spec(sha256, size)
    assert isinstance(spec, ModelSpec) or spec.reason is Reason.MALFORMED_SPEC


@pytest.mark.parametrize(
    ("sha256", "size", "ok"),
    [
        ("a" * 64, 1, True),
        ("a" * 64, MAX_SIZE, True),
        ("a" * 64, MAX_SIZE + 1, False),
        ("a" * 64, 0, False),
        ("a" * 64, -1, False),
        ("a" * 64, True, False),
        ("a" * 64, 1.0, False),
        ("A" * 64, 1, False),
        ("a" * 63, 1, False),
        ("a" * 64 + "\n", 1, False),
        (b"a" * 64, 1, False),
    ],
)
def test_specifications(sha256: object, size: object, ok: bool) -> None:
    assert isinstance(parse_model_spec(sha256, size), ModelSpec) is ok


@given(data=st.binary(min_size=1, max_size=200), cuts=st.lists(st.integers(0, 200)))
def test_any_cut_of_the_right_bytes_is_the_model(data: bytes, cuts: list[int]) -> None:
    accumulator = IntegrityAccumulator(spec_of(data))
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for start, end in itertools.pairwise(edges):
        assert accumulator.update(memoryview(data)[start:end]).ok
    assert accumulator.finalize().ok
    assert accumulator.received_bytes == len(data)


@given(data=st.binary(min_size=1, max_size=64), bit=st.integers(min_value=0))
def test_one_flipped_bit_is_another_file(data: bytes, bit: int) -> None:
    changed = bytearray(data)
    bit %= len(data) * 8
    changed[bit // 8] ^= 1 << (bit % 8)
    accumulator = IntegrityAccumulator(spec_of(data))
    accumulator.update(changed)
    assert accumulator.finalize().reason is Reason.DIGEST_MISMATCH


@given(st.lists(anything | st.sampled_from(["finalize", "abort"])))
def test_every_call_is_answered(calls: list[object]) -> None:
    accumulator = IntegrityAccumulator(spec_of(b"model"))
    for call in calls:
        match call:
            case "finalize":
                verdict = accumulator.finalize()
            case "abort":
                verdict = accumulator.abort()
            case _:
                verdict = accumulator.update(call)
        assert isinstance(verdict, Verdict)
    assert accumulator.received_bytes >= 0


def test_overflow_is_told_at_once_and_stays() -> None:
    accumulator = IntegrityAccumulator(spec_of(b"abc"))
    assert accumulator.update(b"abcd").reason is Reason.SIZE_MISMATCH
    assert accumulator.update(b"").reason is Reason.SIZE_MISMATCH
    assert accumulator.finalize().reason is Reason.SIZE_MISMATCH


def test_it_is_used_once() -> None:
    accumulator = IntegrityAccumulator(spec_of(b"abc"))
    accumulator.update(b"abc")
    assert accumulator.finalize().ok
    assert accumulator.finalize().reason is Reason.ACCUMULATOR_FINALIZED
    assert accumulator.update(b"").reason is Reason.ACCUMULATOR_FINALIZED
    assert accumulator.abort().reason is Reason.ACCUMULATOR_ABORTED
    assert accumulator.finalize().reason is Reason.ACCUMULATOR_ABORTED


def test_too_few_bytes_are_another_size() -> None:
    accumulator = IntegrityAccumulator(spec_of(b"abc"))
    accumulator.update(b"ab")
    assert accumulator.finalize().reason is Reason.SIZE_MISMATCH


def test_a_view_with_gaps_is_no_stream_of_bytes() -> None:
    accumulator = IntegrityAccumulator(spec_of(b"ac"))
    assert accumulator.update(memoryview(b"abc")[::2]).reason is Reason.ACCUMULATOR_ABORTED


@given(a=st.text(), b=st.text())
def test_digests_are_equal_when_the_texts_are(a: str, b: str) -> None:
    assert digests_equal(a, b) is (a == b and bool(a))
    assert digests_equal(a, a) is bool(a)


@given(st.tuples(anything, anything, anything, anything, anything))
def test_a_whole_model_is_judged_without_raising(values: tuple[object, ...]) -> None:
    data, sha256, size, source, allowed = values
    verdict = verify_model_bytes(data, sha256=sha256, size=size, source=source, allowed=allowed)
    assert not verdict.ok


def test_only_the_parser_makes_a_specification() -> None:
    with pytest.raises(TypeError):
        ModelSpec("a" * 64, 1)
