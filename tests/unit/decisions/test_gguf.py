"""What a GGUF file's header says of its model; any other bytes say nothing."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion_core.decisions.gguf import ModelFacts, read_gguf

pytestmark = pytest.mark.unit

UNKNOWN = ModelFacts()


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def entry(name: str, value: object) -> bytes:
    if isinstance(value, str):
        return text(name) + struct.pack("<I", 8) + text(value)
    if isinstance(value, bool):
        return text(name) + struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return text(name) + struct.pack("<II", 4, value)
    if isinstance(value, float):
        return text(name) + struct.pack("<If", 6, value)
    assert isinstance(value, list)
    kind = 8 if isinstance(value[0], str) else 4
    head = text(name) + struct.pack("<IIQ", 9, kind, len(value))
    return head + b"".join(text(v) if kind == 8 else struct.pack("<I", v) for v in value)


def gguf(entries: dict[str, object], *, version: int = 3) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, 0, len(entries))
    return head + b"".join(entry(name, value) for name, value in entries.items())


LLAMA: dict[str, object] = {
    "general.architecture": "llama",
    "general.quantized": True,
    "llama.context_length": 8192,
    "llama.block_count": 30,
    "llama.embedding_length": 576,
    "llama.attention.head_count": 9,
    "llama.attention.head_count_kv": 3,
    "llama.rope.freq_base": 1e5,
    "tokenizer.ggml.tokens": ["a", "bc", ""] * 100,
    "tokenizer.ggml.token_type": [1, 2, 3],
    "tokenizer.chat_template": "{% for m in messages %}",
}
READ = ModelFacts(
    context_length=8192,
    chat_template="{% for m in messages %}",
    bytes_per_token=30 * 3 * (64 + 64) * 2,
)


@pytest.mark.parametrize("version", [2, 3])
def test_the_facts_are_read_past_the_vocabulary(version: int) -> None:
    assert read_gguf(gguf(LLAMA, version=version) + bytes(100)) == READ


def test_memory_is_counted_by_layer_and_by_stated_widths() -> None:
    layers = {**LLAMA, "llama.block_count": 3, "llama.attention.head_count_kv": [4, 0, 2]}
    widths = {"llama.attention.key_length": 100, "llama.attention.value_length": 28}
    assert read_gguf(gguf({**layers, **widths})).bytes_per_token == 6 * 128 * 2
    without = {name: value for name, value in LLAMA.items() if "head_count_kv" not in name}
    assert read_gguf(gguf(without)).bytes_per_token == 30 * 9 * 128 * 2


def test_what_is_of_another_type_or_size_is_unknown() -> None:
    odd = {**LLAMA, "llama.context_length": "long", "tokenizer.chat_template": 7}
    odd["llama.attention.head_count"] = 0
    assert read_gguf(gguf(odd)) == UNKNOWN
    assert read_gguf(gguf({**LLAMA, "llama.context_length": 0})).context_length is None
    assert read_gguf(gguf({**LLAMA, "llama.context_length": 2**31})).context_length is None
    assert read_gguf(gguf({**LLAMA, "general.architecture": "qwen"})).context_length is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GGUF",
        b"GGML" + gguf(LLAMA)[4:],
        gguf(LLAMA, version=1),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63),
        gguf({"a": "b"})[:-1],
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<I", 99),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQ", 9, 9, 1),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQ", 9, 4, 2**62),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQ", 9, 8, 2**62),
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**64 - 1),
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"\xff" + struct.pack("<II", 4, 1),
    ],
)
def test_what_is_no_header_says_nothing(data: bytes) -> None:
    assert read_gguf(data) == UNKNOWN


@given(st.integers(0, len(gguf(LLAMA)) - 1))
def test_a_header_that_ends_early_says_what_came_before(end: int) -> None:
    facts = read_gguf(gguf(LLAMA)[:end])
    assert facts.context_length in {None, 8192}
    assert facts.chat_template is None


@given(st.binary(max_size=200), st.integers(0, 300))
def test_no_bytes_raise(data: bytes, at: int) -> None:
    whole = gguf(LLAMA)
    read_gguf(data)
    read_gguf(whole[:at] + data + whole[at + len(data) :])
