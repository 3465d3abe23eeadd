"""Rules for this file: the beginning of a GGUF file in, what a plan has to know of the model out.

Pure: no I/O, and never an exception, whatever the bytes are. What cannot be read is unknown;
the runtime reads the file itself and says what is wrong with it. The format is described in
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import contextlib
import struct
from dataclasses import dataclass
from typing import Final

__all__ = ["HEADER_BYTES", "ModelFacts", "read_gguf"]

# The metadata lies before the weights; the largest vocabularies take some 10 MB of it.
HEADER_BYTES: Final = 32 * 2**20

_MAGIC: Final = b"GGUF"
_VERSIONS: Final = frozenset({2, 3})  # the first had lengths of 32 bits, and is no longer read
_SCALARS: Final = {  # by the number of their type; 8 is text, 9 an array
    number: struct.Struct("<" + code)
    for number, code in zip((*range(8), 10, 11, 12), "BbHhIif?Qqd", strict=True)
}
_UINT32: Final = 4
_TEXT: Final = 8
_ARRAY: Final = 9
_MOST_ENTRIES: Final = 100_000
_MOST_LAYERS: Final = 10_000  # an array with one number for each layer is kept, no longer one
_LONGEST_NAME: Final = 65_535
_MOST_CONTEXT: Final = 10_000_000
_LARGEST_SIZE: Final = 2**20  # of layers, heads and widths
_BYTES_PER_NUMBER: Final = 2

_uint32: Final = _SCALARS[_UINT32].unpack_from
_uint64: Final = _SCALARS[10].unpack_from


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What a model says of itself; None where it does not, or not in a way that can be used.

    Attributes:
        context_length: in tokens, as it was trained.
        chat_template: a template in Jinja's language.
        bytes_per_token: what each token of context takes of memory, its keys and values in all
            layers stored in 16 bits, as runtimes do by default. Models that forget early or
            share keys take less.
    """

    context_length: int | None = None
    chat_template: str | None = None
    bytes_per_token: int | None = None


def read_gguf(data: bytes) -> ModelFacts:
    """Return what the header of a GGUF file says; `data` is its beginning."""
    found: dict[str, object] = {}
    # It may end early, or be something else: what came before counts.
    with contextlib.suppress(struct.error, IndexError, ValueError, OverflowError):
        _read(data, found)
    length = found.get(f"{found.get('general.architecture')}.context_length")
    template = found.get("tokenizer.chat_template")
    return ModelFacts(
        context_length=length if type(length) is int and 0 < length <= _MOST_CONTEXT else None,
        chat_template=template if type(template) is str and template else None,
        bytes_per_token=_bytes_per_token(found),
    )


def _bytes_per_token(found: dict[str, object]) -> int | None:
    def number(name: str, otherwise: int = 0) -> int:
        value = found.get(f"{found.get('general.architecture')}.{name}")
        return value if type(value) is int and 0 < value <= _LARGEST_SIZE else otherwise

    layers, heads = number("block_count"), number("attention.head_count")
    if not layers or not heads:
        return None
    per_layer = found.get(f"{found.get('general.architecture')}.attention.head_count_kv")
    if type(per_layer) is tuple:  # layers differ
        pairs = sum(per_layer)
    else:
        pairs = layers * number("attention.head_count_kv", heads)
    width = number("embedding_length") // heads
    both = number("attention.key_length", width) + number("attention.value_length", width)
    return pairs * both * _BYTES_PER_NUMBER or None


def _read(data: bytes, found: dict[str, object]) -> None:
    if data[:4] != _MAGIC or _uint32(data, 4)[0] not in _VERSIONS:
        return
    (entries,) = _uint64(data, 16)
    at = 24
    for _ in range(min(entries, _MOST_ENTRIES)):
        name, at = _text(data, at)
        if len(name) > _LONGEST_NAME:
            return
        (kind,) = _uint32(data, at)
        found[name], at = _value(data, at + 4, kind)


def _value(data: bytes, at: int, kind: int) -> tuple[object, int]:
    if kind == _TEXT:
        return _text(data, at)
    if kind == _ARRAY:
        return _array(data, at)
    scalar = _SCALARS.get(kind)
    if scalar is None:
        raise ValueError(kind)
    return scalar.unpack_from(data, at)[0], at + scalar.size


def _text(data: bytes, at: int) -> tuple[str, int]:
    (length,) = _uint64(data, at)
    end = at + 8 + length
    if end > len(data):
        raise IndexError(end)
    return data[at + 8 : end].decode("utf-8"), end


def _array(data: bytes, at: int) -> tuple[object, int]:
    """Return an array of a few unsigned numbers, and where it ends; any other is passed over."""
    (kind,), (count,) = _uint32(data, at), _uint64(data, at + 4)
    at += 12
    if kind == _TEXT:
        read = _uint64
        for _ in range(count):  # each takes eight bytes at least, so the data ends this too
            at += 8 + read(data, at)[0]
        return None, at
    scalar = _SCALARS.get(kind)
    if scalar is None:
        raise ValueError(kind)  # arrays of arrays: no metadata has them
    end = at + scalar.size * count
    if end > len(data):
        raise IndexError(end)
    if kind == _UINT32 and count <= _MOST_LAYERS:
        return struct.unpack_from(f"<{count}I", data, at), end
    return None, end
