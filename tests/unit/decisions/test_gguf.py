"""The head of a GGUF file: what it says is read, whatever its bytes are."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion_core.decisions.gguf import MAGIC, GgufHead, parse_gguf

pytestmark = pytest.mark.unit

U32, F32, BOOL, STRING, ARRAY, U64 = 4, 6, 7, 8, 9, 10
DEMO = Path(__file__).parents[3] / "companion_core" / "demo"


def text(value: str | bytes) -> bytes:
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def u32(key: str, value: int) -> bytes:
    return entry(key, U32, struct.pack("<I", value))


def array(key: str, kind: int, count: int, values: bytes) -> bytes:
    return entry(key, ARRAY, struct.pack("<IQ", kind, count) + values)


def tensor(shape: tuple[int, ...], kind: int = 0, offset: int = 0, name: str = "w") -> bytes:
    dimensions = struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", n) for n in shape)
    return text(name) + dimensions + struct.pack("<IQ", kind, offset)


def head(*entries: bytes, tensors: tuple[bytes, ...] = (), version: int = 3) -> bytes:
    counts = struct.pack("<IQQ", version, len(tensors), len(entries))
    return MAGIC + counts + b"".join(entries) + b"".join(tensors)


LLAMA = (
    entry("general.architecture", STRING, text("llama")),
    u32("llama.context_length", 4096),
    entry("llama.rope.freq_base", F32, struct.pack("<f", 0.5)),
    entry("tokenizer.ggml.add_bos_token", BOOL, b"\1"),
    array("llama.attention.head_count_kv", U32, 2, struct.pack("<II", 8, 4)),
    array("tokenizer.ggml.tokens", STRING, 3, text("a") + text("") + text("ccc")),
    entry("tokenizer.chat_template", STRING, text("{{ messages }}")),
)


def parsed(data: bytes) -> GgufHead:
    found = parse_gguf(data)
    assert found is not None
    return found


def test_a_whole_head_is_read() -> None:
    found = parsed(head(*LLAMA, tensors=(tensor((64, 2)), tensor((32,), 8, 512))))
    assert (found.version, found.tensors, found.complete) == (3, 2, True)
    assert (found.architecture, found.number("context_length")) == ("llama", 4096)
    assert found.fields["llama.rope.freq_base"] == 0.5
    assert found.fields["tokenizer.ggml.add_bos_token"] is True
    assert found.numbers["llama.attention.head_count_kv"] == (8, 4)
    assert found.lengths["tokenizer.ggml.tokens"] == 3
    assert found.text("tokenizer.chat_template") == "{{ messages }}"


def test_the_end_of_the_last_tensor_is_told() -> None:
    raw = head(tensors=(tensor((64, 2)), tensor((33,), 8, 512)))
    start = -(-len(raw) // 32) * 32
    assert parsed(raw).data_ends == start + 512 + 2 * 34  # two blocks of 32, the second begun
    assert parsed(head()).data_ends == len(head())


def test_an_unknown_kind_of_tensor_counts_from_where_it_begins() -> None:
    raw = head(tensors=(tensor((64,), kind=9999, offset=64),))
    assert parsed(raw).data_ends == -(-len(raw) // 32) * 32 + 64


@pytest.mark.parametrize("version", [2, 3])
def test_the_versions_that_are_written_are_read(version: int) -> None:
    assert parsed(head(version=version)).version == version


@pytest.mark.parametrize("version", [0, 1, 4, 0x03000000])
def test_other_versions_are_not(version: int) -> None:
    assert parse_gguf(head(version=version)) is None


def test_what_is_missing_is_not_told() -> None:
    found = parsed(head(u32("llama.context_length", 1)))
    assert (found.architecture, found.number("context_length")) == ("", None)
    assert found.text("tokenizer.chat_template") is None


@pytest.mark.parametrize(
    "data", [b"", b"GGU", b"GGUF", b"PK\3\4" * 20, None, "GGUF", 5, b"GGUF" + b"\3"]
)
def test_what_does_not_begin_like_one_is_none(data: Any) -> None:
    assert parse_gguf(data) is None


def test_a_head_that_is_cut_off_tells_what_it_has() -> None:
    raw = head(*LLAMA, tensors=(tensor((64,)),))
    whole = parsed(raw)
    for length in range(len(head()), len(raw)):
        found = parsed(raw[:length])
        assert not found.complete
        assert found.data_ends is None
        assert set(found.fields.items()) <= set(whole.fields.items())
    cut = parsed(raw[: raw.index(b"tokenizer.ggml.tokens")])
    assert cut.number("context_length") == 4096


@pytest.mark.parametrize(
    "raw",
    [
        head(entry("", U32, struct.pack("<I", 1))),
        head(u32("a", 1), u32("a", 1)),
        head(entry("a", 13, b"")),
        head(array("a", ARRAY, 1, b"")),
        head(array("a", 13, 1, b"")),
        head(text("k" * 70000)),
        head(entry("a", STRING, struct.pack("<Q", 2**40))),
        head(array("a", U32, 2**60, b"")),
        head(u32("general.alignment", 3), tensors=(tensor((1,)),)),
        head(tensors=(tensor(()),)),
        head(tensors=(tensor((1,) * 5),)),
        head(tensors=(tensor((0,)),)),
        head(tensors=(tensor((2**62, 2**62)),)),
        head(tensors=(tensor((1,), offset=2**63),)),
        head(tensors=(tensor((1,), offset=1),)),
        MAGIC + struct.pack("<IQQ", 3, 2**40, 0),
        MAGIC + struct.pack("<IQQ", 3, 0, 2**40),
    ],
)
def test_a_head_that_lies_is_none(raw: bytes) -> None:
    assert parse_gguf(raw) is None


def test_what_is_kept_of_many_arrays_is_bounded() -> None:
    many = [array(f"a.{number}", 0, 4096, bytes(range(256)) * 16) for number in range(40)]
    found = parsed(head(*many, array("last", 0, 1, b"x"), u32("after", 7)))
    assert found.complete
    assert len(found.lengths) == 41
    assert found.fields["after"] == 7
    assert found.numbers["a.0"] == tuple(range(256)) * 16
    assert sum(map(len, found.numbers.values())) <= 65536


def test_more_tensors_than_a_model_has_are_refused() -> None:
    count = 2**16 + 1
    raw = head(tensors=(tensor((1,)),))
    assert parse_gguf(raw[:8] + struct.pack("<Q", count) + raw[16:]) is None
    assert parse_gguf(raw[:8] + struct.pack("<Q", count - 1) + raw[16:]) is not None


def test_bytes_that_are_no_text_are_replaced() -> None:
    assert parsed(head(entry("a", STRING, text(b"\xff")))).text("a") == "\ufffd"


@given(st.data())
def test_any_change_of_a_head_is_read_or_refused(data: st.DataObject) -> None:
    raw = bytearray(head(*LLAMA, tensors=(tensor((64, 2)),)))
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(4, len(raw) - 1))] = data.draw(st.integers(0, 255))
    found = parse_gguf(bytes(raw))
    assert found is None or found.data_ends is None or found.data_ends > 0


def test_a_real_model_is_read() -> None:
    [model] = DEMO.rglob("*.gguf")
    found = parsed(model.read_bytes())
    assert found.complete
    assert found.number("context_length")
    assert found.data_ends is not None
    assert found.data_ends <= model.stat().st_size
